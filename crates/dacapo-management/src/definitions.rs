//! What a virtual host would be made of again: its definitions, in the form that
//! `rabbitmqctl import_definitions` takes.
//!
//! Put together from lists that the tag `monitoring` may see; RabbitMQ's own export needs an
//! administrator, and holds hashes of passwords. Never a secret: users, permissions and parameters
//! (which hold the passwords of shovels and federations) are left out.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::ask::off_the_runtime;
use crate::{Management, ManagementError};

const QUEUES: &str = "columns=name,durable,auto_delete,exclusive,arguments";
const EXCHANGES: &str = "columns=name,type,durable,auto_delete,internal,arguments";
const BINDINGS: &str = "columns=source,destination,destination_type,routing_key,arguments";

/// Exchanges of replays; they come and go with them.
const OF_REPLAYS: &str = "dacapo.replay.";

/// The lists as the plugin has them.
#[derive(Debug, Default)]
struct Lists {
    queues: Vec<Value>,
    exchanges: Vec<Value>,
    bindings: Vec<Value>,
    policies: Vec<Value>,
    operator_policies: Vec<Value>,
}

impl Management {
    /// Returns the definitions of a virtual host: queues, exchanges, bindings and policies that
    /// outlive a restart of the broker. The same definitions are the same value, member by member.
    /// The user needs the tag `monitoring` and access to the virtual host.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, an answer of another form or of more
    /// than 16 MiB. Cancel-safe.
    pub async fn definitions(&self, vhost: &str) -> Result<Value, ManagementError> {
        let lists = Lists {
            queues: self.list("queues", vhost, QUEUES).await?,
            exchanges: self.list("exchanges", vhost, EXCHANGES).await?,
            bindings: self.list("bindings", vhost, BINDINGS).await?,
            policies: self.list("policies", vhost, "").await?,
            operator_policies: self.list("operator-policies", vhost, "").await?,
        };
        let vhost = vhost.to_owned();
        Ok(off_the_runtime(move || canonical(&vhost, &lists)).await)
    }
}

fn canonical(vhost: &str, lists: &Lists) -> Value {
    let name = |value: &Value| value["name"].as_str().unwrap_or("").to_owned();
    let lasts = |value: &&Value| value["durable"] == true && value["exclusive"] != true;
    let ours = |value: &&Value| {
        let name = name(value);
        !name.is_empty() && !name.starts_with("amq.") && !name.starts_with(OF_REPLAYS)
    };
    let queues: Vec<&Value> = lists.queues.iter().filter(lasts).collect();
    let exchanges: Vec<&Value> = lists.exchanges.iter().filter(lasts).collect();
    let queue_names: BTreeSet<String> = queues.iter().copied().map(name).collect();
    let exchange_names: BTreeSet<String> = exchanges.iter().copied().map(name).collect();
    let text = |value: &Value, member: &str| value[member].as_str().unwrap_or("").to_owned();
    let bound = |binding: &&Value| {
        let (source, destination) = (text(binding, "source"), text(binding, "destination"));
        let names = match binding["destination_type"] == "queue" {
            true => &queue_names,
            false => &exchange_names,
        };
        // Every queue is bound to the default exchange by itself.
        !source.starts_with(OF_REPLAYS)
            && exchange_names.contains(&source)
            && !source.is_empty()
            && names.contains(&destination)
    };
    let exchanges: Vec<&Value> = exchanges.into_iter().filter(ours).collect();
    let operators: Vec<Value> = lists.operator_policies.iter().map(as_parameter).collect();
    json!({
        "vhosts": [{ "name": vhost }],
        "exchanges": listed(vhost, exchanges),
        "queues": listed(vhost, queues),
        "bindings": listed(vhost, lists.bindings.iter().filter(bound)),
        "policies": listed(vhost, &lists.policies),
        "parameters": listed(vhost, &operators),
    })
}

/// Returns an operator's policy as definitions have it.
fn as_parameter(policy: &Value) -> Value {
    json!({
        "component": "operator_policy",
        "name": policy["name"],
        "value": {
            "pattern": policy["pattern"],
            "definition": policy["definition"],
            "priority": policy["priority"],
            "apply-to": policy["apply-to"],
        },
    })
}

/// Returns things of a virtual host, each saying so, in an order of their own.
fn listed<'a>(vhost: &str, things: impl IntoIterator<Item = &'a Value>) -> Value {
    let thing = |thing: &Value| {
        let mut thing = sorted(thing);
        if let Some(members) = thing.as_object_mut() {
            members.remove("exclusive");
            members.insert("vhost".to_owned(), vhost.into());
        }
        thing
    };
    let mut things: Vec<Value> = things.into_iter().map(thing).collect();
    things.sort_by_cached_key(Value::to_string);
    things.into()
}

/// Returns a value with the members of all objects sorted by name.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            let members = members.into_iter().map(|(name, value)| (name.clone(), sorted(value)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, durable: bool, exclusive: bool, arguments: &Value) -> Value {
        json!({ "name": name, "durable": durable, "exclusive": exclusive, "auto_delete": false,
                "arguments": arguments, "vhost": "/" })
    }

    fn exchange(name: &str) -> Value {
        json!({ "name": name, "type": "topic", "durable": true, "auto_delete": false,
                "internal": false, "arguments": {} })
    }

    fn binding(source: &str, destination: &str) -> Value {
        json!({ "source": source, "destination": destination, "destination_type": "queue",
                "routing_key": "#", "arguments": {} })
    }

    fn lists() -> Lists {
        Lists {
            queues: vec![
                queue("b", true, false, &json!({ "x-a": 1, "x-b": 2 })),
                queue("a", true, false, &json!({})),
                queue("of-a-connection", true, true, &json!({})),
                queue("gone-with-a-restart", false, false, &json!({})),
            ],
            exchanges: vec![
                exchange(""),
                exchange("amq.topic"),
                exchange("shop"),
                exchange("dacapo.replay.1"),
            ],
            bindings: vec![
                binding("", "a"),
                binding("shop", "a"),
                binding("amq.topic", "b"),
                binding("shop", "of-a-connection"),
                binding("dacapo.replay.1", "a"),
            ],
            policies: Vec::new(),
            operator_policies: vec![json!({
                "name": "cap", "pattern": "^b", "apply-to": "queues", "priority": 3, "vhost": "/",
                "definition": { "max-length": 5 },
            })],
        }
    }

    fn names(definitions: &Value, list: &str, member: &str) -> Vec<String> {
        let list = definitions[list].as_array().unwrap();
        list.iter().map(|thing| thing[member].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_outlives_a_restart_and_a_replay_is_there_and_nothing_else() {
        let definitions = canonical("shop/1", &lists());
        assert_eq!(names(&definitions, "queues", "name").len(), 2);
        assert_eq!(names(&definitions, "exchanges", "name"), ["shop"]);
        let mut bound = names(&definitions, "bindings", "destination");
        bound.sort();
        assert_eq!(bound, ["a", "b"]);
        assert_eq!(names(&definitions, "parameters", "vhost"), ["shop/1"]);
        assert_eq!(definitions["parameters"][0]["value"]["definition"]["max-length"], 5);
        assert_eq!(definitions["vhosts"], json!([{ "name": "shop/1" }]));
    }

    #[test]
    fn an_order_that_changes_is_no_change_and_an_argument_is_one() {
        let before = canonical("/", &lists()).to_string();
        let mut turned = lists();
        turned.queues.reverse();
        turned.bindings.reverse();
        turned.queues[2] = queue("a", true, false, &json!({}));
        turned.queues[3] = queue("b", true, false, &json!({ "x-b": 2, "x-a": 1 }));
        assert_eq!(canonical("/", &turned).to_string(), before);
        turned.queues[3] = queue("b", true, false, &json!({ "x-b": 2, "x-a": 3 }));
        assert_ne!(canonical("/", &turned).to_string(), before);
    }
}
