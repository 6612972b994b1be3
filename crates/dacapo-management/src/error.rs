//! What can go wrong with the management API, by what the operator can do about it.

use std::error::Error;

use thiserror::Error;

/// The management API did not answer what it was asked. No message holds a password.
#[derive(Debug, Error)]
pub enum ManagementError {
    /// The text is no address of a management plugin. It is not quoted, for it may hold a password.
    #[error("{problem}")]
    Address {
        /// What is wrong, and what is expected.
        problem: &'static str,
    },
    /// What `https://` needs cannot be used.
    #[error("{problem}")]
    Certificates {
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// The plugin does not prove who it is, or does not let this client in.
    #[error("{place} is not trusted; {next_step}")]
    Untrusted {
        /// The plugin's address, without the account.
        place: String,
        /// What TLS says.
        #[source]
        source: std::io::Error,
        /// What to do about it.
        next_step: &'static str,
    },
    /// No connection, or no answer in time.
    #[error("{place} does not answer")]
    Unavailable {
        /// The plugin's address, without the account.
        place: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The user or the password is wrong, or the user lacks a tag.
    #[error(
        "{place} refused the account for `{path}`; check user and password, and give the user the tag \
         `{tag}` (`rabbitmqctl set_user_tags`)"
    )]
    Denied {
        /// The plugin's address, without the account.
        place: String,
        /// What was asked for.
        path: String,
        /// The tag that is enough.
        tag: &'static str,
    },
    /// An answer of another form: of another server, or of a RabbitMQ that is not known.
    #[error(
        "{place} answered something else to `{path}`: {problem}; is this the management plugin?"
    )]
    Strange {
        /// The plugin's address, without the account.
        place: String,
        /// What was asked for.
        path: String,
        /// What is strange about it.
        problem: String,
    },
}
