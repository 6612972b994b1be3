//! Memory is bounded: what a command takes at its peak does not grow with the archive, and stays
//! under what is documented with large bodies, many streams, slow targets and slow stores.

use std::fs;
use std::path::Path;
use std::time::Duration;

use dacapo_integration::dacapo::{Dacapo, Running};
use dacapo_integration::process::Signal;
use dacapo_integration::{environment, wait};

use self::bodies::Bodies;
use super::archiver::hold::{Hold, HoldingProxy};
use super::platform::Platform;
use super::services;
use super::witness::Queue;

mod bodies;

/// What the documentation promises of every command with the default budget.
const PEAK_BYTES_MAX: u64 = 200_000_000;

/// An archive of this size has filled every buffer that a command has, if no other is asked for.
const ARCHIVE_BYTES: u64 = 100_000_000;

/// How much larger the second archive is.
const LARGER: u64 = 10;

/// What its peak may be of that of the first, in percent. On an idle machine it is 100 to 107; how a
/// busy one shares the work among threads may add some more.
const PEAK_PERCENT_MAX: u64 = 120;

/// How often the smaller archive is measured; the greatest peak counts.
const RUNS: usize = 3;

/// How long a command on a gigabyte may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(600);

/// What does not change while it is asked so often has come to rest: some ten seconds.
const ALIKE: u32 = 300;

/// Runs a command that must succeed, and returns the most bytes that it ever had resident.
#[track_caller]
fn peak(dacapo: &Dacapo, args: &[&str]) -> u64 {
    let mut running = dacapo.spawn(args);
    let mut peak = 0;
    let ended = wait::until("the command ends", DEADLINE, || {
        // It never falls, so that only the last moment before the end is missed.
        peak = peak_so_far(&running).unwrap_or(peak);
        Ok((!running.is_running()?).then_some(()))
    });
    let output = running.wait(DEADLINE);
    ended.unwrap();
    output.check(0);
    assert!(peak > 0, "nothing was measured of {args:?}");
    peak
}

/// Returns the most bytes that a process ever had resident; nothing once it is over.
fn peak_so_far(running: &Running) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[track_caller]
fn check_bounded(what: &str, peak: u64) {
    assert!(peak <= PEAK_BYTES_MAX, "{what} took {peak} bytes");
}

/// Imports bodies as one stream and returns the import's peak.
#[track_caller]
fn import(dacapo: &Dacapo, stream: &str, bodies: &Bodies) -> u64 {
    let path = dacapo.folder().join("input.ndjson");
    bodies.write(&path).unwrap();
    let peak = peak(dacapo, &["archive", "import", "input.ndjson", "--name", stream]);
    fs::remove_file(path).unwrap();
    peak
}

/// Returns the peaks of what reads the whole archive.
#[track_caller]
fn peaks_of_reading(dacapo: &Dacapo) -> Vec<(&'static str, u64)> {
    let commands: [(&str, &[&str]); 4] = [
        ("verify", &["archive", "verify"]),
        ("rebuild", &["index", "rebuild"]),
        ("plan", &["plan", "--exact", "--where", "size(body) < 0", "--where-errors", "skip"]),
        ("replay", &["replay", "--to-file", "out.ndjson"]),
    ];
    let measure = |(name, args): (&'static str, &[&str])| (name, peak(dacapo, args));
    let peaks = commands.into_iter().map(measure).collect();
    remove(&dacapo.folder().join("out.ndjson"));
    peaks
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("the command wrote it");
}

#[test]
fn a_tenfold_archive_takes_no_more_memory() {
    let asked = environment::get(environment::MEMORY_BYTES);
    let bytes = asked.map_or(ARCHIVE_BYTES, |bytes| bytes.parse().expect("a number of bytes"));
    let measure = |bytes: u64| {
        let dacapo = Dacapo::new();
        let imported = import(&dacapo, "history", &Bodies::small(bytes));
        let mut peaks = peaks_of_reading(&dacapo);
        peaks.push(("import", imported));
        peaks
    };
    // How threads happen to share the work moves a peak by some percent.
    let runs = [(); RUNS].map(|()| measure(bytes));
    let large = measure(bytes * LARGER);
    for (at, (what, large)) in large.into_iter().enumerate() {
        let small = runs.iter().map(|run| run[at].1).max().expect("there is a run");
        check_bounded(what, large);
        assert!(
            large * 100 <= small * PEAK_PERCENT_MAX,
            "{what} took {small} bytes of memory for {bytes}, and {large} for {LARGER} times as many"
        );
    }
}

#[test]
fn large_bodies_among_small_ones_fit_the_budget() {
    let platform = Platform::new();
    let imported = import(&platform.dacapo, "history", &Bodies::mixed(40));
    check_bounded("import", imported);
    for (what, peak) in peaks_of_reading(&platform.dacapo) {
        check_bounded(what, peak);
    }
    let queue = Queue::new("memory");
    check_bounded("replay", peak(&platform.dacapo, &["replay", "--to-queue", queue.name()]));
}

#[test]
fn fifty_streams_at_once_fit_the_budget() {
    let dacapo = Dacapo::new();
    for stream in 0..50 {
        import(&dacapo, &format!("stream-{stream}"), &Bodies::small(4_000_000));
    }
    for (what, peak) in peaks_of_reading(&dacapo) {
        check_bounded(what, peak);
    }
}

#[test]
fn an_archiver_of_ten_times_as_many_events_takes_no_more_memory() {
    let platform = Platform::new();
    let archiver = platform.start_archiver(&[]);
    let mut published = 0;
    let mut after = |bytes: u64| {
        published += Bodies::small(bytes).publish(&platform.exchange);
        archiver.await_metric("events_total", published);
        peak_so_far(&archiver.running).expect("it runs")
    };
    let small = after(ARCHIVE_BYTES);
    let large = after(ARCHIVE_BYTES * (LARGER - 1));
    archiver.stop();
    check_bounded("archiver", large);
    assert!(large * 100 <= small * PEAK_PERCENT_MAX, "{small} bytes, then {large}");
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
    let peak = peak_so_far(&archiver.running).expect("it runs");
    archiver.running.signal(Signal::Kill).unwrap();
    check_bounded("archiver", peak);
}
