//! An index of as many events as are planned for, made of real footers, and plans that it answers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dacapo_archive::store::file::FileStore;
use dacapo_archive::{SegmentBuilder, StreamWriter};
use dacapo_event::{Event, Message, Timestamp};

use crate::archive::{Archive, bytes_in};
use crate::report::{Bar, Report};

/// Streams, which are written at the same time, and what is in each.
const STREAMS: u64 = 2;
const SEGMENTS: u64 = 2_000;
const SEGMENT_EVENTS: u64 = 3_750;

/// Different keys and types among the events.
const KEYS: u64 = 200_000;
const TYPES: u64 = 200;

/// Between two events of a stream: half a year for all of them.
const APART: Duration = Duration::from_secs(2);

/// When the first event was.
const BEGINNING: u64 = 1_700_000_000;

pub(crate) fn measure(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let place = archive.path("many");
    std::fs::create_dir_all(&place)?;
    std::thread::scope(|scope| {
        let place = &place;
        let writers: Vec<_> =
            (0..STREAMS).map(|stream| scope.spawn(move || write(place, stream))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("it does not panic"))
    })?;
    archive.dacapo_on(&place, &["index", "sync"])?;
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

/// Writes one stream: bodies are empty, because an index does not hold them.
fn write(place: &str, stream: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let store = Arc::new(FileStore::open(Path::new(place)).await?);
        let name: dacapo_event::StreamName = format!("many-{stream}").parse()?;
        let now = || Timestamp::from_secs(BEGINNING);
        let mut writer = StreamWriter::open(store, name.clone(), now).await?;
        for _ in 0..SEGMENTS {
            let mut builder = SegmentBuilder::new(name.clone(), writer.next());
            for _ in 0..SEGMENT_EVENTS {
                builder.push(event(stream, builder.next())).context("it is a usual event")?;
            }
            ensure!(!builder.is_full(), "a segment has no room for {SEGMENT_EVENTS} events");
            writer.append(&builder.seal(writer.tip(), now(), None)?).await?;
        }
        Ok(())
    })
}

fn event(stream: u64, sequence: u64) -> Event {
    // Spread as a hash does, and the same in every run.
    let spread =
        (sequence + stream * SEGMENTS * SEGMENT_EVENTS).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let seconds = BEGINNING + sequence * APART.as_secs();
    Event {
        sequence,
        archived_at: Timestamp::from_secs(seconds),
        time: Timestamp::from_secs(seconds),
        id: format!("{spread:016x}-{stream}"),
        kind: format!("type-{}", (spread >> 40) % TYPES),
        key: Some(format!("key-{}", (spread >> 20) % KEYS)),
        message: Message::default(),
    }
}
