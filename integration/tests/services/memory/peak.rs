//! What a process takes in memory at its peak, and when it has come to rest.

use std::fs;
use std::time::Duration;

use dacapo_integration::dacapo::{Dacapo, Running};
use dacapo_integration::wait;

/// How long a command on a gigabyte may take on a loaded machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(600);

/// How often in a row a process that rests is seen to sleep: half a second.
const SLEEPS: u32 = 20;

/// Runs a command that must succeed, and returns the most bytes that it ever had resident.
#[track_caller]
pub(super) fn of(dacapo: &Dacapo, args: &[&str]) -> u64 {
    until_end(dacapo.spawn(args))
}

/// Waits for a command that must succeed, and returns the most bytes that it ever had resident.
#[track_caller]
pub(super) fn until_end(mut running: Running) -> u64 {
    let mut peak = 0;
    let ended = wait::until("the command ends", DEADLINE, || {
        // It never falls, so that only the last moment before the end is missed.
        peak = so_far(&running).unwrap_or(peak);
        Ok((!running.is_running()?).then_some(()))
    });
    let output = running.wait(DEADLINE);
    ended.unwrap();
    output.check(0);
    assert!(peak > 0, "nothing was measured");
    peak
}

/// Returns the most bytes that a process ever had resident; nothing once it is over.
pub(super) fn so_far(running: &Running) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Waits until a process does nothing any more, because all its buffers are full: all its threads
/// sleep. One that is only kept from a processor does not.
#[track_caller]
pub(super) fn await_rest(running: &Running) {
    let mut sleeps = 0;
    let rests = || {
        sleeps = if is_asleep(running) { sleeps + 1 } else { 0 };
        Ok((sleeps == SLEEPS).then_some(()))
    };
    wait::until("it rests", DEADLINE, rests).unwrap();
}

fn is_asleep(running: &Running) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", running.pid())).expect("it runs");
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in brackets; a thread that has ended has none.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('S'))
    })
}
