//! What the archive gave and what the target got: counted as it is published, and as it comes out of a
//! queue beside the target queue.

use std::num::NonZeroU16;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dacapo_amqp::{AmqpQueue, Binding, Broker, bind};
use dacapo_bus::{BusError, Connect, Delivery, Sink, Source, Subscribe};
use dacapo_drill::tally::{OTHER_TYPES, Tallies};
use dacapo_event::{Event, FieldTable, FieldValue, Message, ShortStr, Timestamp};
use tokio::sync::watch;

/// Header: the event's type as the archive has it, on what a drill publishes: which property or field
/// of a message is its type is known to the archiver alone.
const TYPE: ShortStr = ShortStr::from_static("x-dacapo-drill-type");

/// A longer type would not fit beside other headers everywhere; tallies do not tell it apart either.
const TYPE_BYTES_MAX: usize = 1_024;

/// Deliveries that wait here, and their bytes: as many as an archiver takes.
const PREFETCH: NonZeroU16 = NonZeroU16::new(2_000).expect("it is not 0");
const WAITING_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Messages acked together.
const ACKED_TOGETHER: u64 = 500;

/// Once everything is published, nothing else is to come when nothing came for this long and nothing
/// waits in the queue: a confirmed message is in it.
const SILENCE: Duration = Duration::from_millis(300);

/// Connections that may be lost before the witness is given up.
const FAILURES_MAX: u32 = 10;

/// Between two of them.
const CONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Both sides.
#[derive(Debug)]
pub struct Counted {
    /// When the drill began.
    began: Timestamp,
    given: Mutex<Given>,
    got: Mutex<Tallies>,
}

/// What the archive gave.
#[derive(Debug, Default)]
pub struct Given {
    /// By type.
    pub tallies: Tallies,
    /// When the newest event was archived, of those that were before the drill began: an archive that
    /// grows meanwhile, or a clock that goes wrong, makes no recovery better.
    pub newest: Option<Timestamp>,
}

impl Counted {
    /// Returns that of a drill that began then.
    pub fn until(began: Timestamp) -> Self {
        Counted { began, given: Mutex::default(), got: Mutex::default() }
    }

    /// Counts an event that is about to be published, and names its type in the message.
    pub fn look(&self, event: &Event, message: &mut Message) {
        let kind = if event.kind.len() <= TYPE_BYTES_MAX { &event.kind } else { OTHER_TYPES };
        let mut given = self.given();
        given.tallies.add(kind, event.id.as_bytes(), &event.message.body);
        given.newest = newest(given.newest, event.archived_at, self.began);
        let headers = message.properties.headers.get_or_insert_with(FieldTable::new);
        headers.insert(TYPE, FieldValue::text(kind));
    }

    /// Returns what the archive gave so far.
    pub fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what the witness got so far.
    pub fn got(&self) -> MutexGuard<'_, Tallies> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, delivery: &Delivery) {
        let text =
            |name: &str| delivery.message.properties.header(name).map(FieldValue::to_text_lossy);
        let kind = text("x-dacapo-drill-type").unwrap_or_default();
        let id = text("x-dacapo-event-id").unwrap_or_default();
        self.got().add(&kind, id.as_bytes(), &delivery.message.body);
    }

    /// Reads the witness until everything that was published came out of it. `published` is told how many
    /// messages come if that is known, else nothing more than that all are published.
    pub async fn read(
        &self,
        broker: &Broker,
        queue: &str,
        mut published: watch::Receiver<Published>,
    ) -> anyhow::Result<()> {
        let witness = AmqpQueue::new(broker.clone(), queue, PREFETCH, WAITING_BYTES_MAX)?;
        let mut failures = 0;
        loop {
            let ended = match witness.open().await {
                Ok(mut source) => self.drain(&mut *source, &mut published, failures).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(Drained::All) => return Ok(()),
                // It does better with a smaller prefetch.
                Ok(Drained::Anew) => {}
                // Deliveries that were not acked come again, and are known as repeats.
                Err(error) if error.is_transient() && failures < FAILURES_MAX => {
                    failures += 1;
                    tokio::time::sleep(CONNECT_INTERVAL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn drain(
        &self,
        source: &mut dyn Source,
        published: &mut watch::Receiver<Published>,
        failures: u32,
    ) -> Result<Drained, BusError> {
        let (mut last, mut unacked) = (0, 0);
        loop {
            let came = tokio::select! {
                next = source.next() => match next? {
                    Some(delivery) => {
                        self.count(&delivery);
                        (last, unacked) = (delivery.tag, unacked + 1);
                        Came::Message
                    }
                    None => Came::End,
                },
                // Whoever tells it is gone, too, when nothing more is published.
                _ = published.wait_for(|published| *published != Published::Some), if !told(published) => {
                    Came::Word
                }
                () = tokio::time::sleep(SILENCE) => Came::Nothing,
            };
            // What came again after a lost connection is among those that are counted.
            let has_all = failures == 0
                && matches!(*published.borrow(), Published::All(messages) if self.got().all() >= messages);
            if unacked > 0 && (came != Came::Message || has_all || unacked == ACKED_TOGETHER) {
                source.ack(last).await?;
                unacked = 0;
            }
            let over = match came {
                Came::End => return Ok(Drained::Anew),
                Came::Nothing => told(published) && source.depth().await? == 0,
                Came::Message | Came::Word => false,
            };
            if has_all || over {
                source.close().await?;
                return Ok(Drained::All);
            }
        }
    }
}

/// Returns the newest that was archived before a drill began.
fn newest(before: Option<Timestamp>, archived: Timestamp, began: Timestamp) -> Option<Timestamp> {
    before.max(Some(archived).filter(|archived| *archived <= began))
}

/// Whether nothing more is published.
fn told(published: &watch::Receiver<Published>) -> bool {
    *published.borrow() != Published::Some || published.has_changed().is_err()
}

/// How much is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Not everything yet.
    Some,
    /// Everything, in so many messages.
    All(u64),
    /// Everything, in an unknown number of messages: some may have been published twice.
    Over,
}

/// What came of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// A message, which was counted.
    Message,
    /// The end of this connection.
    End,
    /// Word that nothing more is published.
    Word,
    /// Nothing for a while.
    Nothing,
}

/// How reading ended.
enum Drained {
    All,
    Anew,
}

/// A target with a witness beside it: whatever the replay's own exchange hands to the one, it hands to
/// the other.
pub struct Witnessed {
    /// The target.
    pub target: Box<dyn Connect>,
    /// Its broker.
    pub broker: Broker,
    /// The replay's own exchange.
    pub exchange: String,
    /// The witness.
    pub queue: String,
}

#[async_trait]
impl Connect for Witnessed {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        // Declares the exchange; nothing is published before it is bound.
        let sink = self.target.open().await?;
        let fanout = Binding { exchange: self.exchange.clone(), pattern: String::new() };
        bind(&self.broker, &self.queue, &[fanout]).await?;
        Ok(sink)
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        self.target.dismantle().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_archived_after_the_start_does_not_make_the_recovery_point_better() {
        let at = Timestamp::from_secs;
        assert_eq!(newest(None, at(5), at(4)), None);
        assert_eq!(newest(Some(at(3)), at(5), at(4)), Some(at(3)));
        assert_eq!(newest(Some(at(3)), at(4), at(4)), Some(at(4)));
        assert_eq!(newest(Some(at(3)), at(2), at(4)), Some(at(3)));
    }
}
