//! Publishes an ordered stream of messages to a target, at least once, and says exactly how far it
//! came: pacing, the confirm window, and retry.
//!
//! What is decided is plain and synchronous ([`Pace`] in `pacer`, the window in `window`, the
//! budgets in `retry`); the loop in `run` only waits and carries out.
//!
//! Invariants: a checkpoint passes an event only if it is confirmed or recorded as rejected; at
//! most one window is published beyond the last written checkpoint; a message that reached no
//! queue is never counted as confirmed.

mod control;
mod error;
mod gate;
mod pace;
mod pacer;
mod rejects;
mod report;
mod retry;
mod run;
mod window;

pub use control::Control;
pub use error::RepublishError;
pub use pace::{Pace, Speed};
pub use rejects::{OnReject, Reject, RejectKind, UnknownKind};
pub use report::{Ended, How, Phase, Progress, Totals};
pub use retry::NackRetries;
pub use run::{Config, Journal, republish};
pub use window::{Outgoing, WindowLimits};
