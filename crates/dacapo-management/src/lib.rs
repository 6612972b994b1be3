//! RabbitMQ's management API; the only crate that knows it.
//!
//! AMQP tells whether a queue is there and how deep it is. Everything else that a plan or an
//! archiver must know of a broker (how full its disks are, what limits a queue, where an exchange
//! leads) has no query in AMQP, and is asked here, in the words of [`dacapo_bus::broker`].
//!
//! One connection for each question, over HTTP or HTTPS. Invariants: nothing waits without a deadline
//! or reads without a bound; no message holds the account; nothing on the broker is changed but the
//! virtual hosts that a drill makes for itself ([`Management::make_vhost`]).

mod address;
mod ask;
mod definitions;
mod error;
mod nodes;
mod policies;
mod tls;
mod topology;
mod vhosts;

pub use address::Management;
pub use error::ManagementError;
pub use tls::Certificates;
pub use vhosts::Unacked;
