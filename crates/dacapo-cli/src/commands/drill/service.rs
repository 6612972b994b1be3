//! The service under test: started and stopped, or running already.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use dacapo_amqp::{Broker, queue_state};
use dacapo_drill::description::{Description, Query, Service, Stop};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::process::Child;
use tokio::time::Instant;

use super::queries::{self, Told};
use crate::exit::Failure;
use crate::output::words;

/// How often it is asked whether it is ready: soon enough not to blur a recovery time of seconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often a process is looked at that is to end by itself: soon enough not to be noticed.
const END_INTERVAL: Duration = Duration::from_millis(20);

/// A process with the group that it was started in, ended at once when dropped.
///
/// Invariant: the group is not signalled once its first process was reaped, for then its number may be
/// another one's.
#[derive(Debug)]
pub struct Group {
    /// The first process of it.
    pub child: Child,
    /// Its number, until it is reaped.
    pid: Option<Pid>,
}

impl Group {
    /// Returns the group that a child was started in, which has its number.
    pub fn of(child: Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Group { child, pid }
    }

    /// Waits until its first process ends, and ends what is left of the group. Cancel-safe.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        while !self.has_ended()? {
            tokio::time::sleep(END_INTERVAL).await;
        }
        self.signal(Signal::KILL);
        self.pid = None;
        self.child.wait().await
    }

    /// Whether its first process has ended, which is not reaped by this.
    fn has_ended(&self) -> std::io::Result<bool> {
        let Some(pid) = self.pid else { return Ok(true) };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(pid), look)?.is_some())
    }

    /// Sends a signal; a group that is gone is no error.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid
            && let Err(error) = kill_process_group(pid, signal)
        {
            tracing::debug!(%error, "a group of processes was not signalled");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A service that this drill started.
#[derive(Debug)]
pub struct Running {
    group: Group,
    stop: Stop,
    stop_within: Duration,
}

/// Starts the service, if the description has a command; what it says goes to `service.log`.
pub fn start(service: &Service, told: &Told) -> anyhow::Result<Option<Running>> {
    let Some(words) = &service.command else { return Ok(None) };
    let log = told.log("service.log").context("failed to open `service.log`")?;
    let env = service.env.iter().map(|(name, value)| (name, told.fill(&value.0)));
    let child = told
        .command(words)
        .envs(env)
        .stdout(Stdio::from(log.try_clone().context("failed to share `service.log`")?))
        .stderr(log)
        .spawn()
        .map_err(|error| {
            Failure::configuration(format!("failed to start the service `{}`: {error}", words[0]))
        })?;
    let group = Group::of(child);
    Ok(Some(Running { group, stop: service.stop, stop_within: service.stop_within }))
}

impl Running {
    /// Waits until it ends by itself. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        told(self.group.ended().await)
    }

    /// Asks it to end, and kills it and whatever it started if it does not in time. Returns how it had
    /// ended, if it had by itself.
    pub async fn stop(mut self) -> Option<String> {
        let signal = match self.stop {
            Stop::Terminate => Signal::TERM,
            Stop::Interrupt => Signal::INT,
            Stop::Kill => Signal::KILL,
        };
        if !matches!(self.group.has_ended(), Ok(false)) {
            return Some(self.ended().await);
        }
        self.group.signal(signal);
        if tokio::time::timeout(self.stop_within, self.group.ended()).await.is_err() {
            tracing::warn!("the service did not end in time and is killed");
        }
        None
    }
}

fn told(ended: std::io::Result<ExitStatus>) -> String {
    ended.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// Waits until the service is ready.
pub async fn ready(description: &Description, broker: &Broker, told: &Told) -> anyhow::Result<()> {
    let service = &description.service;
    let deadline = Instant::now() + service.ready_within;
    let mut last;
    loop {
        match &service.ready {
            Some(words) => {
                let how = dacapo_drill::description::How::Command(words.clone());
                let query = Query { how, timeout: service.ready_within };
                match queries::ask(&query, told).await {
                    Ok(_) => return Ok(()),
                    Err(problem) => last = format!("its `ready` command: {}", told.hide(&problem)),
                }
            }
            None => match queue_state(broker, &description.queue).await {
                Ok(Some(state)) if state.consumers > 0 => return Ok(()),
                Ok(Some(_)) => last = format!("nobody consumes queue `{}`", description.queue),
                Ok(None) => last = format!("there is no queue `{}`", description.queue),
                Err(error) if error.is_transient() => last = words(&error),
                Err(error) => return Err(error.into()),
            },
        }
        if Instant::now() >= deadline {
            let within = service.ready_within;
            let problem = format!("the service is not ready within {within:?}: {last}");
            return Err(Failure::unavailable(problem).into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::*;

    fn running(command: &str) -> Running {
        let mut child = Command::new("sh");
        child.args(["-c", command]).process_group(0).kill_on_drop(true);
        Running {
            group: Group::of(child.spawn().unwrap()),
            stop: Stop::Terminate,
            stop_within: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn a_service_that_ended_before_it_was_stopped_is_told() {
        let mut died = running("exit 3");
        assert_eq!(died.ended().await, "exit status: 3");
        assert_eq!(died.group.pid, None, "its number may be another one's");
        assert_eq!(died.stop().await.as_deref(), Some("exit status: 3"));
        assert_eq!(running("sleep 600").stop().await, None);
    }
}
