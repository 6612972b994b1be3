//! Flags of `dacapo drill`, and those that its description holds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use dacapo_drill::description::{Flag, TIME_MAX};

use super::pace::parse_duration;
use super::{PaceArgs, PreflightArgs, SelectionArgs, TargetArgs};
use crate::exit::Failure;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DrillArgs {
    #[command(subcommand)]
    pub command: Option<DrillCommand>,
    /// What is rehearsed, where, and what is to be met: a description in TOML
    #[arg(value_name = "FILE", required_unless_present = "example")]
    pub description: Option<PathBuf>,
    /// Print a description with everything in it, to begin from
    #[arg(long)]
    pub example: bool,
    /// Sign the report with this private Ed25519 key (`openssl genpkey -algorithm ed25519`); only its
    /// owner should be able to read it
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Put the report into a folder named by the drill's id in here [default: `drills` in --state]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Who runs it, for the report [default: the user of this machine]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Run again and again, so long after each start (a year at the most), until told to stop
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub every: Option<Duration>,
    /// With --every, serve /metrics and /health here, for example 127.0.0.1:9466
    #[arg(long, value_name = "ADDRESS", requires = "every")]
    pub metrics: Option<SocketAddr>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval <= TIME_MAX => Ok(interval),
        _ => Err(format!("`{text}` is more than a year")),
    }
}

#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Check that a report is as it was signed and that its page shows just that; print its verdict
    Verify(DrillVerifyArgs),
}

#[derive(Debug, Args)]
pub struct DrillVerifyArgs {
    /// The report; its signature (`.sig`) and its page (`.html`) lie beside it
    #[arg(value_name = "REPORT.json")]
    pub report: PathBuf,
    /// The public key of whoever ran the drill (`openssl pkey -pubout`)
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

/// What the description of a drill says in flags of `dacapo replay`.
#[derive(Debug, Clone, Parser)]
#[command(name = "drill", disable_help_flag = true)]
pub struct Rehearsed {
    #[command(flatten)]
    pub selection: SelectionArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub preflight: PreflightArgs,
}

impl Rehearsed {
    /// Takes the flags of a description, as if they had been typed.
    pub fn of<'a>(flags: impl IntoIterator<Item = &'a Flag>) -> Result<Self, Failure> {
        let typed = flags.into_iter().map(|flag| flag.0.as_str());
        Rehearsed::try_parse_from(["drill"].into_iter().chain(typed)).map_err(|error| {
            let said = error.to_string();
            let problem = said.lines().next().unwrap_or_default();
            let problem = problem.strip_prefix("error: ").unwrap_or(problem);
            Failure::usage(format!("in the description, as a flag of `dacapo replay`: {problem}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drills_are_a_year_apart_at_the_most() {
        assert_eq!(parse_interval("365d"), Ok(TIME_MAX));
        for bad in ["366d", "4294967295d", "9223372036854775807s", "x"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }
}
