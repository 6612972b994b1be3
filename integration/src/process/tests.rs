//! The promise that no server outlives its harness.

use std::path::PathBuf;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn log(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("log")
}

fn is_running(pid: u32) -> bool {
    // A zombie has no command line: it has ended, only its parent has not asked yet.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn a_killed_process_takes_its_children_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 600 & echo $!; wait"]);
    let mut process = Process::start(&mut command, &log(&folder)).unwrap();
    let child: u32 = wait::until("the child's pid is written", DEADLINE, || {
        Ok(std::fs::read_to_string(log(&folder))?.trim().parse().ok())
    })
    .unwrap();
    // Its number is written before it has become `sleep`, and meanwhile it has no command line.
    wait::until("the child runs", DEADLINE, || Ok(is_running(child).then_some(()))).unwrap();
    process.kill().unwrap();
    wait::until("the child is gone", DEADLINE, || Ok((!is_running(child)).then_some(()))).unwrap();
}

#[test]
fn a_process_ends_when_the_other_end_of_its_lifeline_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(Command::new("sleep").arg("600"), &log(&folder)).unwrap();
    drop(process._lifeline.0.stdin.take());
    let status = wait::until("it was killed", DEADLINE, || process.ended()).unwrap();
    assert!(!status.success());
}

#[test]
fn one_that_ends_in_order_tells_how() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut process = Process::start(&mut command, &log(&folder)).unwrap();
    wait::until("the trap is set", DEADLINE, || {
        Ok(std::fs::read_to_string(log(&folder))?.contains("ready").then_some(()))
    })
    .unwrap();
    assert_eq!(process.terminate(DEADLINE).unwrap().code(), Some(7));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Process::start(&mut Command::new("/nowhere/server"), &log(&folder)).unwrap_err();
    assert_eq!(error.to_string(), "failed to start `/nowhere/server`; run ./integration/test");
}
