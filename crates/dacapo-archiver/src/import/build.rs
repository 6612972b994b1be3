//! Lines into segments, on one blocking thread: marks, parsing, encoding, sealing.
//!
//! Invariant: which lines are events, and the mark after each, depend on the input and the mapping
//! alone, never on how the input was cut into pieces.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dacapo_archive::{ArchiveError, Sealed, SegmentBuilder, StreamWriter};
use dacapo_event::{Digest, Hasher, Sequence, Timestamp};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::input::{LongLine, Piece};
use super::line::{self, Parsed, Problem};
use super::{BadLines, ImportConfig, LINE_BYTES_MAX, LineProblem, PROBLEMS_MAX};
use crate::error::ImportError;

/// How much of a bad line an error shows.
const SHOWN_CHARS: usize = 60;

/// The longest line, as it is told.
const LINE_MIB_MAX: usize = LINE_BYTES_MAX / 1024 / 1024;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// What was not imported.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) skipped: u64,
    pub(super) problems: Vec<LineProblem>,
}

/// A segment that only has to be put, and the leave to hold it: the next one is not handed over
/// before this is dropped.
pub(super) struct Finished {
    pub(super) sealed: Sealed,
    pub(super) put: OwnedSemaphorePermit,
}

/// An import between two lines.
pub(super) struct Building {
    config: ImportConfig,
    hasher: Hasher,
    /// Lines read, for everyone to see.
    lines: Arc<AtomicU64>,
    line: u64,
    /// The sequence that the next event has.
    next: Sequence,
    /// Where the stream ended when the import began, and the mark there.
    end: End,
    previous: Option<Digest>,
    draft: Option<Draft>,
    puts: Arc<Semaphore>,
    tally: Tally,
}

enum End {
    /// The input is compared with the stream up to this event.
    Compare { last: Sequence, mark: Digest },
    /// What comes is new.
    Passed,
}

struct Draft {
    builder: SegmentBuilder,
    /// The first event's time: the hour that the segment is filed under.
    partition: Timestamp,
    /// The mark after its last event.
    mark: Hasher,
}

impl Building {
    /// Begins an import into the stream that `writer` has opened.
    ///
    /// # Errors
    /// `NotAnImport`.
    pub(super) fn new(
        config: ImportConfig,
        writer: &StreamWriter,
        lines: Arc<AtomicU64>,
        puts: Arc<Semaphore>,
    ) -> Result<Self, ImportError> {
        let end = match (writer.next() - 1, writer.source_mark()) {
            (0, _) => End::Passed,
            (last, Some(mark)) => End::Compare { last, mark },
            (_, None) => {
                return Err(ImportError::NotAnImport { stream: config.stream.to_string() });
            }
        };
        Ok(Building {
            hasher: config.fields.hasher(),
            config,
            lines,
            line: 0,
            next: 1,
            end,
            previous: writer.tip(),
            draft: None,
            puts,
            tally: Tally::default(),
        })
    }

    /// Reads the pieces to their end and sends the segments; ends early and well if nobody takes
    /// them any more.
    pub(super) fn run(
        mut self,
        mut pieces: mpsc::Receiver<io::Result<Piece>>,
        segments: &mpsc::Sender<Finished>,
    ) -> Result<Tally, ImportError> {
        while let Some(piece) = pieces.blocking_recv() {
            let piece = piece.map_err(|source| ImportError::Read {
                input: self.config.input.clone(),
                line: self.line,
                source,
            })?;
            match piece {
                Piece::TooLong(line) => self.too_long(&line)?,
                Piece::Endless(start) => {
                    self.line += 1;
                    self.bad(&start, format!("it has more than the {LINE_MIB_MAX} MiB allowed"))?;
                }
                Piece::Lines(lines) => {
                    let mut rest = lines.as_slice();
                    while !rest.is_empty() {
                        let bytes = rest.skip_until(b'\n').expect("a slice can be read");
                        let from = lines.len() - rest.len() - bytes;
                        self.line(&lines[from..from + bytes])?;
                        if let Some(sealed) = self.full_segment()?
                            && !self.hand_over(sealed, segments)
                        {
                            return Ok(self.tally);
                        }
                    }
                }
            }
            self.lines.store(self.line, Ordering::Relaxed);
        }
        if let End::Compare { last, .. } = self.end {
            return Err(self.changed(last));
        }
        if let Some(sealed) = self.seal()? {
            // Nobody there any more means that the import was given up.
            self.hand_over(sealed, segments);
        }
        if let BadLines::Keep(kept) = &mut self.config.bad_lines {
            kept.flush().map_err(|source| ImportError::Reject {
                input: self.config.input.clone(),
                line: self.line,
                source,
            })?;
        }
        Ok(self.tally)
    }

    /// Waits until the segment before is durable; returns whether anybody takes this one.
    fn hand_over(&self, sealed: Sealed, segments: &mpsc::Sender<Finished>) -> bool {
        let put = Handle::current().block_on(Arc::clone(&self.puts).acquire_owned());
        put.is_ok_and(|put| segments.blocking_send(Finished { sealed, put }).is_ok())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), ImportError> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.len() > LINE_BYTES_MAX {
            return self.too_long(&LongLine::of(line));
        }
        self.line += 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = line.strip_prefix(BOM).filter(|_| self.line == 1).unwrap_or(line);
        self.hasher.update_framed(line);
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        match line::parse(line, &self.config.fields) {
            Ok(parsed) => self.event(parsed),
            Err(problem) => self.bad(line, problem),
        }
    }

    fn too_long(&mut self, line: &LongLine) -> Result<(), ImportError> {
        self.line += 1;
        self.hasher.update_framed(line.digest.as_bytes());
        let problem =
            format!("it has {} bytes, more than the {LINE_MIB_MAX} MiB allowed", line.bytes);
        self.bad(&line.start, problem)
    }

    fn event(&mut self, parsed: Parsed) -> Result<(), ImportError> {
        let sequence = self.next;
        self.next += 1;
        if let End::Compare { last, mark } = self.end {
            if sequence == last {
                if self.hasher.clone().finish() != mark {
                    return Err(self.changed(last));
                }
                self.end = End::Passed;
            }
            return Ok(());
        }
        let event = parsed.into_event(&self.config.stream, sequence, (self.config.clock)());
        let draft = self.draft.get_or_insert_with(|| Draft {
            builder: SegmentBuilder::new(self.config.stream.clone(), sequence),
            partition: event.time,
            mark: Hasher::default(),
        });
        draft.builder.push(event)?;
        draft.mark = self.hasher.clone();
        Ok(())
    }

    fn bad(&mut self, line: &[u8], problem: Problem) -> Result<(), ImportError> {
        let number = self.line;
        let BadLines::Keep(kept) = &mut self.config.bad_lines else {
            let text = String::from_utf8_lossy(line);
            let mut start: String = text.chars().take(SHOWN_CHARS).collect();
            if start.len() < text.len() {
                start.push('…');
            }
            let input = self.config.input.clone();
            return Err(ImportError::BadLine { input, line: number, problem, start });
        };
        let mut record = json!({ "line": number, "problem": &problem });
        match std::str::from_utf8(line) {
            Ok(text) => record["text"] = json!(text),
            Err(_) => record["text_base64"] = json!(BASE64.encode(line)),
        }
        writeln!(kept, "{record}").map_err(|source| ImportError::Reject {
            input: self.config.input.clone(),
            line: number,
            source,
        })?;
        self.tally.skipped += 1;
        if self.tally.problems.len() < PROBLEMS_MAX {
            self.tally.problems.push(LineProblem { line: number, problem });
        }
        Ok(())
    }

    fn full_segment(&mut self) -> Result<Option<Sealed>, ArchiveError> {
        let is_full = |draft: &Draft| {
            draft.builder.is_full() || draft.builder.bytes() >= self.config.segment_bytes
        };
        match self.draft.as_ref().is_some_and(is_full) {
            true => self.seal(),
            false => Ok(None),
        }
    }

    fn seal(&mut self) -> Result<Option<Sealed>, ArchiveError> {
        let Some(draft) = self.draft.take() else { return Ok(None) };
        let mark = draft.mark.finish();
        let sealed = draft.builder.seal(self.previous, draft.partition, Some(mark))?;
        self.previous = Some(sealed.summary.digest);
        Ok(Some(sealed))
    }

    fn changed(&self, already: Sequence) -> ImportError {
        ImportError::Changed {
            input: self.config.input.clone(),
            stream: self.config.stream.to_string(),
            already,
        }
    }
}
