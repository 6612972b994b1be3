//! Commands, and what they cost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use dacapo_integration::services;

/// What a command took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall_seconds: f64,
    /// User and system time of the whole process.
    pub(crate) cpu_seconds: f64,
}

impl Cost {
    /// Returns how many of so many events a second that is.
    pub(crate) fn rate(&self, events: u64) -> f64 {
        events as f64 / self.wall_seconds
    }

    /// Returns the microseconds of a processor for each of so many events.
    pub(crate) fn cpu_micros(&self, events: u64) -> f64 {
        self.cpu_seconds * 1e6 / events as f64
    }
}

/// How the C library keeps freed memory in every side of a pair, as `dacapo` has it (`arenas` in
/// dacapo-cli).
const ARENAS: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "524288"),
    ("MALLOC_TRIM_THRESHOLD_", "4194304"),
];

/// Runs a program that must succeed; the shell's `time` tells wall, user and system seconds.
/// Standard output goes to `output`, errors to `log`.
pub(crate) fn run(program: &Path, args: &[&str], folder: &Path) -> Result<Cost> {
    let folder = fs::canonicalize(folder)?;
    let log = folder.join("log");
    let output = Command::new("bash")
        .arg("-c")
        .arg("TIMEFORMAT='%R %U %S'; time \"$@\" >\"$OUTPUT\" 2>\"$LOG\"")
        .arg("bench")
        .arg(program)
        .args(args)
        .envs(ARENAS)
        .env("LOG", &log)
        .env("OUTPUT", folder.join("output"))
        .env("DACAPO_INDEX", folder.join("index"))
        .env("DACAPO_STATE", folder.join("state"))
        .env("DACAPO_AMQP", services::amqp())
        .env("AWS_ENDPOINT_URL", services::s3().endpoint)
        .stdin(Stdio::null())
        .output()
        .context("failed to start bash")?;
    let said = fs::read_to_string(log).unwrap_or_default();
    ensure!(output.status.success(), "{} {args:?} failed: {said}", program.display());
    let times = String::from_utf8(output.stderr)?;
    let times: Vec<f64> = times.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [wall_seconds, user, system] = times[..] else {
        anyhow::bail!("`time` printed {times:?}");
    };
    Ok(Cost { wall_seconds, cpu_seconds: user + system })
}

/// Returns the user and system time of a process that runs.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    /// Linux counts these in hundredths of a second (`USER_HZ`), whatever the kernel does inside.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may have spaces in it (proc_pid_stat(5)); user and system time are fields
    // 14 and 15, the first after the name is field 3.
    let (_, fields) = stat.rsplit_once(')').context("no process is told like this")?;
    let mut fields = fields.split_whitespace().skip(14 - 3);
    let mut ticks =
        || Ok::<f64, anyhow::Error>(fields.next().context("a field is missing")?.parse()?);
    Ok((ticks()? + ticks()?) / TICKS_A_SECOND)
}

/// Returns the `dacapo` that is measured.
#[expect(clippy::disallowed_methods, reason = "the harness says where the binary is")]
pub(crate) fn dacapo() -> Result<PathBuf> {
    let binary = std::env::var_os("DACAPO_TEST_BIN").context("run it with `just bench`")?;
    Ok(PathBuf::from(binary))
}
