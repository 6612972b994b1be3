//! The state of the bus in memory and every change to it: plain and synchronous.
//!
//! Each operation on a message is O(1) in the number of messages; routing is linear in the
//! bindings of one exchange.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dacapo_event::{Message, ShortStr, topic};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{ExchangeKind, Expired, PEER, QueueOptions};
use crate::{BusError, DeliveryTag, Outcome, Parked};

type Name = Arc<[u8]>;

/// Tells sources on one queue apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConsumerId(u64);

/// Everything on one bus.
#[derive(Debug, Default)]
pub(super) struct Broker {
    exchanges: HashMap<Name, Exchange>,
    queues: HashMap<Name, Queue>,
    consumers: u64,
}

#[derive(Debug)]
struct Exchange {
    kind: ExchangeKind,
    bindings: Vec<Binding>,
}

#[derive(Debug, PartialEq, Eq)]
struct Binding {
    key: ShortStr,
    queue: Name,
}

#[derive(Debug)]
struct Queue {
    options: QueueOptions,
    ready: VecDeque<Stored>,
    parked: VecDeque<Stored>,
    /// What the active consumer has and did not ack, in order of its tags.
    unacked: VecDeque<(DeliveryTag, Stored)>,
    /// The first is active, the rest stand by.
    consumers: VecDeque<ConsumerId>,
    /// Tells the waiting sources that there may be something for them.
    wake: Arc<Notify>,
}

#[derive(Debug, Clone)]
struct Stored {
    message: Arc<Message>,
    expires: Option<Instant>,
    parked: Option<Parked>,
    redelivered: bool,
}

/// What a source gets for one delivery.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) message: Arc<Message>,
    pub(super) parked: Option<Parked>,
    pub(super) redelivered: bool,
}

impl Broker {
    pub(super) fn declare_exchange(
        &mut self,
        name: &str,
        kind: ExchangeKind,
    ) -> Result<(), BusError> {
        let refused = |reason: String| BusError::Refused {
            peer: PEER.to_owned(),
            reason,
            hint: "choose another name".to_owned(),
        };
        if name.is_empty() {
            return Err(refused("the default exchange cannot be declared".to_owned()));
        }
        match self.exchanges.get(name.as_bytes()) {
            Some(old) if old.kind == kind => Ok(()),
            Some(old) => Err(refused(format!("exchange `{name}` exists as {:?}", old.kind))),
            None => {
                self.exchanges.insert(named(name), Exchange { kind, bindings: Vec::new() });
                Ok(())
            }
        }
    }

    pub(super) fn delete_exchange(&mut self, name: &str) {
        self.exchanges.remove(name.as_bytes());
    }

    pub(super) fn declare_queue(&mut self, name: &str, options: QueueOptions) {
        self.queues.entry(named(name)).or_insert_with(|| Queue {
            options,
            ready: VecDeque::new(),
            parked: VecDeque::new(),
            unacked: VecDeque::new(),
            consumers: VecDeque::new(),
            wake: Arc::default(),
        });
    }

    pub(super) fn delete_queue(&mut self, name: &str) {
        for exchange in self.exchanges.values_mut() {
            exchange.bindings.retain(|binding| &*binding.queue != name.as_bytes());
        }
        if let Some(queue) = self.queues.remove(name.as_bytes()) {
            queue.wake.notify_waiters();
        }
    }

    pub(super) fn bind(
        &mut self,
        queue: &str,
        exchange: &str,
        key: &ShortStr,
    ) -> Result<(), BusError> {
        if !self.queues.contains_key(queue.as_bytes()) {
            return Err(no_queue(queue));
        }
        let found = self.exchanges.get_mut(exchange.as_bytes());
        let exchange = found.ok_or_else(|| no_exchange(&exchange))?;
        let binding = Binding { key: key.clone(), queue: named(queue) };
        if !exchange.bindings.contains(&binding) {
            exchange.bindings.push(binding);
        }
        Ok(())
    }

    /// Puts the message into every queue that its exchange chooses. `now` is needed if the message
    /// has an expiration.
    pub(super) fn publish(
        &mut self,
        message: Message,
        now: Option<Instant>,
    ) -> Result<Outcome, BusError> {
        let names = self.route(&message)?;
        if names.is_empty() {
            return Ok(Outcome::Returned { reason: "312 NO_ROUTE".to_owned() });
        }
        let expires = now.zip(time_to_live(&message)).and_then(|(now, ttl)| now.checked_add(ttl));
        let stored =
            Stored { message: Arc::new(message), expires, parked: None, redelivered: false };
        let mut outcome = Outcome::Confirmed;
        for name in names {
            let queue = self.queues.get_mut(&name).expect("routes lead to queues that are there");
            if queue.ready.len() >= queue.options.length_max {
                outcome = Outcome::Nacked;
            } else {
                queue.ready.push_back(stored.clone());
                queue.wake.notify_waiters();
            }
        }
        Ok(outcome)
    }

    /// Returns each queue once, however many bindings lead to it.
    fn route(&self, message: &Message) -> Result<Vec<Name>, BusError> {
        let key = message.routing_key.as_bytes();
        if message.exchange.is_empty() {
            return Ok(self
                .queues
                .get_key_value(key)
                .map(|(name, _)| name.clone())
                .into_iter()
                .collect());
        }
        let found = self.exchanges.get(message.exchange.as_bytes());
        let exchange = found.ok_or_else(|| no_exchange(&message.exchange))?;
        let mut names: Vec<Name> = Vec::new();
        for binding in &exchange.bindings {
            let chosen = match exchange.kind {
                ExchangeKind::Fanout => true,
                ExchangeKind::Direct => binding.key.as_bytes() == key,
                ExchangeKind::Topic => topic::matches(binding.key.as_bytes(), key),
            };
            if chosen && !names.contains(&binding.queue) {
                names.push(binding.queue.clone());
            }
        }
        Ok(names)
    }

    pub(super) fn park_oldest(&mut self, name: &str, reason: &str) -> bool {
        let Some(queue) = self.queues.get_mut(name.as_bytes()) else { return false };
        let Some(stored) = queue.ready.pop_front() else { return false };
        queue.park(stored, reason);
        queue.wake.notify_waiters();
        true
    }

    pub(super) fn depth(&self, name: &str) -> Option<u64> {
        self.queues.get(name.as_bytes()).map(|queue| queue.ready.len() as u64)
    }

    pub(super) fn unacked(&self, name: &str) -> Option<u64> {
        self.queues.get(name.as_bytes()).map(|queue| queue.unacked.len() as u64)
    }

    /// Adds a consumer, active if it is the only one, and returns what wakes it.
    pub(super) fn attach(&mut self, name: &str) -> Result<(ConsumerId, Arc<Notify>), BusError> {
        self.consumers += 1;
        let id = ConsumerId(self.consumers);
        let queue = self.queue(name)?;
        queue.consumers.push_back(id);
        Ok((id, queue.wake.clone()))
    }

    /// Removes a consumer. If it was the active one, what it did not ack waits again, in its old
    /// place, for the next.
    pub(super) fn detach(&mut self, name: &str, id: ConsumerId) {
        let Ok(queue) = self.queue(name) else { return };
        if queue.consumers.front() == Some(&id) {
            queue.requeue();
        }
        queue.consumers.retain(|consumer| *consumer != id);
        queue.wake.notify_waiters();
    }

    /// Returns the next message for this consumer if it is active and has fewer than `prefetch`
    /// unacked; the message is unacked under `tag` from then on.
    pub(super) fn take(
        &mut self,
        name: &str,
        id: ConsumerId,
        tag: DeliveryTag,
        prefetch: usize,
    ) -> Result<Option<Taken>, BusError> {
        let queue = self.queue_of(name, id)?;
        if queue.consumers.front() != Some(&id) || queue.unacked.len() >= prefetch {
            return Ok(None);
        }
        queue.expire();
        let Some(stored) = queue.parked.pop_front().or_else(|| queue.ready.pop_front()) else {
            return Ok(None);
        };
        let taken = Taken {
            message: stored.message.clone(),
            parked: stored.parked.clone(),
            redelivered: stored.redelivered,
        };
        queue.unacked.push_back((tag, stored));
        Ok(Some(taken))
    }

    /// Forgets what this consumer has up to and including `tag`.
    pub(super) fn ack(
        &mut self,
        name: &str,
        id: ConsumerId,
        tag: DeliveryTag,
    ) -> Result<(), BusError> {
        let queue = self.queue_of(name, id)?;
        if queue.consumers.front() == Some(&id) {
            while queue.unacked.front().is_some_and(|(first, _)| *first <= tag) {
                queue.unacked.pop_front();
            }
        }
        Ok(())
    }

    fn queue(&mut self, name: &str) -> Result<&mut Queue, BusError> {
        self.queues.get_mut(name.as_bytes()).ok_or_else(|| no_queue(name))
    }

    /// A queue that was deleted and declared again is another queue to the sources of the first.
    fn queue_of(&mut self, name: &str, id: ConsumerId) -> Result<&mut Queue, BusError> {
        let queue = self.queue(name)?;
        if queue.consumers.contains(&id) { Ok(queue) } else { Err(no_queue(name)) }
    }
}

impl Queue {
    fn park(&mut self, mut stored: Stored, reason: &str) {
        stored.expires = None;
        stored.parked = Some(Parked { reason: reason.to_owned() });
        self.parked.push_back(stored);
    }

    /// Takes expired messages from the head, as a broker does: those behind a live one wait.
    fn expire(&mut self) {
        while let Some(expires) = self.ready.front().and_then(|stored| stored.expires) {
            if Instant::now() < expires {
                return;
            }
            let stored = self.ready.pop_front().expect("the loop looked at it");
            match self.options.expired {
                Expired::Dropped => {}
                Expired::Parked => self.park(stored, "expired"),
            }
        }
    }

    fn requeue(&mut self) {
        while let Some((_, mut stored)) = self.unacked.pop_back() {
            stored.redelivered = true;
            let home = if stored.parked.is_some() { &mut self.parked } else { &mut self.ready };
            home.push_front(stored);
        }
    }
}

/// Returns nothing for an expiration that is no number; RabbitMQ would refuse it.
fn time_to_live(message: &Message) -> Option<Duration> {
    let millis = message.properties.expiration.as_ref()?.as_str()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

fn named(name: &str) -> Name {
    Arc::from(name.as_bytes())
}

pub(super) fn no_queue(name: &str) -> BusError {
    not_found(format!("queue `{name}`"))
}

fn no_exchange(name: &impl std::fmt::Display) -> BusError {
    not_found(format!("exchange `{name}`"))
}

fn not_found(thing: String) -> BusError {
    BusError::NotFound { thing, peer: PEER.to_owned(), hint: "declare it first".to_owned() }
}
