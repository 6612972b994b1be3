//! Publishing dead letters: one at a time, with a deadline on each confirm.

use std::time::Duration;

use dacapo_bus::{BusError, Connect, Outcome, Sink};
use dacapo_event::Message;

use crate::dead_letter::Death;
use crate::error::ConsumerError;

/// How long a confirm may take; a quorum queue that has lost its leader answers within seconds, and
/// a broker that blocks publishers is asked again.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(60);

/// What stood in the way of a dead letter for now; nothing once the bus has it.
pub(super) type Hindrance = Option<String>;

/// The way to the queue of dead letters.
pub(super) struct DeadLetters<'a> {
    connect: &'a dyn Connect,
    queue: &'a str,
    /// Absent until it is opened, and after an error.
    sink: Option<Box<dyn Sink>>,
}

impl<'a> DeadLetters<'a> {
    /// Returns the way for events of `queue`.
    pub(super) fn new(connect: &'a dyn Connect, queue: &'a str) -> Self {
        DeadLetters { connect, queue, sink: None }
    }

    /// Opens it, unless it is.
    pub(super) async fn open(&mut self) -> Result<(), ConsumerError> {
        if self.sink.is_none() {
            let opened = self.connect.open().await;
            self.sink = Some(opened.map_err(|source| self.refused(source))?);
        }
        Ok(())
    }

    /// Publishes the dead letter of an event once.
    ///
    /// Cancelled, it may have been published, and is again: a dead letter may come twice, but is
    /// never missing.
    pub(super) async fn bury(
        &mut self,
        death: &Death,
        message: &Message,
    ) -> Result<Hindrance, ConsumerError> {
        let id = || death.id.clone().unwrap_or_else(|| "without an id".to_owned());
        let mut sent = self.publish(death.letter(message, self.queue)).await;
        if let Err(BusError::Unsendable { .. } | BusError::TooLarge { .. }) = &sent {
            sent = self.publish(death.bare_letter(message, self.queue)).await;
        }
        match sent {
            Ok(Outcome::Confirmed) => Ok(None),
            Ok(Outcome::Nacked) => Ok(Some("the queue of dead letters refuses it".to_owned())),
            Ok(Outcome::Returned { reason }) => {
                Err(ConsumerError::NoDeadLetterQueue { id: id(), reason })
            }
            Err(error) if error.is_transient() => Ok(Some(error.to_string())),
            Err(source @ (BusError::Unsendable { .. } | BusError::TooLarge { .. })) => {
                Err(ConsumerError::Unburiable { id: id(), source })
            }
            Err(source) => Err(self.refused(source)),
        }
    }

    fn refused(&self, source: BusError) -> ConsumerError {
        ConsumerError::DeadLettersRefused { queue: self.queue.to_owned(), source }
    }

    async fn publish(&mut self, letter: Message) -> Result<Outcome, BusError> {
        let publishing = async {
            // Put back only after an answer: a sink whose call was dropped or failed is of no use.
            let mut sink = match self.sink.take() {
                Some(sink) => sink,
                None => self.connect.open().await?,
            };
            sink.send(std::slice::from_ref(&letter)).await?;
            let mut outcomes = sink.outcomes().await?;
            self.sink = Some(sink);
            Ok(outcomes.pop().expect("outcomes are never empty, and one was sent"))
        };
        tokio::time::timeout(CONFIRM_DEADLINE, publishing).await.unwrap_or_else(|_| {
            Err(BusError::Disconnected {
                peer: "the queue of dead letters".to_owned(),
                reason: format!("no confirm within {CONFIRM_DEADLINE:?}"),
            })
        })
    }
}
