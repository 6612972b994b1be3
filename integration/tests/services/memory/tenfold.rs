//! Ten times the archive, and no more memory.
//!
//! A peak is the greatest of many states that a command comes through, and a longer run comes
//! through more of them. So stores and targets are slow here for once: what waits for them is then
//! full in a short run as in a long one.

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::{environment, wait};
use serde_json::json;

use super::super::platform::{Archiver, Platform};
use super::super::services;
use super::super::witness::Queue;
use super::bodies::Bodies;
use super::gate::Gate;
use super::peak::{self, DEADLINE};
use super::{check_bounded, readers};

/// An archive of this size has filled every buffer that a command has, if no other is asked for.
const ARCHIVE_BYTES: u64 = 100_000_000;

/// How much larger the second archive is.
const LARGER: u64 = 10;

/// What its peak may be of that of the first, in percent.
const PEAK_PERCENT_MAX: u64 = 110;

/// How often a command is measured; the peak in the middle counts, because how threads happen to
/// share the work moves it by some percent.
const RUNS: usize = 3;

/// Small enough to be merged by a compaction.
const SMALL_SEGMENTS: &str = "--roll-bytes=4Mi";

/// Returns the size of the smaller archive.
fn archive_bytes() -> u64 {
    let asked = environment::get(environment::MEMORY_BYTES);
    asked.map_or(ARCHIVE_BYTES, |bytes| bytes.parse().expect("a number of bytes"))
}

/// Holds peaks of an archive against those of one that is ten times as large.
#[derive(Debug, Default)]
struct Tenfold {
    /// What took too much; all of it is told at the end, because an archive takes long to make.
    failures: Vec<String>,
}

impl Tenfold {
    /// Takes the peaks of one kind of work at the smaller size, and measures it at the larger, again
    /// only if it is too much.
    #[track_caller]
    #[expect(clippy::print_stderr, reason = "the figures, for `just memory`")]
    fn hold(&mut self, what: &str, small: &[u64], mut large: impl FnMut() -> u64) {
        let small = middle(small.to_vec());
        let mut peaks = vec![large()];
        let too_much = |peak: u64| peak * 100 > small * PEAK_PERCENT_MAX;
        while too_much(peaks[0]) && peaks.len() < RUNS {
            peaks.push(large());
        }
        peaks.iter().for_each(|peak| check_bounded(what, *peak));
        let large = middle(peaks);
        let figures = format!(
            "{what}: {} kB, then {} kB ({} %)",
            small / 1000,
            large / 1000,
            large * 100 / small
        );
        eprintln!("{figures}");
        if too_much(large) {
            self.failures.push(figures);
        }
    }

    #[track_caller]
    fn check(self) {
        assert!(self.failures.is_empty(), "too much for {LARGER} times as many: {self:?}");
    }
}

/// Returns the peak in the middle.
fn middle(mut peaks: Vec<u64>) -> u64 {
    peaks.sort_unstable();
    peaks[peaks.len() / 2]
}

/// Returns the peak of an import into a store that does not answer to the first segment until the
/// importer can do no more.
#[track_caller]
fn importing(bytes: u64) -> u64 {
    let mut dacapo = Dacapo::on_s3();
    Bodies::small(bytes).write(&dacapo.folder().join("input.ndjson")).unwrap();
    let gate = before_s3(&mut dacapo);
    let running = dacapo.spawn(["archive", "import", "input.ndjson", "--name", "history"]);
    gate.await_shut(DEADLINE);
    peak::await_rest(&running);
    gate.open();
    peak::until_end(running)
}

fn before_s3(dacapo: &mut Dacapo) -> Gate {
    let endpoint = services::s3().endpoint;
    let gate = Gate::before(endpoint.strip_prefix("http://").expect("a plain address"));
    dacapo.set("AWS_ENDPOINT_URL", &format!("http://{}", gate.address()));
    gate
}

/// Returns the peak of a replay to a queue whose broker confirms nothing until the replay can do no
/// more.
#[track_caller]
fn replaying(dacapo: &mut Dacapo) -> u64 {
    // What was confirmed need not stay.
    let queue = Queue::with_arguments("memory", &json!([["x-max-length", "I", 1_000]]));
    let url = services::amqp();
    let (login, place) = url.rsplit_once('@').expect("the URL has credentials");
    let (server, vhost) = place.split_once('/').unwrap_or((place, "%2f"));
    let gate = Gate::before(server);
    dacapo.set("DACAPO_AMQP", &format!("{login}@{}/{vhost}", gate.address()));
    let running = dacapo.spawn(["replay", "--to-queue", queue.name()]);
    gate.await_shut(DEADLINE);
    peak::await_rest(&running);
    gate.open();
    peak::until_end(running)
}

/// Returns the peak of a compaction that merges all and deletes what was merged.
#[track_caller]
fn compacting(dacapo: &Dacapo) -> u64 {
    let segments = dacapo.segments().len();
    let args = ["archive", "compact", "--older-than", "0s", "--grace", "0s"];
    let peak = peak::of(dacapo, &args);
    let left = dacapo.segments().len();
    assert!(left < segments / 4, "{segments} segments became {left}");
    peak
}

/// Returns an installation with an archive of about so many bytes.
#[track_caller]
fn archive(bytes: u64) -> Dacapo {
    let dacapo = Dacapo::new();
    super::import(&dacapo, "history", &Bodies::small(bytes), &[SMALL_SEGMENTS]);
    dacapo
}

#[test]
fn a_tenfold_import_takes_no_more_memory() {
    let bytes = archive_bytes();
    let mut tenfold = Tenfold::default();
    tenfold.hold("import", &[importing(bytes)], || importing(bytes * LARGER));
    tenfold.check();
}

#[test]
fn a_tenfold_archive_takes_no_more_memory() {
    let mut small = archive(archive_bytes());
    let mut large = archive(archive_bytes() * LARGER);
    let mut tenfold = Tenfold::default();
    for (what, args) in readers() {
        let peaks = [(); RUNS].map(|()| peak::of(&small, args));
        tenfold.hold(what, &peaks, || peak::of(&large, args));
    }
    let peaks = [(); RUNS].map(|()| replaying(&mut small));
    tenfold.hold("replay", &peaks, || replaying(&mut large));
    // Each of its outputs is made as the one before, and nothing is left to do a second time.
    tenfold.hold("compact", &[compacting(&small)], || compacting(&large));
    tenfold.check();
}

/// Waits until so many events are archived or in the segment that is filled, which rolls by its age
/// once nothing more comes; returns the archiver's peak.
#[track_caller]
fn peak_after(archiver: &Archiver, events: usize) -> u64 {
    let taken = || {
        let metric = |name| archiver.metric(name).unwrap_or(0.0);
        Ok((metric("events_total") + metric("unacked") >= events as f64).then_some(()))
    };
    wait::until("all is taken", DEADLINE, taken).unwrap();
    peak::so_far(&archiver.running).expect("it runs")
}

/// Behind a store that does not answer to its first segment until the archiver can do no more.
#[test]
fn an_archiver_of_ten_times_as_many_events_takes_no_more_memory() {
    let mut platform = Platform::on(&services::amqp(), Dacapo::on_s3());
    let gate = before_s3(&mut platform.dacapo);
    let archiver = platform.start_archiver(&[]);
    let bytes = archive_bytes();
    let mut published = Bodies::small(bytes).publish(&platform.exchange);
    gate.await_shut(DEADLINE);
    peak::await_rest(&archiver.running);
    gate.open();
    let small = peak_after(&archiver, published);
    published += Bodies::small(bytes * (LARGER - 1)).publish(&platform.exchange);
    let large = peak_after(&archiver, published);
    archiver.stop();
    let mut tenfold = Tenfold::default();
    tenfold.hold("archiver", &[small], || large);
    tenfold.check();
}
