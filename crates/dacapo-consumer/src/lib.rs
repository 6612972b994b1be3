//! Makes a service safe to replay to: an event is handled once by its id, whether it comes live, a
//! second time or out of an archive, and is acked last.
//!
//! | module or type | is |
//! |---|---|
//! | [`Consumer`] | the loop: consume, handle, retry, bury, ack |
//! | [`Handler`] | a service that marks events itself, in the transaction of its effect |
//! | [`Remembering`] | the handler for an [`Effect`] that is idempotent, over a [`ProcessedStore`] |
//! | [`Order::judge`] | repeat, older, or to be handled: a pure function of what is known |
//! | [`Delivery`] | an event as a service sees it; [`Delivery::replay`] tells a replayed one |
//! | [`store`] | what was handled, remembered: in memory, in sled (feature `sled`), in etcd (`etcd`) |
//!
//! Over the seams of `dacapo-bus`: RabbitMQ is `dacapo_amqp::AmqpQueue` and `AmqpConnect`, on lapin;
//! tests take the bus in memory. `examples/orders.rs` is a service in full, and
//! `docs/writing-a-service.md` explains it.
//!
//! Invariants: a delivery is acked after it was handled, found to be a repeat or older, or confirmed
//! by the queue of dead letters, and never before; one event is handled at a time, in order.

mod dead_letter;
mod delivery;
mod error;
mod handler;
mod metrics;
mod order;
mod retry;
mod run;

pub mod store;

pub use dead_letter::{DEAD_ATTEMPTS, DEAD_EVENT_ID, DEAD_QUEUE, DEAD_REASON};
pub use delivery::Delivery;
pub use error::ConsumerError;
pub use handler::{Cause, Effect, Failure, Handled, Handler, Remembering};
pub use metrics::Metrics;
pub use order::{Known, Order, Position, Turn, Verdict};
pub use retry::Retry;
pub use run::{Consumer, Settings};
pub use store::ProcessedStore;
