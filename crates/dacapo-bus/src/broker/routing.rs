//! Which queues one message reaches: the broker's own rules, on plain data.
//!
//! Pure. What cannot be told (an exchange of a plugin, a number whose type the management API leaves
//! out) is possible and never left out: a queue that is not named is not reached.

use std::collections::{BTreeMap, BTreeSet};

use dacapo_event::{FieldTable, FieldValue, topic};

use super::{
    Binding, Destination, ExchangeKind, HeaderAsked, HeadersAsked, Matching, Queue, Topology,
};

/// A topology, ready to be asked about many messages.
#[derive(Debug)]
pub struct Router<'a> {
    topology: &'a Topology,
    /// Bindings by the exchange that is bound.
    bindings: BTreeMap<&'a str, Vec<&'a Binding>>,
}

/// How sure it is that a message comes somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// It may come there.
    Possible,
    /// It comes there.
    Certain,
}

/// Where one message comes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Routes<'a> {
    /// The queues.
    pub queues: BTreeMap<&'a str, Reach>,
    /// The exchanges of which it cannot be told where they lead this message.
    pub undecided: BTreeSet<&'a str>,
}

impl<'a> Router<'a> {
    /// Returns a router over this topology.
    pub fn new(topology: &'a Topology) -> Self {
        let mut bindings: BTreeMap<&str, Vec<&Binding>> = BTreeMap::new();
        for binding in &topology.bindings {
            bindings.entry(&binding.source).or_default().push(binding);
        }
        Router { topology, bindings }
    }

    /// Returns the names of the headers that decide about messages to an exchange, as far as any do.
    pub fn headers_asked(&self, exchange: &str, routing_key: Option<&str>) -> BTreeSet<&'a str> {
        let passed = self.topology.passed(exchange, routing_key);
        passed.into_iter().flat_map(|name| self.headers_asked_by(name)).collect()
    }

    /// Returns the names of the headers that decide about messages to any exchange.
    pub fn headers_asked_anywhere(&self) -> BTreeSet<&'a str> {
        self.topology.exchanges.keys().flat_map(|name| self.headers_asked_by(name)).collect()
    }

    fn headers_asked_by(&self, exchange: &str) -> impl Iterator<Item = &'a str> + use<'_, 'a> {
        let exchange = self.topology.exchanges.get_key_value(exchange);
        let of_headers = exchange.filter(|(_, exchange)| exchange.kind == ExchangeKind::Headers);
        let bindings = of_headers.into_iter().flat_map(|(name, _)| self.bindings_of(name));
        bindings.flat_map(|binding| binding.headers.fields.keys().map(String::as_str))
    }

    /// Returns where a message comes that is published to an exchange with this routing key and these
    /// headers, of which those of [`Router::headers_asked`] are enough.
    pub fn route(&self, exchange: &str, routing_key: &[u8], headers: &FieldTable) -> Routes<'a> {
        let mut routes = Routes::default();
        if exchange.is_empty() {
            let queue = self.queue_named(routing_key);
            routes.queues.extend(queue.map(|(name, _)| (name, Reach::Certain)));
            return routes;
        }
        // How surely the message came to each exchange. One that is found to be reached more surely
        // is looked at again, so that a loop of bindings ends.
        let mut seen: BTreeMap<&str, Reach> = BTreeMap::new();
        let mut left = vec![(exchange, Reach::Certain)];
        while let Some((name, reach)) = left.pop() {
            if name.is_empty() {
                // Whether the default exchange routes what another one hands on depends on the
                // broker's version; RabbitMQ 3.10 drops it.
                if let Some((queue, _)) = self.queue_named(routing_key) {
                    routes.undecided.insert("");
                    reached(&mut routes.queues, queue, Reach::Possible);
                }
                continue;
            }
            let Some((name, exchange)) = self.topology.exchanges.get_key_value(name) else {
                continue;
            };
            if !reached(&mut seen, name, reach) {
                continue;
            }
            let mut routed: Option<Reach> = None;
            for binding in self.bindings_of(name) {
                let Some(takes) = takes(exchange.kind, binding, routing_key, headers) else {
                    continue;
                };
                if takes == Reach::Possible {
                    routes.undecided.insert(name);
                }
                routed = routed.max(Some(takes));
                let reach = reach.min(takes);
                match &binding.destination {
                    Destination::Queue(queue) => drop(reached(&mut routes.queues, queue, reach)),
                    Destination::Exchange(exchange) => left.push((exchange, reach)),
                }
            }
            if let Some(alternate) = &exchange.alternate {
                match routed {
                    None => left.push((&alternate.value, reach)),
                    Some(Reach::Possible) => left.push((&alternate.value, Reach::Possible)),
                    Some(Reach::Certain) => {}
                }
            }
        }
        routes
    }

    fn bindings_of(&self, exchange: &str) -> impl Iterator<Item = &'a Binding> + use<'_, 'a> {
        self.bindings.get(exchange).into_iter().flatten().copied()
    }

    fn queue_named(&self, routing_key: &[u8]) -> Option<(&'a str, &'a Queue)> {
        let name = std::str::from_utf8(routing_key).ok()?;
        let (name, queue) = self.topology.queues.get_key_value(name)?;
        Some((name, queue))
    }
}

/// Notes that something is reached so surely; returns whether that is news.
fn reached<'a>(known: &mut BTreeMap<&'a str, Reach>, name: &'a str, reach: Reach) -> bool {
    let before = known.get(name).copied();
    let news = before < Some(reach);
    if news {
        known.insert(name, reach);
    }
    news
}

/// Returns whether a binding of an exchange of this kind takes a message, or may.
fn takes(
    kind: ExchangeKind,
    binding: &Binding,
    routing_key: &[u8],
    headers: &FieldTable,
) -> Option<Reach> {
    let surely = |takes: bool| takes.then_some(Reach::Certain);
    match kind {
        ExchangeKind::Direct => surely(binding.routing_key.as_bytes() == routing_key),
        ExchangeKind::Fanout => surely(true),
        ExchangeKind::Topic => surely(topic::matches(binding.routing_key.as_bytes(), routing_key)),
        ExchangeKind::Headers => wanted(&binding.headers, headers),
        ExchangeKind::Other => Some(Reach::Possible),
    }
}

/// Returns whether headers are what a binding asks for, or may be.
fn wanted(asked: &HeadersAsked, headers: &FieldTable) -> Option<Reach> {
    let mut fields = asked
        .fields
        .iter()
        .map(|(name, asked)| headers.get(name).and_then(|value| is_asked(asked, value)));
    match asked.matching {
        Matching::All => fields.try_fold(Reach::Certain, |all, field| Some(all.min(field?))),
        Matching::Any => fields.max().flatten(),
    }
}

fn is_asked(asked: &HeaderAsked, value: &FieldValue) -> Option<Reach> {
    use FieldValue as V;
    let (is, as_sure) = match (asked, value) {
        (HeaderAsked::Present, _) => (true, Reach::Certain),
        (HeaderAsked::PresentOrUndefined, V::LongString(text)) if &text[..] == b"undefined" => {
            (true, Reach::Certain)
        }
        (HeaderAsked::PresentOrUndefined | HeaderAsked::Other, _) => (true, Reach::Possible),
        (HeaderAsked::Text(asked), V::LongString(text)) => {
            (asked.as_bytes() == &text[..], Reach::Certain)
        }
        // The plugin tells texts and bytes alike.
        (HeaderAsked::Text(asked), V::ByteArray(bytes)) => {
            (asked.as_bytes() == &bytes[..], Reach::Possible)
        }
        (HeaderAsked::Boolean(asked), V::Boolean(value)) => (asked == value, Reach::Certain),
        (HeaderAsked::Integer(asked), value) => (is_number(*asked, value), Reach::Possible),
        _ => return None,
    };
    is.then_some(as_sure)
}

/// Returns whether a header has this number, whatever its type.
fn is_number(asked: i64, value: &FieldValue) -> bool {
    use FieldValue as V;
    let same = |value: i128| value == i128::from(asked);
    match *value {
        V::ShortShortInt(value) => same(value.into()),
        V::ShortShortUInt(value) => same(value.into()),
        V::ShortInt(value) => same(value.into()),
        V::ShortUInt(value) => same(value.into()),
        V::LongInt(value) => same(value.into()),
        V::LongUInt(value) => same(value.into()),
        V::LongLongInt(value) => same(value.into()),
        V::Timestamp(value) => same(value.into()),
        V::Float(value) => f64::from(value) == asked as f64,
        V::Double(value) => value == asked as f64,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
