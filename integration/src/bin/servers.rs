//! `servers COMMAND…`: starts private servers, runs the command with their addresses in its
//! environment, stops them, and ends with the command's exit code.
//!
//! For a person: `servers bash`, then `$DACAPO_TEST_AMQP` and `$DACAPO_TEST_S3_ENDPOINT`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::servers::Servers;

/// The harness itself failed; no test framework ends with this.
const HARNESS_FAILED: u8 = 125;

#[expect(clippy::print_stderr, reason = "says why it failed and where the logs are")]
fn main() -> ExitCode {
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("servers: {error:#}");
            ExitCode::from(HARNESS_FAILED)
        }
    }
}

#[expect(clippy::print_stderr, reason = "says where the logs are")]
fn run(command: &[OsString]) -> Result<u8> {
    let mut folder = RunFolder::create()?;
    // Logs are worth reading after any failure, and the harness's own are the first.
    folder.keep();
    let servers = Servers::start(&folder)?;
    let code = servers.run(command)?;
    drop(servers);
    if code == 0 {
        folder.discard();
    } else {
        eprintln!("servers: the logs of the servers are in {}", folder.path().display());
    }
    Ok(code)
}
