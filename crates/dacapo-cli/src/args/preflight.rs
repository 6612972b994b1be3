//! What is made sure of before anything is published.

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use dacapo_engine::preflight::{Check, Wishes};
use dacapo_engine::request::Target;

use crate::exit::Failure;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Checks of the target")]
pub struct PreflightArgs {
    /// Publish in spite of what this check finds, and say so in the receipt; repeatable
    #[arg(long = "override", value_name = "CHECK", value_parser = checks())]
    pub overrides: Vec<Check>,
    /// Refuse a queue that nobody consumes; of exchanges it is not known who receives
    #[arg(long)]
    pub require_consumer: bool,
    /// A queue that is meant to receive events of --to-exchange or --to-original; the plan marks all
    /// others, and a replay to another needs --approve; repeatable; needs --management
    #[arg(long = "expect-queue", value_name = "QUEUE")]
    pub expected_queues: Vec<String>,
}

/// Names and explains all checks in `--help`.
pub fn checks() -> impl TypedValueParser<Value = Check> {
    let named = |check: Check| PossibleValue::new(check.as_str()).help(check.finds());
    PossibleValuesParser::new(Check::ALL.map(named))
        .map(|name| name.parse().expect("only the names of checks are possible"))
}

impl PreflightArgs {
    /// Refuses a wish that a target of this kind cannot have.
    pub fn refuse_unfit(&self, target: &Target) -> Result<(), Failure> {
        if self.require_consumer && target.queue().is_none() {
            let problem =
                format!("--require-consumer needs a queue, and not {target}; give --to-queue");
            return Err(Failure::usage(problem));
        }
        if !self.expected_queues.is_empty() && (target.queue().is_some() || !target.is_bus()) {
            let problem = format!(
                "--expect-queue needs exchanges, and not {target}; give --to-exchange or --to-original"
            );
            return Err(Failure::usage(problem));
        }
        Ok(())
    }

    /// Returns what these flags add to what was decided before.
    pub fn wishes(&self, before: &Wishes) -> Wishes {
        Wishes {
            require_consumer: self.require_consumer || before.require_consumer,
            overrides: before.overrides.iter().chain(&self.overrides).copied().collect(),
        }
    }
}
