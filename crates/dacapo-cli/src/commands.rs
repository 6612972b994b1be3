//! One module a command: opens parts, plugs them together, reports.

mod archive;
mod backfill;
mod blast;
mod demo;
mod drill;
mod emit;
mod events;
mod import;
mod index;
mod plan;
mod preflight;
mod rejects;
mod replay;
mod replays;
mod target;

use clap::CommandFactory;

use crate::args::{Cli, Command};
use crate::exit::Exit;
use crate::output::Output;
use crate::settings::Settings;

/// Runs a command to its end.
pub async fn run(command: Command, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    match command {
        Command::Demo(args) => demo::run(&args, settings, output).await,
        Command::Archive(command) => archive::run(command, settings, output).await,
        Command::Index(command) => index::run(&command, settings, output).await,
        Command::Events(args) => events::run(&args, settings, output).await,
        Command::Plan(args) => plan::run(&args, settings, output).await,
        Command::Replay(args) => replay::run(&args, settings, output).await,
        Command::Replays(command) => replays::run(&command, settings, output).await,
        Command::Backfill(args) => backfill::run(&args, settings, output).await,
        Command::Drill(args) => drill::run(&args, settings, output).await,
        Command::Emit(args) => emit::run(&args, settings, output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dacapo", &mut script);
            output.data(&script)?;
            Ok(Exit::Success)
        }
    }
}
