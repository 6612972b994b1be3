//! What can go wrong on a bus, by what the caller can do about it.

use thiserror::Error;

/// The bus did not do what it was asked.
///
/// Messages name the thing (queue, exchange, virtual host) and the next step; they never hold a
/// password.
#[derive(Debug, Error)]
pub enum BusError {
    /// The connection or channel is gone; open a new one and go on at the first unconfirmed message.
    #[error("the connection to {peer} was lost: {reason}")]
    Disconnected {
        /// Host, port and virtual host.
        peer: String,
        /// What happened.
        reason: String,
    },
    /// The queue or exchange is not there.
    #[error("{thing} does not exist on {peer}; {hint}")]
    NotFound {
        /// For example "queue `orders`".
        thing: String,
        /// Host, port and virtual host.
        peer: String,
        /// The next step.
        hint: String,
    },
    /// Login, virtual host or permission refused, or a certificate not trusted.
    #[error("{peer} refused: {reason}; {hint}")]
    Refused {
        /// Host, port and virtual host.
        peer: String,
        /// The broker's words.
        reason: String,
        /// The next step.
        hint: String,
    },
    /// The message itself cannot be sent; another one could.
    #[error("message cannot be sent: {reason}")]
    Unsendable {
        /// What is wrong with it.
        reason: String,
    },
    /// The message is larger than the target takes; a smaller one could be sent.
    #[error("message cannot be sent: {reason}")]
    TooLarge {
        /// How large it is, and how large it may be.
        reason: String,
    },
    /// The file of a file sink could not be written.
    #[error("failed to write `{path}`")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl BusError {
    /// Returns whether a new connection can succeed where this one failed.
    pub fn is_transient(&self) -> bool {
        matches!(self, BusError::Disconnected { .. })
    }
}
