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
    let before = [threads(broker)?, threads(this)?].concat();
    let processors = numbers(&allowed(&format!("/proc/{broker}/status"))?)?;
    let [rest @ .., last] = &processors[..] else { return Ok(None) };
    if rest.is_empty() {
        return Ok(None);
    }
    let rest: Vec<String> = rest.iter().map(u32::to_string).collect();
    let moved = allow(&["--all-tasks"], broker, &rest.join(","))
        .and_then(|()| allow(&["--all-tasks"], this, &last.to_string()));
    let done = moved.and_then(|()| work());
    for (thread, list) in before {
        // One that has ended meanwhile needs nothing.
        drop(allow(&[], thread, &list));
    }
    done.map(Some)
}

/// Returns the threads of a process and where each may run: a broker binds some to one processor.
fn threads(pid: u32) -> Result<Vec<(u32, String)>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let thread = entry.file_name().to_string_lossy().parse()?;
        if let Ok(list) = allowed(&entry.path().join("status").to_string_lossy()) {
            threads.push((thread, list));
        }
    }
    Ok(threads)
}

/// Returns the processors that a thread may run on, as Linux lists them: `0-3,8`.
fn allowed(status: &str) -> Result<String> {
    let status = fs::read_to_string(status)?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.context("no processors are told of it")?.trim().to_owned())
}

/// Moves a thread, or with `--all-tasks` every one of a process; those that it starts later follow.
fn allow(how: &[&str], pid: u32, list: &str) -> Result<()> {
    let pid = pid.to_string();
    let output = Command::new("taskset")
        .args(how)
        .args(["--cpu-list", "--pid", list, &pid])
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
