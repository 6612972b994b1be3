//! The blast radius of a replay to exchanges: which queues would receive how many of its events, who
//! consumes them, and whether that needs an approval.
//!
//! Pure: [`Destinations`] takes where events are published and says where they come, [`count`] is the
//! thin part that reads that from the archive. Bindings are taken as they are now; what a queue gives up
//! later (dead letters, a shovel) is not followed.
//!
//! Invariants: no queue that an event can reach is left out; memory grows with the queues and not with
//! the events or their routing keys; the approval of one blast radius is none of another.

mod count;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dacapo_bus::broker::Consumer;
use dacapo_bus::broker::routing::{Reach, Router};
use dacapo_event::marking::{Priority, mark};
use dacapo_event::{
    Digest, Event, FieldTable, Hasher, Message, ParseError, Properties, ShortStr, wire,
};

use crate::request::Target;
use crate::survey::EXCHANGES_MAX;
pub use count::count;

/// Publications that are counted before they are routed: enough that the keys of most platforms are
/// routed once, and 3 MB at the usual lengths.
const PENDING_MAX: usize = 20_000;

/// What these may take in names, keys and headers: a header may have 100 KB.
const PENDING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Consumers that are told of a queue; their number is told in any case.
pub const CONSUMERS_TOLD_MAX: usize = 10;

/// What a replay to exchanges reaches, and what its operator said to that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlastRadius {
    /// The queues that are meant to receive events.
    pub asked_for: BTreeSet<String>,
    /// What is reached, or why that is not known.
    pub reached: Result<Reached, String>,
    /// That the operator approved it.
    pub approval: Option<Approval>,
}

/// Where selected events come under the bindings of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    /// The queues, by name.
    pub queues: BTreeMap<String, ReachedQueue>,
    /// All selected events.
    pub events: u64,
    /// Events that reach no queue for all that can be told, which the broker returns.
    pub unrouted: u64,
    /// Exchanges of which it cannot be told where they lead; the empty name is the default exchange.
    pub undecided: BTreeSet<String>,
    /// Why it is not known who consumes the queues, if it is not.
    pub consumers_unknown: Option<String>,
}

/// What one queue would receive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReachedQueue {
    /// Events at the most.
    pub events: u64,
    /// Events at the least: the same, unless it cannot be told where an exchange leads.
    pub certain: u64,
    /// How many consumers it has, where that is known.
    pub consumers: Option<u64>,
    /// The first of them.
    pub consumed_by: Vec<Consumer>,
}

/// How an operator approved a blast radius.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The hash of what was approved.
    pub hash: Digest,
    /// How.
    pub by: ApprovedBy,
}

/// How an approval was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovedBy {
    /// With the hash that a plan printed.
    Hash,
    /// By a person at a terminal.
    Terminal,
}

impl ApprovedBy {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            ApprovedBy::Hash => "hash",
            ApprovedBy::Terminal => "terminal",
        }
    }
}

impl std::str::FromStr for ApprovedBy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "hash" => Ok(ApprovedBy::Hash),
            "terminal" => Ok(ApprovedBy::Terminal),
            _ => Err(ParseError::new(text, "`hash` or `terminal`")),
        }
    }
}

impl BlastRadius {
    /// Returns the queues that are reached and were not asked for.
    pub fn not_asked_for<'a>(&'a self, reached: &'a Reached) -> impl Iterator<Item = &'a str> {
        let names = reached.queues.keys().map(String::as_str);
        names.filter(|name| !self.asked_for.contains(*name))
    }

    /// Returns whether no queue is reached that was not reached before, and none by more events.
    pub fn is_within(&self, earlier: &BlastRadius) -> bool {
        let (Ok(now), Ok(before)) = (&self.reached, &earlier.reached) else { return false };
        self.asked_for == earlier.asked_for
            && now.queues.iter().all(|(name, now)| {
                before.queues.get(name).is_some_and(|before| now.events <= before.events)
            })
    }

    /// Returns whether this needs an approval: more than one queue is reached, or another than those
    /// that were asked for, if any were.
    pub fn needs_approval(&self, reached: &Reached) -> bool {
        let another = || self.not_asked_for(reached).next().is_some();
        reached.queues.len() > 1 || (!self.asked_for.is_empty() && another())
    }
}

impl Reached {
    /// Returns whether every count is exact.
    pub fn is_exact(&self) -> bool {
        self.undecided.is_empty()
    }

    /// Returns what an approval approves: this plan, these queues and these counts.
    ///
    /// Who consumes the queues is not part of it, for connections come and go.
    pub fn hash(&self, plan: &Digest) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update_framed(plan.as_bytes());
        for (name, queue) in &self.queues {
            hasher.update_framed(name.as_bytes());
            hasher.update(&queue.events.to_le_bytes());
            hasher.update(&queue.certain.to_le_bytes());
        }
        hasher.update(&self.events.to_le_bytes());
        hasher.update(&self.unrouted.to_le_bytes());
        hasher.finish()
    }

    /// Notes who consumes the queues, or why that is not known.
    pub fn consumed(&mut self, consumers: Result<Vec<Consumer>, String>) {
        let mut consumers = match consumers {
            Ok(consumers) => consumers,
            Err(why) => return self.consumers_unknown = Some(why),
        };
        consumers.sort();
        for queue in self.queues.values_mut() {
            queue.consumers = Some(0);
        }
        for consumer in consumers {
            let Some(queue) = self.queues.get_mut(&consumer.queue) else { continue };
            queue.consumers = queue.consumers.map(|count| count + 1);
            if queue.consumed_by.len() < CONSUMERS_TOLD_MAX {
                queue.consumed_by.push(consumer);
            }
        }
    }
}

/// Counts where published events come.
#[derive(Debug)]
pub struct Destinations<'a> {
    router: Router<'a>,
    target: &'a Target,
    priority: Priority,
    /// Headers that decide; none if no headers exchange is on the way.
    headers: BTreeSet<String>,
    /// What is not routed yet.
    pending: HashMap<Publication, Pending>,
    pending_bytes: usize,
    reached: Reached,
}

/// Where and how an event is published, as far as that decides where it comes.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Publication {
    exchange: ShortStr,
    routing_key: ShortStr,
    /// The headers that decide, encoded.
    headers: Vec<u8>,
}

#[derive(Debug)]
struct Pending {
    headers: FieldTable,
    events: u64,
}

impl<'a> Destinations<'a> {
    /// Returns a count of nothing yet. `exchanges` are those that the events came from, if these are
    /// all; without them headers are taken to decide wherever a headers exchange is.
    pub fn new(
        router: Router<'a>,
        target: &'a Target,
        priority: Priority,
        exchanges: Option<&BTreeSet<String>>,
    ) -> Self {
        let headers = match (target, exchanges) {
            (Target::Exchange { exchange, routing_key }, _) => {
                router.headers_asked(exchange, routing_key.as_deref())
            }
            (_, Some(exchanges)) => {
                exchanges.iter().flat_map(|name| router.headers_asked(name, None)).collect()
            }
            (_, None) => router.headers_asked_anywhere(),
        };
        Destinations {
            headers: headers.into_iter().map(str::to_owned).collect(),
            router,
            target,
            priority,
            pending: HashMap::new(),
            pending_bytes: 0,
            reached: Reached::default(),
        }
    }

    /// Returns whether headers decide where events come.
    pub fn needs_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    /// Adds an event; its headers may be blank if none are needed.
    pub fn add(&mut self, event: &Event) {
        let Message { exchange, routing_key, .. } = &event.message;
        let headers = match self.needs_headers() {
            true => self.decisive(event),
            false => FieldTable::new(),
        };
        self.publish(exchange.clone(), routing_key.clone(), headers, 1);
    }

    /// Adds so many events with this exchange and routing key, whose headers decide nothing.
    pub fn add_alike(&mut self, exchange: ShortStr, routing_key: ShortStr, events: u64) {
        self.publish(exchange, routing_key, FieldTable::new(), events);
    }

    /// Returns what is reached.
    pub fn finish(mut self) -> Reached {
        self.settle();
        self.reached
    }

    /// Returns those headers of the event, as it is published, that decide.
    fn decisive(&self, event: &Event) -> FieldTable {
        // Which replay it is, and what the body is, no binding can ask for in advance.
        let published = mark(event, &ShortStr::default(), self.priority);
        let headers = published.properties.headers.unwrap_or_default();
        let decides =
            |name: &ShortStr| name.as_str().is_some_and(|name| self.headers.contains(name));
        headers.into_iter().filter(|(name, _)| decides(name)).collect()
    }

    fn publish(
        &mut self,
        exchange: ShortStr,
        routing_key: ShortStr,
        headers: FieldTable,
        events: u64,
    ) {
        let (exchange, routing_key) = match self.target {
            Target::Exchange { exchange: name, routing_key: replaced } => (
                short(name).unwrap_or(exchange),
                replaced.as_deref().and_then(short).unwrap_or(routing_key),
            ),
            _ => (exchange, routing_key),
        };
        let encoded = encoded(&headers);
        let bytes = exchange.as_bytes().len() + routing_key.as_bytes().len() + encoded.len();
        let weight = headers.weight();
        let publication = Publication { exchange, routing_key, headers: encoded };
        match self.pending.get_mut(&publication) {
            Some(pending) => pending.events += events,
            None => {
                self.pending_bytes += bytes + weight;
                self.pending.insert(publication, Pending { headers, events });
            }
        }
        if self.pending.len() >= PENDING_MAX || self.pending_bytes >= PENDING_BYTES_MAX {
            self.settle();
        }
    }

    /// Routes what is pending.
    fn settle(&mut self) {
        self.pending_bytes = 0;
        for (publication, Pending { headers, events }) in self.pending.drain() {
            let exchange = publication.exchange.to_str_lossy();
            let routes = self.router.route(&exchange, publication.routing_key.as_bytes(), &headers);
            self.reached.events += events;
            let named = publication.exchange.as_str().is_some();
            if !named && self.reached.undecided.len() < EXCHANGES_MAX {
                // The management API tells names as text.
                self.reached.undecided.insert(exchange.clone().into_owned());
            }
            if routes.queues.is_empty() {
                self.reached.unrouted += events;
            }
            for (name, reach) in routes.queues {
                if !self.reached.queues.contains_key(name) {
                    self.reached.queues.insert(name.to_owned(), ReachedQueue::default());
                }
                let queue = self.reached.queues.get_mut(name).expect("it was just put there");
                queue.events += events;
                if reach == Reach::Certain {
                    queue.certain += events;
                }
            }
            for name in routes.undecided {
                if !self.reached.undecided.contains(name) {
                    self.reached.undecided.insert(name.to_owned());
                }
            }
        }
    }
}

/// Names that are longer than AMQP's are refused before: no broker has such an exchange.
fn short(name: &str) -> Option<ShortStr> {
    ShortStr::try_from(name).ok()
}

fn encoded(headers: &FieldTable) -> Vec<u8> {
    if headers.is_empty() {
        return Vec::new();
    }
    let properties = Properties { headers: Some(headers.clone()), ..Properties::default() };
    wire::encode_properties(&Message { properties, ..Message::default() })
}

#[cfg(test)]
mod tests;
