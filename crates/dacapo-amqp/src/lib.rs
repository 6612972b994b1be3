//! RabbitMQ behind the seams of `dacapo-bus`; the only crate that knows lapin.
//!
//! | module | is |
//! |---|---|
//! | [`uri`](AmqpUrl), [`Broker`] | where and as whom to connect; no password is ever shown |
//! | [`AmqpConnect`] | the `Sink`: publishes with confirms and `mandatory` |
//! | [`AmqpSubscribe`] | the `Source`: the archiver's queue and its parking queue |
//! | [`AmqpQueue`], [`declare_service`] | the `Source` of a service: one queue |
//! | [`inspect()`], [`objections()`], [`blind_spots`] | what a plan or an archiver must know before it starts |
//! | [`ensure_queue`], [`declare_holding`], [`bind`] … | the queues and bindings of a backfill |
//! | [`declare_topic`], [`remove`] | what is made for a while and taken away again |
//! | [`declare_copy`], [`declare_witness`], [`queue_state`] | the environment of a drill |
//! | `wire` | a small consumer and a small publisher of our own |
//!
//! Declaring and inspecting go through lapin. Messages do not: AMQP says that short strings are
//! UTF-8, RabbitMQ does not check, and lapin closes the connection on one that is not, with the
//! whole prefetch unread, for ever again. `wire` takes bytes as they are and bounds the nesting of
//! tables, so no message can stop the archive; and it publishes them as they are, at a sixth
//! of lapin's cost.
//!
//! Invariants: a returned (unroutable) message is never reported as confirmed; a message that
//! cannot be read as text or as a table is still delivered, with its bytes.

mod appetite;
mod connect;
mod copy;
mod error;
mod holding;
mod inspect;
mod parked;
mod sink;
mod source;
mod target;
mod temporary;
mod topology;
mod uri;
mod wire;

pub use connect::{Broker, ClientIdentity, Tls};
pub use copy::{
    BindTo, Copied, CopiedBinding, CopiedExchange, CopiedQueue, Made, Place, QueueState,
    declare_copy, declare_witness, queue_state,
};
pub use holding::{Found, bind, declare_holding, ensure_queue, remove_holding, unbind};
pub use inspect::{Objections, TargetFacts, backfill_objections, cluster, inspect, objections};
pub use sink::AmqpConnect;
pub use source::{AmqpQueue, AmqpSubscribe};
pub use target::{AmqpTarget, Via};
pub use temporary::{declare_topic, remove};
pub use topology::{Binding, BlindSpot, blind_spots, declare_service, exchange_types};
pub use uri::AmqpUrl;
