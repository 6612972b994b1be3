//! What was asked for: which events, where to, how fast.

use std::num::NonZeroU32;
use std::path::PathBuf;

use dacapo_event::marking::Priority;
use dacapo_filter::SelectionSpec;
use dacapo_republish::Pace;

/// A replay as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Which events.
    pub selection: SelectionSpec,
    /// Where they are published.
    pub target: Target,
    /// How fast.
    pub pace: Pace,
    /// The most events published beyond the last written checkpoint.
    pub window: NonZeroU32,
    /// Whether `priority` is published as it was.
    pub priority: Priority,
}

/// The window if none is asked for: at 20,000 events/s it is 50 ms of confirms, and what a crash
/// repeats at the most.
pub const WINDOW_DEFAULT: NonZeroU32 = NonZeroU32::new(1_000).expect("not zero");

/// Where events are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To one queue, through an exchange of the replay's own: the routing key arrives as it was.
    Queue {
        /// The queue.
        queue: String,
    },
    /// To one queue through the default exchange: the routing key becomes the queue's name.
    QueueViaDefaultExchange {
        /// The queue.
        queue: String,
    },
    /// To an exchange, with the original routing key or another.
    Exchange {
        /// The exchange.
        exchange: String,
        /// Instead of the original routing key.
        routing_key: Option<String>,
    },
    /// To the exchange that each event came from: everyone sees it.
    Original,
    /// To a file of JSON lines; `-` is the standard output.
    File {
        /// The file.
        path: PathBuf,
    },
}

impl Target {
    /// Returns whether events go to a bus, and so are marked.
    pub fn is_bus(&self) -> bool {
        !matches!(self, Target::File { .. })
    }

    /// Returns the queue, if events go to one alone.
    pub fn queue(&self) -> Option<&str> {
        match self {
            Target::Queue { queue } | Target::QueueViaDefaultExchange { queue } => Some(queue),
            Target::Exchange { .. } | Target::Original | Target::File { .. } => None,
        }
    }
}

/// Prints the target as a person would name it.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Queue { queue } => write!(f, "queue `{queue}`"),
            Target::QueueViaDefaultExchange { queue } => {
                write!(f, "queue `{queue}` through the default exchange")
            }
            Target::Exchange { exchange, routing_key: None } => write!(f, "exchange `{exchange}`"),
            Target::Exchange { exchange, routing_key: Some(key) } => {
                write!(f, "exchange `{exchange}` with routing key `{key}`")
            }
            Target::Original => f.write_str("the original exchanges"),
            Target::File { path } => write!(f, "file `{}`", path.display()),
        }
    }
}
