//! `dacapo`: every event of a RabbitMQ platform kept, found again, and played back.
//!
//! The composition root: arguments become settings, settings become parts, parts are
//! plugged together by a command, and what it returns becomes an exit status. The only
//! crate that prints, exits, reads the environment or the clock.

#![expect(
    unreachable_pub,
    reason = "a binary has no outside; `pub` says which module may use what"
)]

mod arenas;
mod args;
mod commands;
mod config;
mod confirm;
mod exit;
mod format;
mod open;
mod output;
mod process;
mod progress;
mod serve;
mod settings;
mod signals;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::output::Output;
use crate::settings::Settings;

fn main() -> ExitCode {
    arenas::bound();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return exit::unparsed(&answer),
    };
    let output = Output::new(cli.global.json);
    let runtime = tokio::runtime::Runtime::new().expect("the system gives a process threads");
    let outcome = runtime.block_on(async {
        let settings = Settings::resolve(&cli.global)?;
        telemetry::init(&settings)?;
        settings.warn();
        commands::run(cli.command, &settings, &output).await
    });
    // A read of standard input that nobody waits for any more would keep the process here.
    runtime.shutdown_background();
    exit::status(outcome, &output)
}
