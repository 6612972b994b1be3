//! A broker for one side of a pair. It has done nothing before: what one side leaves it to do, a log
//! to roll over and deleted queues to forget, would be the other side's cost.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use dacapo_integration::witness;
use serde_json::{Value, json};

use crate::timed;

/// The queue that each of them has.
pub(crate) const QUEUE: &str = "bench";

/// A broker is at rest when it has taken less than this part of a processor for [`QUIET`].
const REST: f64 = 0.1;
const QUIET: Duration = Duration::from_millis(500);

/// Longer than a broker has work left on any machine.
const REST_DEADLINE: Duration = Duration::from_secs(60);

/// Which processors it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Those that everything else has.
    Shared,
    /// All but the last to itself, and who publishes has that: as where a broker has a machine to
    /// itself, so that what a client takes of a processor is not taken from it.
    Apart,
}

/// A broker of the bench's own, ended when dropped.
pub(crate) struct Broker {
    // Declared before its folder, so that it ends first.
    rabbit: Rabbit,
    _folder: RunFolder,
}

impl Broker {
    /// Starts one with a queue that has these arguments (rows of name, tag and value).
    pub(crate) fn start(arguments: &Value) -> Result<Self> {
        let folder = RunFolder::create()?;
        let rabbit = Rabbit::start(&folder.path().join("rabbit"))?;
        let declare = json!({ "op": "declare_queue", "queue": QUEUE, "arguments": arguments });
        let declared = witness::raw_amqp(&rabbit.amqp_url(), &[declare])?;
        ensure!(declared[0]["error"].is_null(), "the queue was not declared: {}", declared[0]);
        Ok(Broker { rabbit, _folder: folder })
    }

    pub(crate) fn url(&self) -> String {
        self.rabbit.amqp_url()
    }

    /// Returns the seconds of a processor that it has taken since it started.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        timed::cpu_seconds(self.rabbit.pid())
    }

    /// Waits until it has nothing left to do.
    #[expect(clippy::disallowed_methods, reason = "a bench measures the wall clock")]
    pub(crate) fn rest(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let before = self.cpu_seconds()?;
            std::thread::sleep(QUIET);
            if self.cpu_seconds()? - before < REST * QUIET.as_secs_f64() {
                return Ok(());
            }
            ensure!(begun.elapsed() < REST_DEADLINE, "the broker does not come to rest");
        }
    }

    /// Does something beside it, once it is at rest.
    pub(crate) fn beside<T>(&self, place: Place, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.rest()?;
        match place {
            Place::Shared => work(),
            Place::Apart => self.apart(work),
        }
    }

    fn apart<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let this = std::process::id();
        let all = allowed(this)?;
        let processors = numbers(&all)?;
        let [rest @ .., last] = &processors[..] else { unreachable!("it runs on one of them") };
        ensure!(!rest.is_empty(), "there is only one processor");
        let rest: Vec<String> = rest.iter().map(u32::to_string).collect();
        allow(self.rabbit.pid(), &rest.join(","))?;
        // Those that it starts later follow.
        allow(this, &last.to_string())?;
        let done = work();
        allow(this, &all)?;
        done
    }
}

/// Returns the places that can be measured here.
pub(crate) fn places() -> Result<&'static [Place]> {
    let several = numbers(&allowed(std::process::id())?)?.len() > 1;
    Ok(if several { &[Place::Shared, Place::Apart] } else { &[Place::Shared] })
}

/// Returns the processors that a process may run on, as Linux lists them: `0-3,8`.
fn allowed(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.context("no processors are told of it")?.trim().to_owned())
}

/// Moves all threads of a process to these processors.
fn allow(pid: u32, list: &str) -> Result<()> {
    let output = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", list, &pid.to_string()])
        .output()
        .context("failed to start taskset (util-linux)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{pid} was not moved to processors {list}: {said}");
    Ok(())
}

/// Returns the numbers of a list such as `0-3,8`.
fn numbers(list: &str) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_numbers_and_ranges() {
        assert_eq!(numbers("0-3,8").unwrap(), [0, 1, 2, 3, 8]);
        assert_eq!(numbers("1").unwrap(), [1]);
        assert!(numbers("").is_err());
    }
}
