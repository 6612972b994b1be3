//! Logs: fixed words with values as fields, on stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
