//! What a broker is like: plain data, whoever asked for it, and where its bindings lead.

use std::collections::{BTreeMap, BTreeSet};

use dacapo_event::topic;

pub mod routing;

/// A node of a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub runs: bool,
    /// Free disk in bytes, where the node can tell.
    pub disk_free: Option<u64>,
    /// With no more than this free, in bytes, the node blocks publishers.
    pub disk_limit: Option<u64>,
    /// Whether it blocks publishers for want of disk, where that is told.
    pub disk_alarm: Option<bool>,
    /// Whether it blocks publishers for want of memory, where that is told.
    pub memory_alarm: Option<bool>,
}

/// The exchanges, queues and bindings of one virtual host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Exchanges by name; the default exchange, which binds every queue by its name, may be left out.
    pub exchanges: BTreeMap<String, Exchange>,
    /// Queues by name.
    pub queues: BTreeMap<String, Queue>,
    /// What is bound to what.
    pub bindings: Vec<Binding>,
}

/// An exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchange {
    /// How it compares routing keys with those of bindings.
    pub kind: ExchangeKind,
    /// Where what it routes nowhere goes, if anywhere.
    pub alternate: Option<Setting<String>>,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExchangeKind {
    /// The routing key is that of the binding.
    Direct,
    /// Whatever the routing key is.
    Fanout,
    /// The binding's key is a pattern.
    Topic,
    /// The binding's arguments ask for headers.
    Headers,
    /// By something else (a plugin); anything may be routed anywhere.
    #[default]
    Other,
}

/// A setting and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// What is set.
    pub value: T,
    /// For example ``argument `x-message-ttl` `` or ``policy `limits` ``.
    pub by: String,
}

/// A queue, with what limits it: its arguments and the policies that match it, together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// Milliseconds after which a message is dropped or dead-lettered.
    pub message_ttl: Option<Setting<u64>>,
    /// Milliseconds without a consumer after which the queue is deleted.
    pub expires: Option<Setting<u64>>,
    /// The most messages.
    pub length_max: Option<Setting<u64>>,
    /// The most bytes of bodies.
    pub bytes_max: Option<Setting<u64>>,
    /// What happens past these two.
    pub overflow: Overflow,
    /// Where messages go that the queue gives up.
    pub dead_letter: Option<DeadLetter>,
    /// Whether it is deleted with its last consumer.
    pub auto_delete: bool,
    /// Bytes of bodies in it now, where the broker can tell.
    pub bytes: Option<u64>,
    /// Whether it is one that an archiver made for itself, its parking queue included.
    pub is_archivers: bool,
}

/// What policies set on a queue, whatever its arguments say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imposed {
    /// Milliseconds after which a message is dropped or dead-lettered.
    pub message_ttl: Option<Setting<u64>>,
    /// Milliseconds without a consumer after which the queue is deleted.
    pub expires: Option<Setting<u64>>,
    /// The most messages.
    pub length_max: Option<Setting<u64>>,
    /// The most bytes of bodies.
    pub bytes_max: Option<Setting<u64>>,
    /// What happens past these two, where a policy says it: for quorum queues that wins over the
    /// argument.
    pub overflow: Option<Setting<Overflow>>,
}

/// What a queue does that is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It drops or dead-letters its oldest messages.
    #[default]
    DropHead,
    /// It refuses new ones.
    Reject,
}

/// Where messages go that a queue gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The exchange; the default one is the empty name.
    pub exchange: String,
    /// Instead of the routing key that they came with.
    pub routing_key: Option<String>,
}

/// That an exchange leads to a queue or another exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange that is bound.
    pub source: String,
    /// Where it leads.
    pub destination: Destination,
    /// What it is bound with.
    pub routing_key: String,
    /// What its arguments ask for, if the source is a headers exchange.
    pub headers: HeadersAsked,
}

/// What a binding of a headers exchange asks of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadersAsked {
    /// How many of the headers must be as asked for.
    pub matching: Matching,
    /// The headers, by name; those that are not to be compared are left out.
    pub fields: BTreeMap<String, HeaderAsked>,
}

/// How many of the headers that a binding asks for a message must have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Matching {
    /// All of them; none asked for is all.
    #[default]
    All,
    /// At least one.
    Any,
}

/// What a binding asks of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderAsked {
    /// That it is there.
    Present,
    /// That it is there, or that it is the text `undefined`: RabbitMQ 3.10 writes both alike.
    PresentOrUndefined,
    /// This text.
    Text(String),
    /// This truth value.
    Boolean(bool),
    /// This number; of which type is not known.
    Integer(i64),
    /// A value that cannot be compared here.
    Other,
}

/// Where a binding leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To a queue.
    Queue(String),
    /// To an exchange.
    Exchange(String),
}

/// Who consumes a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consumer {
    /// The queue.
    pub queue: String,
    /// The consumer's tag.
    pub tag: String,
    /// The name of its connection, where that is told.
    pub connection: Option<String>,
}

/// Returns the name of the queue in which an archiver's `queue` parks what it may not keep.
pub fn parked_queue(queue: &str) -> String {
    format!("{queue}.parked")
}

impl Topology {
    /// Returns the queues that a message published to an exchange can reach, over bindings between
    /// exchanges and over alternate exchanges; without a routing key: with any.
    ///
    /// More than there are, rather than less: an exchange of unknown kind routes everything, and so does
    /// one that looks at headers. Only of the default exchange nothing is known without a routing key.
    /// What one message reaches, [`routing`] tells.
    pub fn reached(&self, exchange: &str, routing_key: Option<&str>) -> BTreeSet<&str> {
        self.walk(exchange, routing_key).queues
    }

    /// Returns the exchanges that a message published to an exchange can come through, that one
    /// among them, as far as they are there.
    pub fn passed(&self, exchange: &str, routing_key: Option<&str>) -> BTreeSet<&str> {
        self.walk(exchange, routing_key).exchanges
    }

    fn walk(&self, exchange: &str, routing_key: Option<&str>) -> Reached<'_> {
        let mut reached = Reached::default();
        let mut left = vec![exchange];
        while let Some(name) = left.pop() {
            if name.is_empty() {
                let queue = routing_key.and_then(|key| self.queues.get_key_value(key));
                reached.queues.extend(queue.map(|(name, _)| name.as_str()));
                continue;
            }
            let Some((name, exchange)) = self.exchanges.get_key_value(name) else { continue };
            if !reached.exchanges.insert(name) {
                continue;
            }
            let mut routed = false;
            for binding in self.bindings.iter().filter(|binding| binding.source == *name) {
                if !exchange.kind.takes(&binding.routing_key, routing_key) {
                    continue;
                }
                // Of what cannot be told it may route nothing, too.
                routed |= !matches!(exchange.kind, ExchangeKind::Headers | ExchangeKind::Other);
                match &binding.destination {
                    Destination::Queue(queue) => drop(reached.queues.insert(queue)),
                    Destination::Exchange(exchange) => left.push(exchange),
                }
            }
            if let Some(alternate) = &exchange.alternate
                && (!routed || routing_key.is_none())
            {
                left.push(&alternate.value);
            }
        }
        reached
    }

    /// Returns the queues that a message can reach which `queue` gives up, with the routing key that
    /// it then has, if that is known.
    pub fn dead_lettered<'a>(
        &'a self,
        queue: &str,
        routing_key: Option<&'a str>,
    ) -> (BTreeSet<&'a str>, Option<&'a str>) {
        let dead_letter = self.queues.get(queue).and_then(|queue| queue.dead_letter.as_ref());
        let Some(DeadLetter { exchange, routing_key: own }) = dead_letter else {
            return (BTreeSet::new(), routing_key);
        };
        let routing_key = own.as_deref().or(routing_key);
        (self.reached(exchange, routing_key), routing_key)
    }
}

/// Where a message can come.
#[derive(Debug, Default)]
struct Reached<'a> {
    exchanges: BTreeSet<&'a str>,
    queues: BTreeSet<&'a str>,
}

impl ExchangeKind {
    /// Returns whether a binding with this key takes a message with that routing key; without one:
    /// whether it may.
    fn takes(self, binding: &str, routing_key: Option<&str>) -> bool {
        match (self, routing_key) {
            (_, None) => true,
            (ExchangeKind::Fanout | ExchangeKind::Headers | ExchangeKind::Other, _) => true,
            (ExchangeKind::Direct, Some(key)) => binding == key,
            (ExchangeKind::Topic, Some(key)) => topic::matches(binding.as_bytes(), key.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(kind: ExchangeKind, alternate: Option<&str>) -> Exchange {
        let by = || "a test".to_owned();
        let alternate = alternate.map(|value| Setting { value: value.to_owned(), by: by() });
        Exchange { kind, alternate }
    }

    fn binding(source: &str, routing_key: &str, destination: Destination) -> Binding {
        let (source, routing_key) = (source.to_owned(), routing_key.to_owned());
        Binding { source, destination, routing_key, headers: HeadersAsked::default() }
    }

    /// `direct` → a (k), b (l) · `topic` → c (order.#), `fanout` (order.*) · `fanout` → d, `topic` ·
    /// `other` → a (k) · what `direct` routes nowhere goes to `fanout`.
    fn topology() -> Topology {
        let queue = |name: &str| Destination::Queue(name.to_owned());
        let to = |name: &str| Destination::Exchange(name.to_owned());
        let dead = |exchange: &str, key: Option<&str>| Queue {
            dead_letter: Some(DeadLetter {
                exchange: exchange.to_owned(),
                routing_key: key.map(str::to_owned),
            }),
            ..Queue::default()
        };
        Topology {
            exchanges: [
                ("direct".to_owned(), exchange(ExchangeKind::Direct, Some("fanout"))),
                ("topic".to_owned(), exchange(ExchangeKind::Topic, None)),
                ("fanout".to_owned(), exchange(ExchangeKind::Fanout, None)),
                ("other".to_owned(), exchange(ExchangeKind::Other, None)),
            ]
            .into(),
            queues: [
                ("a".to_owned(), dead("", Some("b"))),
                ("b".to_owned(), dead("topic", None)),
                ("c".to_owned(), Queue::default()),
                ("d".to_owned(), Queue::default()),
            ]
            .into(),
            bindings: vec![
                binding("direct", "k", queue("a")),
                binding("direct", "l", queue("b")),
                binding("topic", "order.#", queue("c")),
                binding("topic", "order.*", to("fanout")),
                binding("fanout", "", queue("d")),
                binding("fanout", "", to("topic")),
                binding("other", "k", queue("a")),
            ],
        }
    }

    #[track_caller]
    fn check(exchange: &str, routing_key: Option<&str>, expected: &[&str]) {
        let topology = topology();
        let reached: Vec<&str> = topology.reached(exchange, routing_key).into_iter().collect();
        assert_eq!(reached, expected, "{exchange} {routing_key:?}");
    }

    #[test]
    fn a_message_goes_where_its_routing_key_leads() {
        check("topic", Some("order.placed"), &["c", "d"]);
        check("topic", Some("order.placed.late"), &["c"]);
        check("topic", Some("invoice"), &[]);
        check("fanout", Some("invoice"), &["d"]);
        check("other", Some("unlike"), &["a"]);
        check("", Some("a"), &["a"]);
        check("", Some("nowhere"), &[]);
        check("nowhere", Some("a"), &[]);
    }

    #[test]
    fn without_a_routing_key_it_may_go_anywhere() {
        check("topic", None, &["c", "d"]);
        check("direct", None, &["a", "b", "c", "d"]);
        check("", None, &[]);
    }

    #[test]
    fn what_an_exchange_routes_nowhere_goes_to_its_alternate() {
        check("direct", Some("unlike"), &["d"]);
        check("direct", Some("order.placed"), &["c", "d"]);
    }

    #[test]
    fn exchanges_that_a_message_comes_through_are_known() {
        let topology = topology();
        let passed = |exchange, key| topology.passed(exchange, key);
        assert_eq!(passed("direct", Some("k")), ["direct"].into());
        assert_eq!(passed("direct", Some("unlike")), ["direct", "fanout", "topic"].into());
        assert_eq!(passed("topic", Some("order.placed.late")), ["topic"].into());
        assert_eq!(passed("", Some("a")), BTreeSet::new());
    }

    #[test]
    fn what_a_queue_gives_up_goes_on_with_the_key_that_the_queue_says() {
        let topology = topology();
        assert_eq!(topology.dead_lettered("a", None), (["b"].into(), Some("b")));
        assert_eq!(topology.dead_lettered("b", Some("order.x.y")).0, ["c"].into());
        assert_eq!(topology.dead_lettered("c", Some("k")).0, BTreeSet::new());
    }
}
