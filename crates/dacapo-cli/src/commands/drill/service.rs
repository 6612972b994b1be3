//! The service under test: started and stopped, or running already.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use dacapo_amqp::{Broker, queue_state};
use dacapo_drill::description::{Description, Query, Service, Stop};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::time::Instant;

use super::queries::{self, Told};
use crate::exit::Failure;
use crate::output::words;

/// How often it is asked whether it is ready: soon enough not to blur a recovery time of seconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A group of processes, ended at once when dropped.
#[derive(Debug)]
pub struct Group(Option<Pid>);

impl Group {
    /// Returns the group that a child was started in, which has its number.
    pub fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Group(pid.and_then(Pid::from_raw))
    }

    /// Sends a signal; a group that is gone is no error.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0
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
    child: Child,
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
    let group = Group::of(&child);
    Ok(Some(Running { child, group, stop: service.stop, stop_within: service.stop_within }))
}

impl Running {
    /// Waits until it ends by itself. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        told(self.child.wait().await)
    }

    /// Asks it to end, and kills it and whatever it started if it does not in time.
    pub async fn stop(mut self) {
        let signal = match self.stop {
            Stop::Terminate => Signal::TERM,
            Stop::Interrupt => Signal::INT,
            Stop::Kill => Signal::KILL,
        };
        // One that ended by itself has no group that is ours any more.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.group.signal(signal);
            if tokio::time::timeout(self.stop_within, self.child.wait()).await.is_err() {
                tracing::warn!("the service did not end in time and is killed");
            }
        }
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
                    Err(problem) => last = format!("its `ready` command: {problem}"),
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
