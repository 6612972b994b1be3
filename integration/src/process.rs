//! A process that is ended by its pid, and never outlives the one that started it.
//!
//! Each gets a process group of its own and a *lifeline*: a shell that waits for the end of a pipe
//! whose other end only the harness holds. However the harness ends, even by `kill -9`, the pipe
//! ends with it, and the lifeline kills the group.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

/// How long a killed process may take to be gone: the kernel frees gigabytes at worst.
const GONE_DEADLINE: Duration = Duration::from_secs(20);

/// A signal that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks it to end in order.
    Terminate,
    /// What Ctrl-C sends.
    Interrupt,
    /// What a terminal that is closed sends.
    Hangup,
    /// Ends it at once.
    Kill,
    /// Halts it where it is, as a dead machine would; connections stay open.
    Stop,
    /// Lets a halted one go on.
    Continue,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Signal::Terminate => "TERM",
            Signal::Hangup => "HUP",
            Signal::Interrupt => "INT",
            Signal::Kill => "KILL",
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
        }
    }
}

/// Sends `signal` to the process `pid`.
///
/// # Errors
/// There is no such process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    send(&pid.to_string(), signal)
}

fn send(pid_or_group: &str, signal: Signal) -> Result<()> {
    // The shell's own `kill`: `/bin/kill` is not on every machine, and `libc::kill` is unsafe.
    let status = Command::new("sh")
        .args(["-c", r#"kill -s "$1" -- "$2""#, "kill", signal.name(), pid_or_group])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("failed to run `sh`")?;
    ensure!(status.success(), "there is no process {pid_or_group} to send {signal:?} to");
    Ok(())
}

/// Kills a process when the harness ends before it.
#[derive(Debug)]
pub struct Lifeline(Child);

impl Lifeline {
    /// Ties the process `pid` to this one.
    ///
    /// # Errors
    /// No shell can be started.
    pub fn to_process(pid: u32) -> Result<Self> {
        Self::tie(&pid.to_string())
    }

    fn to_group(pid: u32) -> Result<Self> {
        Self::tie(&format!("-{pid}"))
    }

    fn tie(pid_or_group: &str) -> Result<Self> {
        let script = r#"trap "" HUP INT TERM; read -r line; kill -s KILL -- "$1""#;
        let shell = Command::new("sh")
            .args(["-c", script, "lifeline", pid_or_group])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start `sh`")?;
        Ok(Lifeline(shell))
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // Killed before its pipe closes, it kills nothing.
        self.0.kill().and_then(|()| self.0.wait()).expect("the shell is our child");
    }
}

/// A running server.
#[derive(Debug)]
pub struct Process {
    child: Child,
    _lifeline: Lifeline,
}

impl Process {
    /// Starts `command` with its output in the file `log`, which is appended to.
    ///
    /// # Errors
    /// The program is not there, or the log cannot be written.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("failed to open the log `{}`", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("failed to share the log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("failed to start `{program}`; run ./integration/test"))?;
        let lifeline = Lifeline::to_group(child.id())?;
        Ok(Process { child, _lifeline: lifeline })
    }

    /// Returns its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how it ended, or nothing while it runs.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("failed to ask for a child process")
    }

    /// Asks it to end in order, and returns how it did.
    ///
    /// # Errors
    /// It has not ended within `deadline`; it still runs.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            signal(self.pid(), Signal::Terminate)?;
        }
        let what = format!("process {} has ended", self.pid());
        wait::until(&what, deadline, || self.ended())
    }

    /// Ends it and everything that it started at once; returns when it is gone.
    ///
    /// # Errors
    /// It is not gone within the deadline.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            send(&format!("-{}", self.pid()), Signal::Kill)?;
        }
        let what = format!("process {} is gone", self.pid());
        wait::until(&what, GONE_DEADLINE, || self.ended()).map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failure here cannot be handled, and the lifeline is still there to end the group.
        self.kill().ok();
    }
}

#[cfg(test)]
mod tests;
