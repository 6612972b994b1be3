//! The import of JSON lines: one event a line becomes one event of a stream of its own.
//!
//! One input is one stream. Every line that is an event gets the next sequence, and each segment
//! carries a mark: the digest of the mapping and of all lines up to its last event. Running an
//! import again reads the input from its start, compares the mark where the stream ends, and goes
//! on there; so a killed import is finished, a grown input is continued, and a finished one adds
//! nothing.
//!
//! What a line becomes ([`FieldMap`] says where each part is):
//! - `body`: a string is its UTF-8 bytes; any other value, `null` too, is the same JSON without
//!   insignificant white space, with the order of members and the digits of numbers as they were;
//!   `body_base64` is the bytes; neither is an empty body.
//! - `id`: not there is `properties.message_id`, else `stream:sequence`. Two lines with one id are
//!   two events.
//! - `time`: RFC 3339, or a number since 1970 in seconds, milliseconds or microseconds, told apart
//!   by its size; not there is `properties.timestamp`, else the moment of the import.
//! - `type`: not there is `properties.type`, else the routing key.
//! - `properties`: where a line has them, the message has exactly these, as in what `dacapo events
//!   --json` prints. Where it has not, consumers find `message_id`, `type` and `timestamp` set from
//!   the line's `id`, `type` and `time`, as far as they fit AMQP; nothing else is made up, in
//!   particular no `content_type`.
//! - `headers`: an object; an empty one is none.
//!
//! Memory: two segments (being filled or sealed, being put) and a few megabytes of lines, or three
//! very long lines; and the window of a zstd frame, at most 128 MiB.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dacapo_archive::store::Store;
use dacapo_archive::{ArchiveError, Sealed, StreamWriter, probe_write_once};
use dacapo_event::{Clock, Message, StreamName};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use crate::backoff::Backoff;
use crate::error::ImportError;
use crate::put::Place;
use crate::run::WriteOnce;

mod build;
mod compact;
mod fields;
mod input;
mod line;

pub use fields::{Field, FieldMap};

/// Returns the message that a line of JSON is; `line` is without its end. As an import takes it, and
/// with the line's id and type as `message_id` and `type` where its `properties` have none.
///
/// # Errors
/// What is wrong with the line, in words.
pub fn message_of(line: &[u8], fields: &FieldMap) -> Result<Message, String> {
    line::parse(line, fields)?.into_message()
}

use build::{Building, Finished, Tally};

/// The longest line: holds a body of 16 MiB in any encoding but the most wasteful, and bounds the
/// memory that a file without line ends can take.
pub const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What the headers of a line may take in memory. An event has room for 64 MiB beside its body, and a
/// broker takes no more than 128 KiB of headers.
const HEADERS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Pieces of input (about 1 MiB each, or one long line) read ahead of the parser, which has another
/// and whose reader fills a third.
const PIECES_AHEAD: usize = 1;

/// Segments finished and not yet durable: while one is put the next is filled and waits. A third
/// would be memory and no gain.
const SEGMENTS_UNPUT: usize = 1;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Attempts to append one segment before the import gives up: with the waits between them about
/// 6 s, after those that the store makes itself. A person is watching and can start it again.
const APPENDS_MAX: u32 = 6;

/// Skipped lines that a report names; all are counted and kept.
const PROBLEMS_MAX: usize = 100;

/// What an import is told.
pub struct ImportConfig {
    /// How the input is called in messages: its path, or `-`.
    pub input: String,
    /// The stream that it becomes.
    pub stream: StreamName,
    /// Where a line has its id, time, type and so on.
    pub fields: FieldMap,
    /// What becomes of lines that are no events.
    pub bad_lines: BadLines,
    /// A segment is finished at about this many bytes; [`crate::RollPolicy::BYTES`] by default.
    pub segment_bytes: usize,
    /// The wall clock.
    pub clock: Clock,
    /// Whether the store is held to keep writers apart.
    pub write_once: WriteOnce,
}

/// What becomes of lines that are no events.
pub enum BadLines {
    /// The first one ends the import.
    Stop,
    /// Each is written here as a JSON object with the members `line`, `problem`, and `text` or
    /// `text_base64`. A run writes those of the whole input, so begin with an empty file.
    Keep(Box<dyn Write + Send>),
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input read, compressed if it is.
    pub bytes_read: u64,
    /// What these were once decompressed: goes on while a long line of a few compressed bytes is
    /// passed over.
    pub bytes_decoded: u64,
    /// Lines read.
    pub lines: u64,
    /// Events made durable by this run.
    pub events: u64,
}

/// What an import has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Events made durable by this run.
    pub events: u64,
    /// Events that the stream had before.
    pub already: u64,
    /// Lines that are no events.
    pub skipped: u64,
    /// Segments made durable by this run.
    pub segments: u64,
    /// Bytes of these segments.
    pub bytes: u64,
    /// The first 100 of the lines that are no events.
    pub problems: Vec<LineProblem>,
}

/// A line that is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineProblem {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// Imports `input` (plain, gzip or zstd, told apart by its first bytes) as one stream.
///
/// `progress` is called a few times a second and at the end. Safe to drop at any point; reading
/// goes on in the background until its next piece is not wanted, which on a terminal or pipe may be
/// never.
///
/// # Errors
/// See [`ImportError`]; whatever happened, running it again goes on where it ended.
pub async fn import(
    config: ImportConfig,
    input: impl Read + Send + 'static,
    store: Arc<dyn Store>,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<ImportReport, ImportError> {
    if config.write_once == WriteOnce::Proven {
        probe_write_once(&*store, config.clock).await?;
    }
    let place = Place { store, stream: config.stream.clone(), clock: config.clock };
    let writer = place.open().await?;
    let already = writer.next() - 1;
    let lines = Arc::new(AtomicU64::new(0));
    let bytes_read = Arc::new(AtomicU64::new(0));
    let bytes_decoded = Arc::new(AtomicU64::new(0));
    let overlong = match config.bad_lines {
        BadLines::Stop => input::Overlong::Refuse,
        BadLines::Keep(_) => input::Overlong::PassOver,
    };

    let (pieces_in, pieces) = mpsc::channel(PIECES_AHEAD);
    let (segments_in, mut segments) = mpsc::channel(SEGMENTS_UNPUT);
    let puts = Arc::new(Semaphore::new(SEGMENTS_UNPUT));
    let counted = input::Counted::new(input, Arc::clone(&bytes_read));
    let decoded = Arc::clone(&bytes_decoded);
    let reading =
        tokio::task::spawn_blocking(move || input::read(counted, overlong, decoded, &pieces_in));
    let building = Building::new(config, &writer, Arc::clone(&lines), puts)?;
    let building = tokio::task::spawn_blocking(move || building.run(pieces, &segments_in));

    let mut report = ImportReport { already, ..ImportReport::default() };
    let told = |report: &ImportReport| Progress {
        bytes_read: bytes_read.load(Ordering::Relaxed),
        bytes_decoded: bytes_decoded.load(Ordering::Relaxed),
        lines: lines.load(Ordering::Relaxed),
        events: report.events,
    };
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut writer = Some(writer);
    loop {
        let finished: Option<Finished> = tokio::select! {
            finished = segments.recv() => finished,
            _ = tick.tick() => {
                progress(told(&report));
                continue;
            }
        };
        let Some(Finished { sealed, put }) = finished else { break };
        writer = Some(append(&place, writer.take(), &sealed).await?);
        report.events += sealed.summary.events();
        report.segments += 1;
        report.bytes += sealed.summary.size;
        drop((sealed, put));
    }
    let Tally { skipped, problems } = joined(building.await)?;
    joined(reading.await);
    report.skipped = skipped;
    report.problems = problems;
    progress(told(&report));
    Ok(report)
}

async fn append(
    place: &Place,
    mut writer: Option<StreamWriter>,
    sealed: &Sealed,
) -> Result<StreamWriter, ArchiveError> {
    let mut backoff = Backoff::new();
    for _ in 1..APPENDS_MAX {
        match place.append(writer.take(), sealed).await {
            Err(error) if error.is_transient() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a put failed");
            }
            ended => return ended,
        }
        tokio::time::sleep(backoff.wait()).await;
    }
    place.append(None, sealed).await
}

fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> T {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests;
