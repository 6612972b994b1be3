//! The exchanges, queues and bindings of one virtual host, read from definitions as
//! `rabbitmqctl export_definitions` and `dacapo archive definitions` write them.
//!
//! Nothing else is copied: a shovel, a federation or a policy that names one would lead out of an
//! isolated environment. What is left out is counted, for the report says so.

use std::collections::BTreeSet;

use bytes::Bytes;
use dacapo_event::{FieldTable, FieldValue, ShortStr};
use serde_json::{Map, Value};

use crate::DrillError;

/// The most bytes of definitions: a platform of 20,000 queues has 10 MB.
pub const DEFINITIONS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The most things that are declared: each takes a round trip, so that these take half a minute.
const THINGS_MAX: usize = 20_000;

/// How deep arguments nest: RabbitMQ's own are flat.
const NESTING_MAX: usize = 8;

/// Lists that are left out, whatever they hold.
const LEFT_OUT: [&str; 7] = [
    "users",
    "permissions",
    "topic_permissions",
    "policies",
    "parameters",
    "global_parameters",
    "global-parameters",
];

/// What to declare.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Topology {
    /// The virtual host that it is of.
    pub vhost: String,
    /// Exchanges.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings between these, and of exchanges that every virtual host has.
    pub bindings: Vec<Binding>,
    /// What is not copied, for people: `policies (3)`.
    pub left_out: Vec<String>,
}

/// An exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// Its type, for example `topic`.
    pub kind: String,
    /// Whether clients may publish to it.
    pub internal: bool,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// A queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// A binding.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The exchange that it is of.
    pub source: String,
    /// Where it leads.
    pub destination: Destination,
    /// Its key.
    pub routing_key: String,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// Where a binding leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To a queue.
    Queue(String),
    /// To an exchange.
    Exchange(String),
}

impl Topology {
    /// Reads definitions; those of `vhost`, or of the only virtual host there is.
    ///
    /// # Errors
    /// They are no definitions, have none of that virtual host or those of several, or are too many.
    pub fn parse(text: &[u8], vhost: Option<&str>) -> Result<Self, DrillError> {
        let wrong = |problem: String| DrillError::Definitions { problem };
        if text.len() as u64 > DEFINITIONS_BYTES_MAX {
            return Err(wrong(format!("they have more than {DEFINITIONS_BYTES_MAX} bytes")));
        }
        let all: Value =
            serde_json::from_slice(text).map_err(|error| wrong(format!("no JSON ({error})")))?;
        if !all.is_object() || !(all["queues"].is_array() || all["exchanges"].is_array()) {
            return Err(wrong("there is no list of `queues` or `exchanges`".to_owned()));
        }
        let list = |name: &str| all[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let vhost = match vhost {
            Some(vhost) => vhost.to_owned(),
            None => the_only_vhost(&all).map_err(wrong)?,
        };
        let of_vhost = |thing: &&Value| thing["vhost"].as_str().is_none_or(|its| its == vhost);
        let mut topology = Topology { vhost: vhost.clone(), ..Topology::default() };
        for exchange in list("exchanges").iter().filter(of_vhost) {
            let name = text_of(exchange, "name").map_err(wrong)?;
            if is_everywhere(&name) {
                continue;
            }
            topology.exchanges.push(Exchange {
                kind: text_of(exchange, "type").map_err(wrong)?,
                internal: exchange["internal"] == true,
                arguments: arguments(exchange, &name).map_err(wrong)?,
                name,
            });
        }
        for queue in list("queues").iter().filter(of_vhost) {
            let name = text_of(queue, "name").map_err(wrong)?;
            if name.is_empty() {
                // The broker would make up another one, which nobody could remove.
                return Err(wrong("a queue has an empty `name`".to_owned()));
            }
            let arguments = arguments(queue, &name).map_err(wrong)?;
            topology.queues.push(Queue { name, arguments });
        }
        let exchanges: BTreeSet<&str> =
            topology.exchanges.iter().map(|it| it.name.as_str()).collect();
        let queues: BTreeSet<&str> = topology.queues.iter().map(|it| it.name.as_str()).collect();
        let (mut bindings, mut loose) = (Vec::new(), 0);
        for binding in list("bindings").iter().filter(of_vhost) {
            let source = text_of(binding, "source").map_err(wrong)?;
            let to = text_of(binding, "destination").map_err(wrong)?;
            let to_queue = binding["destination_type"] == "queue";
            let there = if to_queue { &queues } else { &exchanges };
            let has_source = exchanges.contains(source.as_str()) || source.starts_with("amq.");
            let has_end = there.contains(to.as_str()) || (!to_queue && to.starts_with("amq."));
            // Every queue is bound to the default exchange by itself.
            if source.is_empty() {
                continue;
            }
            if !has_source || !has_end {
                loose += 1;
                continue;
            }
            bindings.push(Binding {
                routing_key: text_of(binding, "routing_key").map_err(wrong)?,
                arguments: arguments(binding, &source).map_err(wrong)?,
                destination: match to_queue {
                    true => Destination::Queue(to),
                    false => Destination::Exchange(to),
                },
                source,
            });
        }
        topology.bindings = bindings;
        let things = topology.exchanges.len() + topology.queues.len() + topology.bindings.len();
        if things > THINGS_MAX {
            return Err(wrong(format!(
                "they have {things} exchanges, queues and bindings, more than the {THINGS_MAX} that are declared"
            )));
        }
        if things == 0 {
            return Err(wrong(format!("they have nothing of virtual host `{vhost}`")));
        }
        topology.left_out = left_out(&all, loose);
        Ok(topology)
    }
}

fn the_only_vhost(all: &Value) -> Result<String, String> {
    let lists = ["queues", "exchanges"];
    let things = lists.iter().filter_map(|list| all[*list].as_array()).flatten();
    let named: BTreeSet<&str> = things.filter_map(|thing| thing["vhost"].as_str()).collect();
    match named.len() {
        0 => Ok("/".to_owned()),
        1 => Ok(named.into_iter().next().unwrap_or("/").to_owned()),
        several => {
            Err(format!("they are of {several} virtual hosts; name one with `definitions_vhost`"))
        }
    }
}

/// Whether every virtual host has an exchange of this name by itself, or a replay had.
fn is_everywhere(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.") || name.starts_with("dacapo.replay.")
}

fn left_out(all: &Value, loose: u64) -> Vec<String> {
    let count = |name: &str| all[name].as_array().map_or(0, Vec::len) as u64;
    let lists = LEFT_OUT.iter().map(|name| (count(name), name.replace(['_', '-'], " ")));
    let loose = [(loose, "bindings of what is not there".to_owned())];
    let some = lists.chain(loose).filter(|(count, _)| *count > 0);
    some.map(|(count, name)| format!("{name} ({count})")).collect()
}

fn text_of(thing: &Value, member: &str) -> Result<String, String> {
    match thing[member].as_str() {
        Some(text) if text.len() <= ShortStr::BYTES_MAX => Ok(text.to_owned()),
        Some(_) => Err(format!("a `{member}` has more than {} bytes", ShortStr::BYTES_MAX)),
        None => Err(format!("something has no `{member}`")),
    }
}

fn arguments(thing: &Value, name: &str) -> Result<FieldTable, String> {
    match &thing["arguments"] {
        Value::Null => Ok(FieldTable::new()),
        Value::Array(none) if none.is_empty() => Ok(FieldTable::new()),
        Value::Object(arguments) => {
            to_table(arguments).map_err(|problem| format!("`{name}`: {problem}"))
        }
        _ => Err(format!("`{name}`: its arguments are no object")),
    }
}

/// Returns arguments in AMQP's form: whole numbers as 64 bits, as RabbitMQ's own import has them.
pub(crate) fn to_table(arguments: &Map<String, Value>) -> Result<FieldTable, String> {
    table(arguments, 0)
}

fn table(members: &Map<String, Value>, depth: usize) -> Result<FieldTable, String> {
    let mut table = FieldTable::new();
    for (name, value) in members {
        let short = ShortStr::try_from(name.as_str());
        let short = short.map_err(|_| "an argument's name has more than 255 bytes".to_owned())?;
        let value = field(value, depth + 1);
        table.insert(short, value.map_err(|problem| format!("argument `{name}` {problem}"))?);
    }
    Ok(table)
}

fn field(value: &Value, depth: usize) -> Result<FieldValue, String> {
    if depth > NESTING_MAX {
        return Err(format!("nests deeper than {NESTING_MAX} levels"));
    }
    Ok(match value {
        Value::Null => FieldValue::Void,
        Value::Bool(value) => FieldValue::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => FieldValue::LongLongInt(whole),
            (None, Some(number)) if number.is_finite() => FieldValue::Double(number),
            _ => return Err("is a number that AMQP has no form for".to_owned()),
        },
        Value::String(text) => FieldValue::LongString(Bytes::copy_from_slice(text.as_bytes())),
        Value::Array(values) => FieldValue::Array(
            values.iter().map(|value| field(value, depth + 1)).collect::<Result<_, _>>()?,
        ),
        Value::Object(members) => FieldValue::Table(table(members, depth)?),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definitions() -> Value {
        json!({
            "vhosts": [{ "name": "shop" }],
            "users": [{ "name": "u", "password_hash": "sesame" }],
            "policies": [{ "vhost": "shop" }, { "vhost": "shop" }],
            "exchanges": [
                { "name": "shop", "vhost": "shop", "type": "topic", "durable": true, "internal": false,
                  "arguments": { "alternate-exchange": "rest" } },
                { "name": "amq.topic", "vhost": "shop", "type": "topic", "arguments": {} },
                { "name": "dacapo.replay.1", "vhost": "shop", "type": "fanout", "arguments": {} },
            ],
            "queues": [
                { "name": "orders", "vhost": "shop",
                  "arguments": { "x-queue-type": "quorum", "x-max-length": 5, "x": [1.5, null] } },
            ],
            "bindings": [
                { "source": "shop", "vhost": "shop", "destination": "orders", "destination_type": "queue",
                  "routing_key": "order.#", "arguments": {} },
                { "source": "gone", "vhost": "shop", "destination": "orders", "destination_type": "queue",
                  "routing_key": "", "arguments": {} },
                { "source": "", "vhost": "shop", "destination": "orders", "destination_type": "queue",
                  "routing_key": "orders", "arguments": {} },
            ],
        })
    }

    #[test]
    fn exchanges_queues_and_bindings_are_copied_and_the_rest_is_counted() {
        let topology = Topology::parse(definitions().to_string().as_bytes(), None).unwrap();
        assert_eq!(topology.vhost, "shop");
        assert_eq!(topology.exchanges.len(), 1);
        assert_eq!(topology.bindings.len(), 1);
        let arguments = &topology.queues[0].arguments;
        assert_eq!(arguments.get("x-max-length"), Some(&FieldValue::LongLongInt(5)));
        assert_eq!(arguments.get("x-queue-type"), Some(&FieldValue::text("quorum")));
        let out = ["users (1)", "policies (2)", "bindings of what is not there (1)"];
        assert_eq!(topology.left_out, out);
    }

    #[track_caller]
    fn check_refused(text: &str, vhost: Option<&str>, word: &str) {
        let error = Topology::parse(text.as_bytes(), vhost).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains("sesame"), "{error}");
    }

    #[test]
    fn what_are_no_definitions_is_refused() {
        check_refused("", None, "no JSON");
        check_refused("[]", None, "no list");
        check_refused(r#"{"queues": 5}"#, None, "no list");
        check_refused(r#"{"queues": []}"#, None, "nothing of virtual host `/`");
        check_refused(r#"{"queues": [{"name": 5}]}"#, None, "no `name`");
        check_refused(r#"{"queues": [{"name": ""}]}"#, None, "empty `name`");
        check_refused(r#"{"queues": [{"name": "q", "arguments": 5}]}"#, None, "`q`");
        let two = r#"{"queues": [{"name": "q", "vhost": "a"}, {"name": "q", "vhost": "b"}]}"#;
        check_refused(two, None, "definitions_vhost");
        check_refused(two, Some("c"), "nothing of virtual host `c`");
        assert_eq!(Topology::parse(two.as_bytes(), Some("b")).unwrap().queues.len(), 1);
        let deep = format!("{}1{}", "[".repeat(20), "]".repeat(20));
        let deep = format!(r#"{{"queues": [{{"name": "q", "arguments": {{"x": {deep}}}}}]}}"#);
        check_refused(&deep, None, "nests deeper");
    }
}
