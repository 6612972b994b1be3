//! Flags of `dacapo backfill`.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use clap::{Args, Subcommand};
use dacapo_amqp::Binding;
use dacapo_engine::backfill::Description;
use dacapo_engine::preflight::Check;
use dacapo_republish::NackRetries;

use super::archive::AttributeArgs;
use super::pace::{parse_bytes, parse_duration, parse_positive};
use super::preflight::checks;
use super::{PaceArgs, PreflightArgs};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BackfillArgs {
    #[command(subcommand)]
    pub command: Option<BackfillCommand>,
    /// The queue of the new service; if it is not there it is made as a service of dacapo declares it:
    /// a durable quorum queue with a single active consumer and no delivery limit
    #[arg(long, value_name = "QUEUE", required = true)]
    pub queue: Option<String>,
    /// Exchange to bind it to in the end, all of it or what a pattern matches, as for `archive run`;
    /// history is what this would have routed; repeatable
    #[arg(long = "bind", value_name = "EXCHANGE[=PATTERN]", required = true)]
    pub bindings: Vec<Binding>,
    /// History from this time on [default: all of it]
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Queue of an archiver that archives this; repeatable [default: with --management those that the
    /// exchanges lead to, else `dacapo.archive`]
    #[arg(long = "archiver-queue", value_name = "QUEUE")]
    pub archiver_queues: Vec<String>,
    /// Begin to hold live events once what is not played is younger than this
    #[arg(long, default_value = "1m", value_parser = parse_duration, value_name = "TIME")]
    pub max_behind: Duration,
    /// How long to wait, after each binding, for what publishers had on its way; longer if they use AMQP
    /// transactions that take longer
    #[arg(long, default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    pub margin: Duration,
    /// Play what there is of an archive that lacks segments
    #[arg(long)]
    pub accept_gaps: bool,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub preflight: PreflightArgs,
    #[command(flatten)]
    pub attributes: AttributeArgs,
    #[command(flatten)]
    pub running: BackfillRunningArgs,
}

/// What does not change what is done.
#[derive(Debug, Clone, Default, Args)]
pub struct BackfillRunningArgs {
    /// Publish an event that the broker nacks (a full queue that rejects publishes, say) again N
    /// times, with delays from a tenth of a second to ten, before it counts as refused [default: 39]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(NackRetries::MAX)))]
    pub nack_retries: Option<u32>,
    /// Serve /metrics and /health here, for example 127.0.0.1:9466
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
}

impl BackfillRunningArgs {
    /// Returns how often to try again what is nacked.
    pub fn nack_retries(&self) -> NackRetries {
        self.nack_retries.and_then(NackRetries::new).unwrap_or_default()
    }
}

/// What may be changed on the way: from the next round on, and for what is held.
#[derive(Debug, Clone, Default, Args)]
pub struct BackfillChangeArgs {
    /// From the next round on, and for what is held: events a second
    #[arg(long, value_name = "N", value_parser = parse_positive::<NonZeroU32>)]
    pub rate: Option<NonZeroU32>,
    /// The same in bytes of bodies a second, for example 500k or 10M
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub byte_rate: Option<NonZeroU64>,
    /// And wait while the queue is this deep
    #[arg(long, value_name = "N", value_parser = parse_positive::<NonZeroU64>)]
    pub max_queue_depth: Option<NonZeroU64>,
    /// Go on in spite of what this check of the target finds, and say so in the receipt; repeatable
    #[arg(long = "override", value_name = "CHECK", value_parser = checks())]
    pub overrides: Vec<Check>,
}

impl BackfillChangeArgs {
    /// Returns what is asked now, if that is something else.
    pub fn apply(&self, before: &Description) -> Option<Description> {
        let mut now = before.clone();
        let pace = &mut now.request.pace;
        pace.rate = self.rate.or(pace.rate);
        pace.byte_rate = self.byte_rate.or(pace.byte_rate);
        pace.queue_depth_max = self.max_queue_depth.or(pace.queue_depth_max);
        now.wishes.overrides.extend(&self.overrides);
        (now != *before).then_some(now)
    }
}

#[derive(Debug, Subcommand)]
pub enum BackfillCommand {
    /// Go on with a backfill that was interrupted or killed
    Resume {
        /// Its id, or the beginning or end of it
        id: String,
        #[command(flatten)]
        changes: BackfillChangeArgs,
        #[command(flatten)]
        running: BackfillRunningArgs,
    },
    /// List all backfills, oldest first
    Ls,
    /// Show one backfill: what was asked, where it is, what may have come twice
    Show {
        /// Its id, or the beginning or end of it
        id: String,
    },
    /// End a backfill that does not run for good: its holding queue goes, the queue of the service
    /// stays with what it has
    Cancel {
        /// Its id, or the beginning or end of it
        id: String,
        /// Even if the holding queue, which should be there, is not: what it held is lost to the queue
        #[arg(long)]
        holding_is_gone: bool,
    },
}
