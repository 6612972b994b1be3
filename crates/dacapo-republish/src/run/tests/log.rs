//! What happened around a run, in order, and the promises checked against it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use dacapo_bus::TargetState;

use super::*;

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The run handed this message to its sink.
    Attempt { number: u64, bytes: u64 },
    /// The queue has it.
    Arrived(u64),
    /// The checkpoint says that all up to here is confirmed or recorded as rejected.
    Written(u64),
    /// It is recorded as rejected.
    Rejected(u64, RejectKind),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Entry>>>);

/// The message's number, from its body.
pub(super) fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.body).unwrap().trim().parse().unwrap()
}

impl Log {
    pub(super) fn add(&self, entry: Entry) {
        self.0.lock().unwrap().push(entry);
    }

    pub(super) fn last_written(&self) -> u64 {
        let entries = self.0.lock().unwrap();
        let written = entries.iter().rev().find_map(|entry| match entry {
            Entry::Written(last) => Some(*last),
            _ => None,
        });
        written.unwrap_or(0)
    }

    pub(super) fn arrivals(&self) -> Vec<u64> {
        let entries = self.0.lock().unwrap();
        let arrived = |entry: &Entry| match entry {
            Entry::Arrived(number) => Some(*number),
            _ => None,
        };
        entries.iter().filter_map(arrived).collect()
    }

    pub(super) fn rejects(&self) -> Vec<(u64, RejectKind)> {
        let entries = self.0.lock().unwrap();
        let rejected = |entry: &Entry| match entry {
            Entry::Rejected(number, kind) => Some((*number, *kind)),
            _ => None,
        };
        entries.iter().filter_map(rejected).collect()
    }

    /// Forgets the rejects behind the checkpoint, as a resumed replay does.
    pub(super) fn forget_unsettled_rejects(&self) {
        let last = self.last_written();
        let unsettled = |entry: &Entry| matches!(entry, Entry::Rejected(n, _) if *n > last);
        self.0.lock().unwrap().retain(|entry| !unsettled(entry));
    }

    /// Checks what holds at every instant: no checkpoint before its messages, and no more than a
    /// window beyond it.
    pub(super) fn check(&self, limits: WindowLimits) {
        let mut written = 0;
        let (mut arrived, mut rejected) = (BTreeSet::new(), BTreeSet::new());
        let mut beyond: BTreeMap<u64, u64> = BTreeMap::new();
        for entry in self.0.lock().unwrap().iter() {
            match *entry {
                Entry::Attempt { number, bytes } => {
                    assert!(number > written, "{number} after the checkpoint at {written}");
                    beyond.insert(number, bytes);
                    let total: u64 = beyond.values().sum();
                    assert!(beyond.len() <= limits.messages.get(), "{} beyond", beyond.len());
                    assert!(
                        total <= limits.bytes.get() || beyond.len() == 1,
                        "{total} bytes beyond"
                    );
                }
                Entry::Arrived(number) => {
                    arrived.insert(number);
                }
                Entry::Rejected(number, _) => {
                    assert!(number > written, "{number} is rejected after the checkpoint");
                    rejected.insert(number);
                }
                Entry::Written(last) => {
                    assert!(last > written, "the checkpoint went from {written} to {last}");
                    for number in written + 1..=last {
                        let settled = arrived.contains(&number) || rejected.contains(&number);
                        assert!(settled, "{number} was neither there nor recorded at {last}");
                    }
                    written = last;
                    beyond.retain(|number, _| *number > last);
                }
            }
        }
    }

    /// Checks a run of 1 to `count` that has completed.
    pub(super) fn check_complete(&self, limits: WindowLimits, count: u64, totals: &Totals) {
        self.check(limits);
        self.check_totals(totals);
        assert_eq!((self.last_written(), totals.confirmed), (count, count));
        let arrivals = self.arrivals();
        check_order(&arrivals, count);
        let repeats = arrivals.len() as u64 - count;
        assert!(repeats <= totals.possible_repeats, "{repeats} repeats, {totals:?}");
        let window = limits.messages.get() as u64;
        assert!(totals.possible_repeats <= window * totals.retries, "{totals:?}");
    }

    /// Checks that every attempt has one fate.
    pub(super) fn check_totals(&self, totals: &Totals) {
        let entries = self.0.lock().unwrap();
        let attempts = entries.iter().filter(|entry| matches!(entry, Entry::Attempt { .. }));
        assert_eq!(totals.published, attempts.count() as u64);
        assert_eq!(totals.published, totals.confirmed + totals.refused + totals.possible_repeats);
    }
}

/// Checks that 1 to `count` all arrived and that their last deliveries are in order.
pub(super) fn check_order(arrivals: &[u64], count: u64) {
    let all: BTreeSet<u64> = arrivals.iter().copied().collect();
    assert!(all.into_iter().eq(1..=count), "not all of {count}, or others: {arrivals:?}");
    check_last_in_order(arrivals);
}

/// Checks that the last deliveries are in order.
pub(super) fn check_last_in_order(arrivals: &[u64]) {
    let mut last: BTreeMap<u64, usize> = BTreeMap::new();
    for (place, number) in arrivals.iter().enumerate() {
        last.insert(*number, place);
    }
    let places: Vec<usize> = last.into_values().collect();
    assert!(places.is_sorted(), "last deliveries out of order: {arrivals:?}");
}

/// Returns how many first deliveries came before that of an earlier event.
pub(super) fn reordered(arrivals: &[u64]) -> u64 {
    let mut seen = BTreeSet::new();
    let firsts: Vec<u64> = arrivals.iter().copied().filter(|number| seen.insert(*number)).collect();
    let early = |place: &usize| firsts[place + 1..].iter().any(|later| later < &firsts[*place]);
    (0..firsts.len()).filter(early).count() as u64
}

/// A target that writes into the log what passes it.
pub(super) struct Recorder<C> {
    inner: C,
    log: Log,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeTheFaults,
    AtTheQueue,
}

struct RecorderSink {
    inner: Box<dyn Sink>,
    log: Log,
    place: Place,
    known: Vec<Outcome>,
}

impl<C> Recorder<C> {
    pub(super) fn attempts(inner: C, log: Log) -> Self {
        Recorder { inner, log, place: Place::BeforeTheFaults }
    }

    pub(super) fn arrivals(inner: C, log: Log) -> Self {
        Recorder { inner, log, place: Place::AtTheQueue }
    }
}

#[async_trait]
impl<C: Connect> Connect for Recorder<C> {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        let inner = self.inner.open().await?;
        let (log, place) = (self.log.clone(), self.place);
        Ok(Box::new(RecorderSink { inner, log, place, known: Vec::new() }))
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        self.inner.dismantle().await
    }
}

#[async_trait]
impl Sink for RecorderSink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        if self.place == Place::BeforeTheFaults {
            for message in messages {
                let (number, bytes) = (number(message), message.body.len() as u64);
                self.log.add(Entry::Attempt { number, bytes });
            }
            return self.inner.send(messages).await;
        }
        for message in messages {
            self.inner.send(std::slice::from_ref(message)).await?;
            // The bus in memory knows at once.
            let outcome = self.inner.outcomes().await?;
            if outcome == [Outcome::Confirmed] {
                self.log.add(Entry::Arrived(number(message)));
            }
            self.known.extend(outcome);
        }
        Ok(())
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        match self.place {
            Place::BeforeTheFaults => self.inner.outcomes().await,
            Place::AtTheQueue if self.known.is_empty() => std::future::pending().await,
            Place::AtTheQueue => Ok(std::mem::take(&mut self.known)),
        }
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        self.inner.state().await
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.inner.close().await
    }
}
