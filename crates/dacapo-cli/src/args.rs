//! What was typed. Becomes [`crate::settings::Settings`] and requests once; nothing else
//! sees it.

mod archive;
mod backfill;
mod drill;
mod emit;
mod pace;
mod preflight;
mod selection;
mod target;

use std::path::PathBuf;

use clap::builder::styling::Styles;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use dacapo_engine::rejects::{PASSED_OVER_MAX_DEFAULT, REJECTS_MAX};
use dacapo_event::Digest;
use dacapo_republish::{NackRetries, OnReject};

use crate::exit::Failure;
pub use archive::{
    CompactArgs, DefinitionsArgs, FieldArgs, ImportArgs, LsArgs, RepairArgs, RunArgs, VerifyArgs,
};
pub use backfill::{BackfillArgs, BackfillChangeArgs, BackfillCommand, BackfillRunningArgs};
pub use drill::{DrillArgs, DrillCommand, DrillVerifyArgs, Rehearsed};
pub use emit::EmitArgs;
pub use pace::{PaceArgs, parse_bytes};
pub use preflight::PreflightArgs;
pub use selection::{SelectionArgs, read_bounded, read_descriptor_set};
pub use target::TargetArgs;

/// What is logged unless something else is asked for.
pub const LOG_DEFAULT: &str = "warn,lapin=off";

const AFTER_HELP: &str = "\
A first look, with nothing installed:
  dacapo demo

Exit status:
  0  done
  1  failed for another reason
  2  wrong usage: a flag, a time, an expression, a range the wrong way round
  3  wrong configuration: a file, a URL, a directory, an archive that does not exist
  4  the archive is damaged, or changed since the plan was made
  5  the target refused: no such queue, no permission, wrong password, unroutable; or events that
     were passed over
  6  interrupted; `dacapo replay resume ID` (or `backfill resume ID`) goes on
  7  busy: another process has the index or runs this replay or backfill
  8  unavailable: the store or the broker does not answer; try again
  9  the input of an import, of emit or of `drill verify` is not what it should be
 10  a drill missed a target: its report says which";

/// Keeps every event of a RabbitMQ platform in S3 and plays any part of it back
#[derive(Debug, Parser)]
#[command(name = "dacapo", version, after_help = AFTER_HELP, styles = Styles::plain())]
#[command(propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command. A flag wins over its environment variable, and that over the file.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common flags")]
pub struct GlobalArgs {
    /// The archive: a directory, `file:///dir`, or `s3://bucket/prefix` (credentials, region and
    /// endpoint as for the AWS tools: AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …)
    #[arg(long, global = true, env = "DACAPO_ARCHIVE", value_name = "URL")]
    pub archive: Option<String>,
    /// The local index; derived from the archive, may be deleted at any time [default: one for each
    /// archive under ~/.cache/dacapo]
    #[arg(long, global = true, env = "DACAPO_INDEX", value_name = "DIR", value_parser = path_or_nothing())]
    pub index: Option<PathBuf>,
    /// Journals, checkpoints and receipts of replays; not derived, keep it [default:
    /// ~/.local/state/dacapo]
    #[arg(long, global = true, env = "DACAPO_STATE", value_name = "DIR", value_parser = path_or_nothing())]
    pub state: Option<PathBuf>,
    /// What events may take in memory, all buffers together, with the suffix Ki, Mi or Gi; the
    /// process takes some 40 MB beside it [default: 128Mi]
    #[arg(long, global = true, env = "DACAPO_MEMORY", value_name = "BYTES")]
    pub memory: Option<String>,
    /// The broker: `amqp://user@host:5672/vhost`, or `amqps://` (with
    /// `?auth_mechanism=external` the client certificate says who the user is); other users of
    /// this machine see a password that is given here
    #[arg(long, global = true, env = "DACAPO_AMQP", value_name = "URL", hide_env_values = true)]
    pub amqp: Option<String>,
    /// The broker's password, when it is not in the URL (or in DACAPO_AMQP_PASSWORD)
    #[arg(long, global = true, value_name = "FILE")]
    pub amqp_password_file: Option<PathBuf>,
    /// The same from the environment: never as a flag, because other users see those
    #[arg(
        long = "amqp-password-from-environment",
        global = true,
        env = "DACAPO_AMQP_PASSWORD",
        hide = true,
        hide_env_values = true
    )]
    pub amqp_password: Option<String>,
    /// Certificate authorities to trust for `amqps://` and the `https://` of --management, in PEM form,
    /// besides the system's
    #[arg(long, global = true, value_name = "FILE")]
    pub amqp_ca: Option<PathBuf>,
    /// Client certificate for a broker that asks for one, in PEM form; needs --amqp-key
    #[arg(long, global = true, value_name = "FILE", requires = "amqp_key")]
    pub amqp_cert: Option<PathBuf>,
    /// Private key of the client certificate, in PEM form, not encrypted; only its owner should be
    /// able to read it
    #[arg(long, global = true, value_name = "FILE", requires = "amqp_cert")]
    pub amqp_key: Option<PathBuf>,
    /// The broker's management plugin, `http://user:password@host:15672` or `https://…:15671` (with
    /// the certificates of `amqps://`): tells what AMQP cannot, and `archive run` how long the broker's
    /// disk lasts; the user needs the tag `monitoring`
    #[arg(
        long,
        global = true,
        env = "DACAPO_MANAGEMENT",
        value_name = "URL",
        hide_env_values = true
    )]
    pub management: Option<String>,
    /// Configuration file [default: ./dacapo.toml if it is there]
    #[arg(long, global = true, env = "DACAPO_CONFIG", value_name = "FILE", value_parser = path_or_nothing())]
    pub config: Option<PathBuf>,
    /// Print one JSON object (lists of events: one a line) on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log on stderr: error, warn, info, debug, or a filter such as `warn,dacapo_amqp=debug`
    #[arg(
        long,
        global = true,
        env = "DACAPO_LOG",
        default_value = LOG_DEFAULT,
        value_name = "LEVEL"
    )]
    pub log: String,
    /// How to log
    #[arg(long, global = true, env = "DACAPO_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[value(alias = "")]
    Text,
    Json,
}

/// Takes a path, or nothing at all from a variable that is set to nothing.
fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole story on this machine: nothing to install, under 20 seconds
    Demo(DemoArgs),
    /// Keep events: run the archiver, import files, list and verify the archive
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Look after the local index
    #[command(subcommand)]
    Index(IndexCommand),
    /// Look at events: a table, JSON lines, or one body
    Events(Box<EventsArgs>),
    /// Say what a replay would do, without doing it
    Plan(Box<PlanArgs>),
    /// Play events to a queue, an exchange or a file
    Replay(Box<ReplayArgs>),
    /// List, show, pause, resume and cancel replays
    #[command(subcommand)]
    Replays(ReplaysCommand),
    /// Give a new service all history and then the live stream, with nothing missing in between
    ///
    /// It can be killed at any instant and resumed, and may run for days. For example: dacapo backfill
    /// --queue loyalty --bind shop='order.#' --from 2026-01-01
    Backfill(Box<BackfillArgs>),
    /// Rehearse a restore somewhere else, measure it, and leave a signed report
    ///
    /// Makes an isolated virtual host (or takes one), replays there, waits until the service under test
    /// has drained its queue, runs the checks, holds the times against the targets, and takes everything
    /// down again. Status 0 only if every target is met, 10 if not. `dacapo drill --example` prints a
    /// description with everything in it.
    Drill(Box<DrillArgs>),
    /// Publish new events to the bus, one or a file of them, and wait until each is confirmed
    ///
    /// For example: dacapo emit --exchange shop --routing-key order.placed --type order.placed
    /// --body '{"order": 7}'
    Emit(Box<EmitArgs>),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many events the shop emits
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=200_000))]
    pub events: u64,
    /// Where to leave the archive to try things on; must be empty or not there [default: a new
    /// folder under the system's temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ArchiveCommand {
    /// Take every event off the bus into the archive, until told to stop
    Run(Box<RunArgs>),
    /// Import files of one JSON event a line; running again after a kill adds nothing twice
    Import(Box<ImportArgs>),
    /// List the streams of the archive, or their segments
    Ls(LsArgs),
    /// Check every segment, its digest, its place in the chain, and the heads
    Verify(VerifyArgs),
    /// Print the broker's definitions as `archive run --management` kept them, for
    /// `rabbitmqctl import_definitions`
    Definitions(DefinitionsArgs),
    /// Rebuild what the archive can prove: chain entries, heads, the index; list what it cannot
    Repair(RepairArgs),
    /// Merge small segments into large ones, drop exact repeats, and delete what was merged after a
    /// grace period; safe to kill, run it again (from cron)
    Compact(CompactArgs),
}

#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Bring the index up to date with the archive
    Sync,
    /// Show how much the index knows
    Stats,
    /// Throw the index away and make it again
    Rebuild,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Print no more than this many events; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: u64,
    /// Print only the body of the one selected event, as it was
    #[arg(long, conflicts_with = "limit")]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub preflight: PreflightArgs,
    /// Read what the index cannot decide, until every count is exact
    #[arg(long)]
    pub exact: bool,
    /// Save the plan for `dacapo replay --plan FILE`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ReplayArgs {
    #[command(subcommand)]
    pub resume: Option<ReplayCommand>,
    #[command(flatten)]
    pub selection: SelectionArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    /// Run a saved plan: exactly its segments, to its target
    #[arg(long, value_name = "FILE", conflicts_with_all = ["SelectionArgs", "TargetArgs", "PaceArgs", "exact"])]
    pub plan: Option<PathBuf>,
    /// Count the selected events exactly before publishing, so that progress and an interrupted
    /// receipt are exact, too
    #[arg(long)]
    pub exact: bool,
    /// Replay what there is of an archive that lacks segments, or has some without a readable end;
    /// damaged rows stop a replay all the same
    #[arg(long)]
    pub accept_gaps: bool,
    #[command(flatten)]
    pub preflight: PreflightArgs,
    #[command(flatten)]
    pub running: RunningArgs,
}

/// What does not change what is replayed.
#[derive(Debug, Clone, Args)]
pub struct RunningArgs {
    /// Do not ask before events go to everyone (--to-original) where it is not known who that is; where
    /// it is (--management), --approve is asked for instead
    #[arg(long)]
    pub yes: bool,
    /// Publish to the queues that `dacapo plan` showed with this hash: more than one, or one that was not
    /// asked for (--expect-queue); needs --management
    #[arg(long, value_name = "HASH")]
    pub approve: Option<Digest>,
    /// What to do about an event that the target refuses (unroutable, nacked again and again, too
    /// large, not to be sent); it is recorded in any case [default: stop; a resumed replay as it was
    /// told last]
    #[arg(long, value_name = "WHAT")]
    pub on_reject: Option<OnRejectArg>,
    /// With --on-reject skip: pass over no more than this many refused events, then stop [default:
    /// 1000]
    #[arg(long, value_name = "N", requires = "on_reject")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=REJECTS_MAX))]
    pub max_rejects: Option<u64>,
    /// Publish an event that the broker nacks (a full queue that rejects publishes, say) again N
    /// times, with delays from a tenth of a second to ten, before it counts as refused [default: 39,
    /// five and a half minutes; a resumed replay as it was told last]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=i64::from(NackRetries::MAX)))]
    pub nack_retries: Option<u32>,
    /// Serve /metrics and /health here, for example 127.0.0.1:9465
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<std::net::SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnRejectArg {
    /// Stop there; the replay can be resumed
    Stop,
    /// Record it in the replay's reject file and go on; `dacapo replay --rejects` tries it again
    Skip,
}

impl RunningArgs {
    /// Returns how often to try again what is nacked, if that was said.
    pub fn nack_retries(&self) -> Option<NackRetries> {
        self.nack_retries.and_then(NackRetries::new)
    }

    /// Returns what was said about refused events, if anything was.
    pub fn on_reject(&self) -> Result<Option<OnReject>, Failure> {
        let most = self.max_rejects.unwrap_or(PASSED_OVER_MAX_DEFAULT.get());
        match (self.on_reject, self.max_rejects) {
            (None, _) => Ok(None),
            (Some(OnRejectArg::Skip), _) => Ok(Some(OnReject::Skip { most })),
            (Some(OnRejectArg::Stop), None) => Ok(Some(OnReject::Stop)),
            (Some(OnRejectArg::Stop), Some(_)) => {
                let problem = "--max-rejects is for --on-reject skip; with stop the first event that \
                               is refused ends the replay";
                Err(Failure::usage(problem))
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ReplayCommand {
    /// Go on with a replay that was interrupted or killed
    ///
    /// A broker or a store that does not answer at the start ends it at once, with status 8 and
    /// nothing changed, as it does for `dacapo replay`: the address may be wrong. Once it publishes, a
    /// lost connection is tried again for five and a half minutes.
    Resume {
        /// Its id, or the beginning or end of it
        id: String,
        #[command(flatten)]
        preflight: PreflightArgs,
        #[command(flatten)]
        running: RunningArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum ReplaysCommand {
    /// List all replays, oldest first
    Ls,
    /// Show one replay: its plan, how far it is, its receipt
    Show {
        /// Its id, or the beginning or end of it
        id: String,
    },
    /// Make a running replay publish nothing more until it is resumed
    Pause {
        /// Its id, or the beginning or end of it
        id: String,
    },
    /// Make a paused replay go on (one that has ended goes on with `dacapo replay resume`)
    Resume {
        /// Its id, or the beginning or end of it
        id: String,
    },
    /// End a replay for good; what is confirmed stays, the receipt says how much
    Cancel {
        /// Its id, or the beginning or end of it
        id: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_begins_with_what_it_is_for() {
        let help = Cli::command().render_help().to_string();
        assert!(help.starts_with("Keeps every event of a RabbitMQ platform"), "{help}");
    }
}
