//! An index of as many events as are planned for, made of real footers, and plans that it answers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dacapo_archive::store::Store;
use dacapo_archive::store::file::FileStore;
use dacapo_archive::{SegmentBuilder, StreamWriter};
use dacapo_event::{Event, Message, StreamName, Timestamp};
use dacapo_integration::services;
use dacapo_s3::{S3Options, S3Store};

use crate::archive::{Archive, bytes_in};
use crate::events;
use crate::report::{Bar, Report};

/// Streams, which are written at the same time, and what is in each.
const STREAMS: u64 = 2;
const SEGMENTS: u64 = 2_000;
const SEGMENT_EVENTS: u64 = 3_750;

/// New segments on S3, as an archiver of a lively bus makes them.
const NEW_SEGMENTS: u64 = 1_000;
const NEW_SEGMENT_EVENTS: u64 = 2_000;

/// Different keys and types among the events.
const KEYS: u64 = 200_000;
const TYPES: u64 = 200;

/// Between two events of a stream: half a year for all of them.
const APART: Duration = Duration::from_secs(2);

/// When the first event was.
const BEGINNING: u64 = 1_700_000_000;

pub(crate) fn measure(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    on_s3(archive, report)?;
    of_many(archive, runs, report)
}

/// The first sync of an archive on S3, by what it reads.
fn on_s3(archive: &Archive, report: &mut Report) -> Result<()> {
    let place = format!("s3://{}/{}", services::s3().bucket, services::unique("bench"));
    archive.inside(&["segments", &place, &archive.path("events.ndjson")])?;
    archive.dacapo_on(&place, &["index", "sync", "--json"])?;
    let said = archive.said()?;
    archive.dacapo_on(&place, &["archive", "ls", "--json"])?;
    let bytes = archive.said()?["streams"][0]["bytes"].as_f64().context("ls tells the bytes")?;
    ensure!(said["added"] == NEW_SEGMENTS, "not {NEW_SEGMENTS} segments were added: {said}");
    let told = |what: &str| said[what].as_f64().with_context(|| format!("{what} is not told"));
    let read = told("bytes_read")? / bytes;
    report.add("sync on S3: read of the archive".to_owned(), Bar::AtMost(0.01), vec![read]);
    let requests = told("requests")? / NEW_SEGMENTS as f64;
    report.add("sync on S3: requests a segment".to_owned(), Bar::AtMost(1.1), vec![requests]);
    Ok(())
}

/// Makes the new segments, of the bodies of a file of events.
pub(crate) fn segments(place: &str, input: &str) -> Result<()> {
    let bodies = events::bodies(Path::new(input))?.collect::<Result<Vec<_>>>()?;
    run(async {
        let options = S3Options::from_url(place).context("it is a URL of S3")?;
        let store = Arc::new(S3Store::connect(options).await?);
        let body = |sequence: u64| bodies[sequence as usize % bodies.len()].clone();
        write(store, "new", NEW_SEGMENTS, NEW_SEGMENT_EVENTS, body).await
    })
}

/// The index of as many events as are planned for, and a plan that it answers.
fn of_many(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let place = archive.path("many");
    std::fs::create_dir_all(&place)?;
    std::thread::scope(|scope| {
        let place = &place;
        let writers: Vec<_> =
            (0..STREAMS).map(|stream| scope.spawn(move || write_many(place, stream))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("it does not panic"))
    })?;
    // Nothing of another archive is left in it.
    archive.dacapo_on(&place, &["index", "rebuild"])?;
    let index = bytes_in(&archive.folder.join("index"))?;
    let events = STREAMS * SEGMENTS * SEGMENT_EVENTS;
    let name = "index of 15 million: bytes an event".to_owned();
    report.add(name, Bar::AtMost(5.0), vec![index as f64 / events as f64]);

    // Ranges that begin and end within segments, so that not all of it is in the index.
    let (from, to) = (BEGINNING + 1_000_001, BEGINNING + 9_000_001);
    let [from, to] = [from, to].map(|seconds| Timestamp::from_secs(seconds).to_string());
    let mut seconds = Vec::new();
    for _ in 0..runs {
        let args = ["plan", "--exact", "--from", &from, "--to", &to, "--type", "type-17"];
        seconds.push(archive.dacapo_on(&place, &args)?.wall_seconds);
    }
    report.add("plan on 15 million: seconds".to_owned(), Bar::AtMost(1.0), seconds);
    Ok(())
}

/// Writes one stream of many: bodies are empty, because an index does not hold them.
fn write_many(place: &str, stream: u64) -> Result<()> {
    run(async {
        let store = Arc::new(FileStore::open(Path::new(place)).await?);
        let name = format!("many-{stream}");
        write(store, &name, SEGMENTS, SEGMENT_EVENTS, |_| Vec::new()).await
    })
}

/// Writes one stream.
async fn write(
    store: Arc<dyn Store>,
    name: &str,
    segments: u64,
    segment_events: u64,
    body: impl Fn(u64) -> Vec<u8>,
) -> Result<()> {
    let name: StreamName = name.parse()?;
    let now = || Timestamp::from_secs(BEGINNING);
    let mut writer = StreamWriter::open(store, name.clone(), now).await?;
    for _ in 0..segments {
        let mut builder = SegmentBuilder::new(name.clone(), writer.next());
        for _ in 0..segment_events {
            let sequence = builder.next();
            let event = event(&name, sequence, body(sequence));
            builder.push(event).context("it is a usual event")?;
        }
        ensure!(!builder.is_full(), "a segment has no room for {segment_events} events");
        writer.append(&builder.seal(writer.tip(), now(), None)?).await?;
    }
    Ok(())
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn event(stream: &StreamName, sequence: u64, body: Vec<u8>) -> Event {
    // Spread as a hash does, and the same in every run.
    let salt = stream.as_str().bytes().map(u64::from).sum::<u64>();
    let spread = (sequence + (salt << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let seconds = BEGINNING + sequence * APART.as_secs();
    Event {
        sequence,
        archived_at: Timestamp::from_secs(seconds),
        time: Timestamp::from_secs(seconds),
        id: format!("{spread:016x}-{stream}"),
        kind: format!("type-{}", (spread >> 40) % TYPES),
        key: Some(format!("key-{}", (spread >> 20) % KEYS)),
        message: Message { body: body.into(), ..Message::default() },
    }
}
