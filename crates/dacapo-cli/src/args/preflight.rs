//! What is made sure of before anything is published.

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use dacapo_engine::preflight::{Check, Wishes};

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Checks of the target")]
pub struct PreflightArgs {
    /// Publish in spite of what this check finds, and say so in the receipt; repeatable
    #[arg(long = "override", value_name = "CHECK", value_parser = checks())]
    pub overrides: Vec<Check>,
    /// Refuse a queue that nobody consumes
    #[arg(long)]
    pub require_consumer: bool,
}

/// Names and explains all checks in `--help`.
fn checks() -> impl TypedValueParser<Value = Check> {
    let named = |check: Check| PossibleValue::new(check.as_str()).help(check.finds());
    PossibleValuesParser::new(Check::ALL.map(named))
        .map(|name| name.parse().expect("only the names of checks are possible"))
}

impl PreflightArgs {
    /// Returns what these flags add to what was decided before.
    pub fn wishes(&self, before: &Wishes) -> Wishes {
        Wishes {
            require_consumer: self.require_consumer || before.require_consumer,
            overrides: before.overrides.iter().chain(&self.overrides).copied().collect(),
        }
    }
}
