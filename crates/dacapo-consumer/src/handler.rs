//! What a service supplies, and what it may say of an event.

use std::error::Error;

use async_trait::async_trait;

use crate::delivery::Delivery;
use crate::order::{Order, Turn, Verdict};
use crate::store::ProcessedStore;

/// Why an event could not be handled.
pub type Cause = Box<dyn Error + Send + Sync>;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handled {
    /// Its effect is there, and so is its mark.
    Done,
    /// It was marked before; nothing was done.
    Repeat,
    /// A newer one of its key was handled before; nothing was done.
    Older,
}

/// An event was not handled.
#[derive(Debug)]
pub enum Failure {
    /// Another attempt may succeed; after the last one it is poison.
    Retry(Cause),
    /// It will never succeed.
    Poison(Cause),
    /// Something that all events need is not there (a database that is down, say), which is no fault
    /// of this one: it is tried until that is back, and never becomes a dead letter.
    Unavailable(Cause),
}

impl Failure {
    /// Returns a [`Failure::Retry`].
    pub fn retry(cause: impl Into<Cause>) -> Self {
        Failure::Retry(cause.into())
    }

    /// Returns a [`Failure::Poison`].
    pub fn poison(cause: impl Into<Cause>) -> Self {
        Failure::Poison(cause.into())
    }

    /// Returns a [`Failure::Unavailable`].
    pub fn unavailable(cause: impl Into<Cause>) -> Self {
        Failure::Unavailable(cause.into())
    }

    /// Returns what went wrong.
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Failure::Retry(cause) | Failure::Poison(cause) | Failure::Unavailable(cause) => {
                &**cause
            }
        }
    }
}

/// A service whose effect is in a database: it writes the mark itself, in the transaction of the
/// effect, and asks [`Order::judge`] with what it finds there.
#[async_trait]
pub trait Handler: Send {
    /// Handles one event; when it returns [`Handled::Done`], effect and mark are durable.
    ///
    /// It may be called again for the same event at any time, also after it succeeded; and be dropped
    /// at any wait of its own, at `Settings::handle_deadline`.
    ///
    /// # Errors
    /// The event was not handled; whatever was done of it must be undone or be harmless when it is
    /// done again.
    async fn handle(&mut self, delivery: &Delivery) -> Result<Handled, Failure>;
}

/// A service whose effect is idempotent in itself; the library remembers what was handled, so that
/// a repeat is mostly, not always, spared.
#[async_trait]
pub trait Effect: Send {
    /// Applies one event durably. Applied twice it must do no more than once: the process may end
    /// between the effect and its mark.
    ///
    /// # Errors
    /// The event was not applied.
    async fn apply(&mut self, delivery: &Delivery, turn: Turn) -> Result<(), Failure>;
}

/// The handler that applies an effect unless the store knows the event.
///
/// The store says what the effect holds, and lives and dies with it: whoever rebuilds the effect begins
/// with an empty store, for what it knows of is dropped as a repeat, also out of a replay.
#[derive(Debug)]
pub struct Remembering<S, E> {
    store: S,
    order: Order,
    effect: E,
}

impl<S: ProcessedStore, E: Effect> Remembering<S, E> {
    /// Returns the handler of `effect`.
    pub fn new(store: S, order: Order, effect: E) -> Self {
        Remembering { store, order, effect }
    }
}

#[async_trait]
impl<S: ProcessedStore, E: Effect> Handler for Remembering<S, E> {
    async fn handle(&mut self, delivery: &Delivery) -> Result<Handled, Failure> {
        let place = self.order.remembered(delivery);
        let recalling = self.store.recall(&delivery.id, place.map(|(key, _)| key));
        let known = recalling.await.map_err(Failure::unavailable)?;
        let turn = match self.order.judge(delivery, known) {
            Verdict::Repeat => return Ok(Handled::Repeat),
            Verdict::Older => return Ok(Handled::Older),
            Verdict::Handle(turn) => turn,
        };
        self.effect.apply(delivery, turn).await?;
        self.store.record(&delivery.id, place).await.map_err(Failure::unavailable)?;
        Ok(Handled::Done)
    }
}
