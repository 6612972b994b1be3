//! Where events go.

use std::path::PathBuf;

use clap::Args;
use dacapo_engine::request::Target;
use dacapo_event::marking::Priority;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// Publish to this queue alone, through an exchange of the replay's own; the routing key
    /// arrives as it was
    #[arg(long, value_name = "QUEUE", group = "destination")]
    pub to_queue: Option<String>,
    /// Reach the queue through the default exchange, where nothing may be declared; the routing key
    /// becomes the queue's name
    #[arg(long, requires = "to_queue")]
    pub via_default_exchange: bool,
    /// Publish to this exchange: everyone bound to it sees the events
    #[arg(long, value_name = "EXCHANGE", group = "destination")]
    pub to_exchange: Option<String>,
    /// Publish with this routing key instead of the original one
    #[arg(long, value_name = "KEY", requires = "to_exchange")]
    pub with_routing_key: Option<String>,
    /// Publish to the exchanges that the events came from: everyone sees them; asks first
    #[arg(long, group = "destination")]
    pub to_original: bool,
    /// Write JSON lines to this file, or to stdout (-)
    #[arg(long, value_name = "FILE|-", group = "destination")]
    pub to_file: Option<PathBuf>,
    /// Publish `priority` as it was; it may then overtake other events
    #[arg(long)]
    pub keep_priority: bool,
}

impl TargetArgs {
    /// Returns the target that was named, if one was.
    pub fn target(&self) -> Option<Target> {
        if let Some(queue) = self.to_queue.clone() {
            return Some(match self.via_default_exchange {
                true => Target::QueueViaDefaultExchange { queue },
                false => Target::Queue { queue },
            });
        }
        if let Some(exchange) = self.to_exchange.clone() {
            let routing_key = self.with_routing_key.clone();
            return Some(Target::Exchange { exchange, routing_key });
        }
        if let Some(path) = self.to_file.clone() {
            return Some(Target::File { path });
        }
        self.to_original.then_some(Target::Original)
    }

    /// Returns what becomes of priorities.
    pub fn priority(&self) -> Priority {
        match self.keep_priority {
            true => Priority::Keep,
            false => Priority::Neutralise,
        }
    }
}
