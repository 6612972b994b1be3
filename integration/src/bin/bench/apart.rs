//! The broker on processors of its own, so that what a client takes of one is not taken from it: as
//! where a broker has a machine to itself.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dacapo_integration::services;

/// Does something while the broker has all of its processors but the last to itself, and this process
/// and all that it starts have the last; nothing if the broker is none of ours, or there is only one.
pub(crate) fn apart<T>(work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let Some(broker) = services::broker_pid() else { return Ok(None) };
    let this = std::process::id();
    let (brokers, ours) = (allowed(broker)?, allowed(this)?);
    let processors = numbers(&brokers)?;
    let [rest @ .., last] = &processors[..] else { return Ok(None) };
    if rest.is_empty() {
        return Ok(None);
    }
    let rest: Vec<String> = rest.iter().map(u32::to_string).collect();
    allow(broker, &rest.join(","))?;
    allow(this, &last.to_string())?;
    let done = work();
    allow(broker, &brokers)?;
    allow(this, &ours)?;
    done.map(Some)
}

/// Returns the processors that a process may run on, as Linux lists them: `0-3,8`.
fn allowed(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.context("no processors are told of it")?.trim().to_owned())
}

/// Moves every thread of a process; those that it starts later follow.
fn allow(pid: u32, list: &str) -> Result<()> {
    let pid = pid.to_string();
    let output = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", list, &pid])
        .output()
        .context("failed to start taskset (util-linux)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "process {pid} was not moved to processors {list}: {said}");
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
