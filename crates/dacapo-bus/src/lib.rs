//! The two seams to a message bus, [`Sink`] and [`Source`], and the bus in memory.
//!
//! What a broker is like beside that is said in the words of [`broker`].
//!
//! Implementations: [`memory`] here, RabbitMQ in `dacapo-amqp`, and a file of JSON
//! lines as a sink in [`mod@file`]. Each seam has one conformance suite
//! (`conformance`) that all pass. A further bus is one more crate beside
//! `dacapo-amqp`.
//!
//! Invariant: a message that reached no queue is never reported as
//! [`Outcome::Confirmed`].

mod error;
mod sink;
mod source;

pub mod broker;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod file;
pub mod memory;

pub use error::BusError;
pub use sink::{Connect, Outcome, Sink, TargetState};
pub use source::{AskedDepth, Delivery, DeliveryTag, Parked, Source, Subscribe};
