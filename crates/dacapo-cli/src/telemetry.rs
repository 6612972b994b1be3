//! Logs: fixed words with values as fields, on stderr, as text or JSON.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::args::LogFormat;
use crate::exit::Failure;
use crate::settings::Settings;

/// The client library logs errors that are no trouble, and those that are come with a next step from
/// us. `--log lapin=debug` shows them.
const QUIET: &str = "lapin=off";

/// Starts logging.
pub fn init(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.log)).map_err(|error| {
        Failure::usage(format!(
            "--log `{}` is not a log filter: {error}; give a level (`warn`) or those of parts \
             (`warn,dacapo=debug`)",
            settings.log
        ))
    })?;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let layer = match settings.log_format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let filter = filter.and(filter_fn(tells_no_secret));
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    Ok(())
}

/// At `trace` these write what they send, and with that the login, whatever filter was asked for.
const TELL_WHAT_THEY_SEND: [&str; 4] = ["lapin", "amq_protocol", "aws_", "hyper"];

fn tells_no_secret(about: &Metadata<'_>) -> bool {
    *about.level() < Level::TRACE
        || !TELL_WHAT_THEY_SEND.iter().any(|library| about.target().starts_with(library))
}
