//! Why publishing stopped, by what can be done about it.

use dacapo_bus::BusError;
use thiserror::Error;

/// Publishing stopped for a reason that lies outside the messages. What was confirmed is in the
/// checkpoint, and the replay can be resumed.
///
/// `E` is the error of the input, `J` that of the journal; both are passed on as they are.
#[derive(Debug, Error)]
pub enum RepublishError<E, J> {
    /// The target cannot be used as it is; trying again would not help.
    #[error(transparent)]
    Bus(BusError),
    /// The target was lost, and did not come back or lost the connection each time.
    #[error("gave up after {attempts} attempts without progress; resume when the target is back")]
    GaveUp {
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        source: BusError,
    },
    /// A depth limit was asked for and the target has no depth.
    #[error("the target is not one queue, so it has no depth to keep below; leave the limit out")]
    DepthUnknown,
    /// The next messages could not be had.
    #[error(transparent)]
    Input(E),
    /// The checkpoint could not be written.
    #[error(transparent)]
    Journal(J),
}
