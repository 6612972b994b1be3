//! What is in a virtual host: exchanges, queues, bindings, and the policies that apply to them.

use std::collections::BTreeMap;

use dacapo_bus::broker::{
    Binding, Consumer, DeadLetter, Destination, Exchange, ExchangeKind, HeaderAsked, HeadersAsked,
    Imposed, Matching, Overflow, Queue, Setting, Topology, parked_queue,
};
use dacapo_event::percent::encode;
use serde_json::Value;

use crate::ask::tags;
use crate::policies::{Kind, Policies};
use crate::{Management, ManagementError};

// Only these columns: a queue has hundreds. What the plugin says of policies comes from statistics,
// which a queue of the last seconds does not have yet; policies are matched here instead.
const QUEUES: &str = "columns=name,arguments,auto_delete,message_bytes,type";
const EXCHANGES: &str = "columns=name,type,arguments";
const BINDINGS: &str = "columns=source,destination,destination_type,routing_key,arguments";
const CONSUMERS: &str = "columns=queue.name,consumer_tag,channel_details.connection_name";

impl Management {
    /// Returns what is in a virtual host; the user needs the tag `monitoring` and access to it.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, an answer of another form or of more
    /// than 16 MiB. Cancel-safe.
    pub async fn topology(&self, vhost: &str) -> Result<Topology, ManagementError> {
        let policies = self.policies(vhost).await?;
        let strange = |what, problem| move || self.strange(what, problem);
        let queues = self.list("queues", vhost, QUEUES).await?;
        let queues = queues.iter().map(|queue| read_queue(queue, &policies)).collect();
        let exchanges = self.list("exchanges", vhost, EXCHANGES).await?;
        let exchanges = exchanges.iter().map(|it| read_exchange(it, &policies)).collect();
        let bindings = self.list("bindings", vhost, BINDINGS).await?;
        let bindings: Option<Vec<Binding>> = bindings.iter().map(read_binding).collect();
        let (queues, exchanges): (Option<BTreeMap<_, _>>, Option<BTreeMap<_, _>>) =
            (queues, exchanges);
        let mut queues = queues.ok_or_else(strange("queues", "it is no list of queues"))?;
        mark_parking(&mut queues);
        Ok(Topology {
            queues,
            exchanges: exchanges.ok_or_else(strange("exchanges", "it is no list of exchanges"))?,
            bindings: bindings.ok_or_else(strange("bindings", "it is no list of bindings"))?,
        })
    }

    /// Returns who consumes the queues of a virtual host; the user needs the tag `monitoring` and access
    /// to it.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, an answer of another form or of more
    /// than 16 MiB. Cancel-safe.
    pub async fn consumers(&self, vhost: &str) -> Result<Vec<Consumer>, ManagementError> {
        let consumers = self.list("consumers", vhost, CONSUMERS).await?;
        let consumers: Option<Vec<Consumer>> = consumers.iter().map(read_consumer).collect();
        consumers.ok_or_else(|| self.strange("consumers", "it is no list of consumers"))
    }

    /// Returns what policies set on quorum queues of these names, whether they are there or not;
    /// the user needs the tag `monitoring` and access to the virtual host.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, an answer of another form or of more
    /// than 16 MiB. Cancel-safe.
    pub async fn imposed<const N: usize>(
        &self,
        vhost: &str,
        queues: [&str; N],
    ) -> Result<[Imposed; N], ManagementError> {
        let policies = self.policies(vhost).await?;
        Ok(queues.map(|queue| imposed(&policies, queue)))
    }

    /// Returns the policies of a virtual host, the operator's included.
    pub(crate) async fn policies(&self, vhost: &str) -> Result<Policies, ManagementError> {
        let policies = self.list("policies", vhost, "").await?;
        let operators = self.list("operator-policies", vhost, "").await?;
        Policies::read(&policies, &operators)
            .ok_or_else(|| self.strange("policies", "it is no list of policies"))
    }

    /// Returns a list of what is in a virtual host.
    pub(crate) async fn list(
        &self,
        what: &str,
        vhost: &str,
        query: &str,
    ) -> Result<Vec<Value>, ManagementError> {
        let path = format!("{what}/{}?{query}", encode(vhost));
        match self.get(&path, tags::MONITORING).await? {
            Value::Array(list) => Ok(list),
            _ => Err(self.strange(&path, "it is no list")),
        }
    }
}

fn imposed(policies: &Policies, queue: &str) -> Imposed {
    let set = policies.of_queue(queue, "quorum");
    let limit = |word: &str| set.lowest(&Value::Null, word);
    // Of those that may apply, the worst.
    let overflow = set.texts(&Value::Null, "overflow").into_iter().flatten();
    let overflow = overflow.map(|set| Setting { value: overflow_named(&set.value), by: set.by });
    Imposed {
        message_ttl: limit("message-ttl"),
        expires: limit("expires"),
        length_max: limit("max-length"),
        bytes_max: limit("max-length-bytes"),
        overflow: overflow.min_by_key(|set| set.value == Overflow::Reject),
    }
}

fn overflow_named(word: &str) -> Overflow {
    match word {
        "reject-publish" | "reject-publish-dlx" => Overflow::Reject,
        _ => Overflow::DropHead,
    }
}

fn read_queue(json: &Value, policies: &Policies) -> Option<(String, Queue)> {
    let name = json["name"].as_str()?.to_owned();
    let arguments = &json["arguments"];
    let is_quorum = json["type"] == "quorum" || arguments["x-queue-type"] == "quorum";
    let set = policies.of_queue(&name, json["type"].as_str().unwrap_or("classic"));
    // Of a limit that argument and policies set, the lower one holds.
    let limit = |word: &str| set.lowest(&arguments[format!("x-{word}")], word);
    // Of everything else, the argument.
    let text = |word: &str| set.text(&arguments[format!("x-{word}")], word);
    let routing_key = text("dead-letter-routing-key");
    let dead_letter = text("dead-letter-exchange");
    let dead_letter = dead_letter.map(|exchange| DeadLetter {
        exchange: exchange.value,
        routing_key: routing_key.map(|key| key.value),
    });
    let parked = DeadLetter { exchange: String::new(), routing_key: Some(parked_queue(&name)) };
    let queue = Queue {
        message_ttl: limit("message-ttl"),
        expires: limit("expires"),
        length_max: limit("max-length"),
        bytes_max: limit("max-length-bytes"),
        overflow: match set.texts(&arguments["x-overflow"], "overflow").iter().all(rejects) {
            true => Overflow::Reject,
            false => Overflow::DropHead,
        },
        is_archivers: is_quorum
            && arguments["x-single-active-consumer"] == true
            && arguments["x-dacapo-holding"] != true
            && dead_letter.as_ref() == Some(&parked),
        dead_letter,
        auto_delete: json["auto_delete"] == true,
        bytes: json["message_bytes"].as_u64(),
    };
    Some((name, queue))
}

/// Marks the queues in which archivers' queues park: they are consumed with these.
fn mark_parking(queues: &mut BTreeMap<String, Queue>) {
    let archivers = queues.iter().filter(|(_, queue)| queue.is_archivers);
    let parking: Vec<String> = archivers.map(|(name, _)| parked_queue(name)).collect();
    for name in parking {
        if let Some(queue) = queues.get_mut(&name) {
            queue.is_archivers = true;
        }
    }
}

fn rejects(overflow: &Option<Setting<String>>) -> bool {
    overflow.as_ref().is_some_and(|set| overflow_named(&set.value) == Overflow::Reject)
}

fn read_exchange(json: &Value, policies: &Policies) -> Option<(String, Exchange)> {
    let name = json["name"].as_str()?.to_owned();
    let set = policies.of(&name, Kind::Exchange);
    let kind = match json["type"].as_str()? {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "topic" => ExchangeKind::Topic,
        "headers" => ExchangeKind::Headers,
        _ => ExchangeKind::Other,
    };
    let argument = json["arguments"]["alternate-exchange"].as_str();
    let alternate = match argument {
        Some(value) => Some(Setting {
            value: value.to_owned(),
            by: "argument `alternate-exchange`".to_owned(),
        }),
        None => set.text(&Value::Null, "alternate-exchange"),
    };
    Some((name, Exchange { kind, alternate }))
}

fn read_binding(json: &Value) -> Option<Binding> {
    let destination = json["destination"].as_str()?.to_owned();
    Some(Binding {
        source: json["source"].as_str()?.to_owned(),
        destination: match json["destination_type"].as_str()? {
            "queue" => Destination::Queue(destination),
            _ => Destination::Exchange(destination),
        },
        routing_key: json["routing_key"].as_str()?.to_owned(),
        headers: read_headers(&json["arguments"]),
    })
}

/// As RabbitMQ's headers exchange reads the arguments of a binding: names that begin with `x-` are its
/// own, unless it is told otherwise.
fn read_headers(arguments: &Value) -> HeadersAsked {
    let x_match = arguments["x-match"].as_str().unwrap_or("all");
    let with_x = x_match.ends_with("-with-x");
    let compared = |name: &str| name != "x-match" && (with_x || !name.starts_with("x-"));
    let arguments = arguments.as_object().into_iter().flatten();
    HeadersAsked {
        matching: match x_match {
            "any" | "any-with-x" => Matching::Any,
            _ => Matching::All,
        },
        fields: arguments
            .filter(|(name, _)| compared(name))
            .map(|(name, value)| (name.clone(), read_header(value)))
            .collect(),
    }
}

fn read_header(value: &Value) -> HeaderAsked {
    match value {
        Value::Null => HeaderAsked::Present,
        Value::String(text) if text == "undefined" => HeaderAsked::PresentOrUndefined,
        Value::String(text) => HeaderAsked::Text(text.clone()),
        Value::Bool(value) => HeaderAsked::Boolean(*value),
        Value::Number(number) => number.as_i64().map_or(HeaderAsked::Other, HeaderAsked::Integer),
        Value::Array(_) | Value::Object(_) => HeaderAsked::Other,
    }
}

fn read_consumer(json: &Value) -> Option<Consumer> {
    Some(Consumer {
        queue: json["queue"]["name"].as_str()?.to_owned(),
        tag: json["consumer_tag"].as_str()?.to_owned(),
        connection: json["channel_details"]["connection_name"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policies() -> Policies {
        Policies::read(
            &[
                json!({ "name": "short", "pattern": "^orders", "apply-to": "queues", "priority": 1,
                        "definition": { "message-ttl": 60_000, "overflow": "reject-publish" } }),
                json!({ "name": "spill", "pattern": "^shop$", "apply-to": "exchanges", "priority": 0,
                        "definition": { "alternate-exchange": "unrouted" } }),
            ],
            &[json!({ "name": "cap", "pattern": ".*", "apply-to": "queues", "priority": 0,
                      "definition": { "max-length": 10, "message-ttl": 90_000 } })],
        )
        .unwrap()
    }

    fn queue(json: Value) -> Queue {
        read_queue(&json, &policies()).unwrap().1
    }

    fn set<T>(value: T, by: &str) -> Option<Setting<T>> {
        Some(Setting { value, by: by.to_owned() })
    }

    #[test]
    fn of_limits_the_lowest_holds_and_of_the_rest_the_argument() {
        let plain = queue(json!({ "name": "orders", "arguments": {}, "message_bytes": 7 }));
        assert_eq!(plain.message_ttl, set(60_000, "policy `short`"));
        assert_eq!(plain.length_max, set(10, "operator policy `cap`"));
        assert_eq!(plain.overflow, Overflow::Reject);
        assert_eq!((plain.expires, plain.bytes, plain.is_archivers), (None, Some(7), false));
        let arguments = json!({ "x-message-ttl": 5, "x-overflow": "drop-head", "x-expires": 9 });
        let own = queue(json!({ "name": "orders", "arguments": arguments, "auto_delete": true }));
        assert_eq!(own.message_ttl, set(5, "argument `x-message-ttl`"));
        assert_eq!(own.expires, set(9, "argument `x-expires`"));
        assert_eq!(own.overflow, Overflow::DropHead);
        assert!(own.auto_delete);
    }

    #[test]
    fn what_policies_impose_is_known_of_a_queue_that_is_not_there_yet() {
        let policies = Policies::read(
            &[json!({ "name": "limits", "pattern": "^dacapo", "apply-to": "queues", "priority": 0,
                      "definition": { "message-ttl": 60_000, "overflow": "drop-head" } })],
            &[json!({ "name": "cap", "pattern": "parked$", "apply-to": "all", "priority": 0,
                      "definition": { "message-ttl": 5_000, "max-length": 9 } })],
        );
        let policies = policies.unwrap();
        let parked = imposed(&policies, "dacapo.archive.parked");
        assert_eq!(parked.message_ttl, set(5_000, "operator policy `cap`"));
        assert_eq!(parked.length_max, set(9, "operator policy `cap`"));
        assert_eq!(parked.overflow, set(Overflow::DropHead, "policy `limits`"));
        let main = imposed(&policies, "dacapo.archive");
        assert_eq!(main.message_ttl, set(60_000, "policy `limits`"));
        assert_eq!((main.expires, main.length_max), (None, None));
        assert_eq!(imposed(&policies, "orders"), Imposed::default());
    }

    #[test]
    fn an_archivers_queue_is_known_by_its_parking_queue() {
        let archivers = |name: &str, parked: &str, single: bool| {
            let arguments = json!({
                "x-queue-type": "quorum", "x-single-active-consumer": single,
                "x-dead-letter-exchange": "", "x-dead-letter-routing-key": parked,
            });
            queue(json!({ "name": name, "type": "quorum", "arguments": arguments })).is_archivers
        };
        assert!(archivers("dacapo.archive", "dacapo.archive.parked", true));
        assert!(!archivers("dacapo.archive", "dacapo.archive.parked", false));
        assert!(!archivers("orders", "orders.dead", true));
    }

    #[test]
    fn an_archivers_parking_queue_is_the_archivers_too() {
        let queue = |is_archivers| Queue { is_archivers, ..Queue::default() };
        let names = ["archive", "archive.parked", "orders", "orders.parked"];
        let queues = names.map(|name| (name.to_owned(), queue(name == "archive")));
        let mut queues = BTreeMap::from(queues);
        mark_parking(&mut queues);
        let marked: Vec<&str> = queues
            .iter()
            .filter(|(_, queue)| queue.is_archivers)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(marked, ["archive", "archive.parked"]);
    }

    #[test]
    fn an_alternate_exchange_comes_from_the_argument_or_a_policy() {
        let alternate = |name: &str, arguments: Value| {
            let json = json!({ "name": name, "type": "topic", "arguments": arguments });
            read_exchange(&json, &policies()).unwrap().1.alternate
        };
        let unrouted = |by| set("unrouted".to_owned(), by);
        assert_eq!(alternate("shop", json!({})), unrouted("policy `spill`"));
        let own = json!({ "alternate-exchange": "unrouted" });
        assert_eq!(alternate("other", own), unrouted("argument `alternate-exchange`"));
        assert_eq!(alternate("other", json!({})), None);
    }

    #[test]
    fn a_binding_leads_to_a_queue_or_an_exchange() {
        let binding = |kind: &str| {
            let json = json!({ "source": "shop", "destination": "d", "destination_type": kind,
                               "routing_key": "k" });
            read_binding(&json).unwrap().destination
        };
        assert_eq!(read_binding(&json!({ "source": "shop" })), None);
        assert_eq!(binding("queue"), Destination::Queue("d".to_owned()));
        assert_eq!(binding("exchange"), Destination::Exchange("d".to_owned()));
    }

    #[test]
    fn a_binding_of_a_headers_exchange_asks_for_what_its_arguments_say() {
        let read = |arguments: Value| {
            let HeadersAsked { matching, fields } = read_headers(&arguments);
            (matching, fields.into_iter().collect::<Vec<_>>())
        };
        let text = |name: &str, text: &str| (name.to_owned(), HeaderAsked::Text(text.to_owned()));
        assert_eq!(read(json!({})), (Matching::All, Vec::new()));
        let arguments = |x_match: &str| json!({ "x-match": x_match, "x-own": "1", "to": "eu" });
        assert_eq!(read(arguments("all")), (Matching::All, vec![text("to", "eu")]));
        assert_eq!(read(arguments("any")), (Matching::Any, vec![text("to", "eu")]));
        let both = vec![text("to", "eu"), text("x-own", "1")];
        assert_eq!(read(arguments("all-with-x")), (Matching::All, both.clone()));
        assert_eq!(read(arguments("any-with-x")), (Matching::Any, both));
        let kinds = read(json!({ "a": null, "b": true, "c": 7, "d": 1.5, "e": ["x"],
                                "f": "undefined" }))
        .1;
        let kinds: Vec<HeaderAsked> = kinds.into_iter().map(|(_, asked)| asked).collect();
        let expected = [
            HeaderAsked::Present,
            HeaderAsked::Boolean(true),
            HeaderAsked::Integer(7),
            HeaderAsked::Other,
            HeaderAsked::Other,
            HeaderAsked::PresentOrUndefined,
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn a_consumer_is_known_by_its_queue_and_tag() {
        let named = json!({ "queue": { "name": "orders" }, "consumer_tag": "ctag-1",
                            "channel_details": { "connection_name": "10.0.0.1:5000" } });
        let consumer = read_consumer(&named).unwrap();
        assert_eq!((consumer.queue.as_str(), consumer.tag.as_str()), ("orders", "ctag-1"));
        assert_eq!(consumer.connection.as_deref(), Some("10.0.0.1:5000"));
        // A channel that has just gone has no details.
        let gone = json!({ "queue": { "name": "orders" }, "consumer_tag": "c",
                           "channel_details": [] });
        assert_eq!(read_consumer(&gone).unwrap().connection, None);
        assert_eq!(read_consumer(&json!({ "queue": {} })), None);
    }
}
