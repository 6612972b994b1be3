//! Memory is bounded: what a command takes at its peak does not grow with the archive, and stays
//! under what is documented with large bodies, many streams, slow targets and slow stores.

use std::fs;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::process::Signal;
use dacapo_integration::wait;

use self::bodies::Bodies;
use self::peak::DEADLINE;
use super::archiver::hold::{Hold, HoldingProxy};
use super::platform::Platform;
use super::services;
use super::witness::Queue;

mod bodies;
mod gate;
mod peak;
mod tenfold;

/// What the documentation promises of every command with the default budget.
const PEAK_BYTES_MAX: u64 = 200_000_000;

/// What does not change while it is asked so often has come to rest: some ten seconds.
const ALIKE: u32 = 300;

#[track_caller]
fn check_bounded(what: &str, peak: u64) {
    assert!(peak <= PEAK_BYTES_MAX, "{what} took {peak} bytes");
}

/// Imports bodies as one stream and returns the import's peak.
#[track_caller]
fn import(dacapo: &Dacapo, stream: &str, bodies: &Bodies, more: &[&str]) -> u64 {
    let path = dacapo.folder().join("input.ndjson");
    bodies.write(&path).unwrap();
    let args = ["archive", "import", "input.ndjson", "--name", stream];
    let args: Vec<&str> = args.iter().chain(more).copied().collect();
    let peak = peak::of(dacapo, &args);
    fs::remove_file(path).unwrap();
    peak
}

/// Returns what reads the whole archive and tells little. A rebuild of the index is none of it: it
/// writes something for each segment, and sled keeps most of that in memory.
fn readers() -> [(&'static str, &'static [&'static str]); 3] {
    const NONE: &str = "size(body) < 0";
    [
        ("verify", &["archive", "verify"]),
        ("plan", &["plan", "--exact", "--where", NONE, "--where-errors", "skip"]),
        ("events", &["events", "--where", NONE, "--where-errors", "skip", "--limit", "0"]),
    ]
}

/// Checks all that reads the whole archive, and a compaction of it.
#[track_caller]
fn check_readers(dacapo: &Dacapo) {
    for (what, args) in readers() {
        check_bounded(what, peak::of(dacapo, args));
    }
    check_bounded("rebuild", peak::of(dacapo, &["index", "rebuild"]));
    check_bounded("replay", peak::of(dacapo, &["replay", "--to-file", "out.ndjson"]));
    fs::remove_file(dacapo.folder().join("out.ndjson")).expect("the command wrote it");
}

/// Checks a compaction that merges and deletes what can be.
#[track_caller]
fn check_compaction(dacapo: &Dacapo) {
    let args = ["archive", "compact", "--older-than", "0s", "--grace", "0s"];
    check_bounded("compact", peak::of(dacapo, &args));
}

#[test]
fn large_bodies_among_small_ones_fit_the_budget() {
    let platform = Platform::new();
    let dacapo = &platform.dacapo;
    check_bounded("import", import(dacapo, "history", &Bodies::mixed(24), &[]));
    check_bounded("import", import(dacapo, "in-pieces", &Bodies::mixed(12), &["--roll-bytes=1Mi"]));
    check_readers(dacapo);
    let queue = Queue::new("memory");
    check_bounded("replay", peak::of(dacapo, &["replay", "--to-queue", queue.name()]));
    check_compaction(dacapo);
}

#[test]
fn fifty_streams_at_once_fit_the_budget() {
    let dacapo = Dacapo::new();
    let names: Vec<String> = (0..50).map(|stream| format!("stream-{stream}.ndjson")).collect();
    for name in &names {
        Bodies::small(4_000_000).write(&dacapo.folder().join(name)).unwrap();
    }
    let args = ["archive", "import", "--roll-bytes=1Mi"];
    let args: Vec<&str> = args.into_iter().chain(names.iter().map(String::as_str)).collect();
    check_bounded("import", peak::of(&dacapo, &args));
    check_readers(&dacapo);
    check_compaction(&dacapo);
}

/// Behind a store that takes no segment the queue fills, not the archiver.
#[test]
fn an_archiver_of_large_bodies_before_a_stuck_store_fits_the_budget() {
    let proxy = HoldingProxy::start(&services::s3().endpoint, Hold::Request("/segments/"));
    let mut platform = Platform::on(&services::amqp(), Dacapo::on_s3());
    platform.dacapo.set("AWS_ENDPOINT_URL", &proxy.endpoint());
    let archiver = platform.start_archiver(&[]);
    Bodies::mixed(30).publish(&platform.exchange);
    proxy.await_held(DEADLINE);
    // What it takes beside the segment that hangs: another one, and then no more.
    let (mut taken, mut alike) = (None, 0);
    wait::until("it takes no more", DEADLINE, || {
        let before = taken.replace(archiver.metric("unacked"));
        alike = if taken == before { alike + 1 } else { 0 };
        Ok((alike == ALIKE && taken > Some(Some(0.0))).then_some(()))
    })
    .unwrap();
    let peak = peak::so_far(&archiver.running).expect("it runs");
    archiver.running.signal(Signal::Kill).unwrap();
    check_bounded("archiver", peak);
}
