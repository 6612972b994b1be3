//! Reads an input, decompresses it, and cuts it into pieces of whole lines.
//!
//! Invariant: however much an input decodes to, no more is held than the longest line allowed, the
//! window that a decoder may have, and a piece; and a line too long that ends the import is read
//! no further than that takes to know.

use std::io::{self, Cursor, Read};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dacapo_event::{Digest, Hasher};
use flate2::read::MultiGzDecoder;
use tokio::sync::mpsc;

use super::LINE_BYTES_MAX;

/// About this much is read, parsed and handed over at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// Asked of the operating system at once: a pipe holds no more.
const READ_BYTES: usize = 64 * 1024;

/// How much of a line that is too long is kept to show it.
const START_BYTES: usize = 1024;

/// The largest window of a zstd frame, as a power of two: 128 MiB, what the `zstd` tool itself
/// decodes and `-22` makes; more is only made by `--long`. A frame of a few bytes may claim 2 TiB.
const WINDOW_LOG_MAX: u32 = 27;

/// Whole lines, or what is known of one that is too long.
#[derive(Debug)]
pub(super) enum Piece {
    /// Lines with their ends; only the last of an input may have none.
    Lines(Vec<u8>),
    /// A line of more than [`LINE_BYTES_MAX`], read to its end.
    TooLong(LongLine),
    /// The start of a line of more than [`LINE_BYTES_MAX`], of which no more is read.
    Endless(Vec<u8>),
}

/// What becomes of a line that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlong {
    /// It ends the import, at once: to read it to its end may take hours.
    Refuse,
    /// It is passed over, and known by its digest.
    PassOver,
}

/// A line that is too long to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LongLine {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    pub(super) start: Vec<u8>,
}

impl LongLine {
    pub(super) fn of(line: &[u8]) -> Self {
        LongLine {
            digest: Digest::of(line),
            bytes: line.len() as u64,
            start: line[..line.len().min(START_BYTES)].to_vec(),
        }
    }
}

/// Counts the bytes that are read.
pub(super) struct Counted<R> {
    input: R,
    bytes: Arc<AtomicU64>,
}

impl<R> Counted<R> {
    pub(super) fn new(input: R, bytes: Arc<AtomicU64>) -> Self {
        Counted { input, bytes }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Sends the pieces of the input until it ends, fails, or nobody wants more; counts the plain bytes
/// in `decoded`.
pub(super) fn read(
    input: impl Read + Send + 'static,
    overlong: Overlong,
    decoded: Arc<AtomicU64>,
    pieces: &mpsc::Sender<io::Result<Piece>>,
) {
    let mut cut = match open(input) {
        Ok(plain) => Pieces::new(Counted::new(plain, decoded), overlong),
        Err(error) => {
            // Nobody there any more wants no error either.
            drop(pieces.blocking_send(Err(error)));
            return;
        }
    };
    while let Some(piece) = cut.next().transpose() {
        let last = matches!(piece, Err(_) | Ok(Piece::Endless(_)));
        if pieces.blocking_send(piece.map_err(explained)).is_err() || last {
            return;
        }
    }
}

/// Says what to do about a window that is too large; other errors speak for themselves.
fn explained(error: io::Error) -> io::Error {
    if !error.to_string().contains("too much memory") {
        return error;
    }
    let megabytes = (1_u64 << WINDOW_LOG_MAX) / 1024 / 1024;
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "a zstd frame asks for a window of more than {megabytes} MiB; compress it again without `--long`, or decode it first: `zstd -dc --long=31 FILE | dacapo archive import - --name STREAM`"
        ),
    )
}

/// Returns the plain bytes of an input that may be gzip or zstd, in any number of members.
fn open(mut input: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    const MAGIC_BYTES: u64 = 4;
    let mut magic = Vec::new();
    input.by_ref().take(MAGIC_BYTES).read_to_end(&mut magic)?;
    let whole = Cursor::new(magic.clone()).chain(input);
    let buffered = io::BufReader::with_capacity(READ_BYTES, whole);
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(buffered)),
        // A frame, or one that decoders skip, as parallel compressors write first.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        _ => Box::new(buffered),
    })
}

struct Pieces<R> {
    input: R,
    overlong: Overlong,
    /// What was read after the last line end.
    rest: Vec<u8>,
}

impl<R: Read> Pieces<R> {
    fn new(input: R, overlong: Overlong) -> Self {
        Pieces { input, overlong, rest: Vec::new() }
    }

    /// Returns the next piece, nothing at the end.
    fn next(&mut self) -> io::Result<Option<Piece>> {
        let mut lines = mem::take(&mut self.rest);
        // The rest of a piece may hold whole lines only after one that was too long.
        let mut end = line_end(&lines);
        loop {
            if let Some(end) = end
                && lines.len() >= PIECE_BYTES
            {
                self.rest = lines.split_off(end);
                return Ok(Some(Piece::Lines(lines)));
            }
            if end.is_none() && lines.len() > LINE_BYTES_MAX {
                return match self.overlong {
                    Overlong::Refuse => Ok(Some(Piece::Endless(lines[..START_BYTES].to_vec()))),
                    Overlong::PassOver => self.skip_line(lines).map(Some),
                };
            }
            let before = lines.len();
            if self.fill(&mut lines)? == 0 {
                return Ok((!lines.is_empty()).then_some(Piece::Lines(lines)));
            }
            end = line_end(&lines[before..]).map(|at| before + at).or(end);
        }
    }

    /// Reads up to a piece more; returns how much, 0 at the end.
    fn fill(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        // Doubling, as a vector does by itself, would hold twice the longest line.
        if into.capacity() - into.len() < PIECE_BYTES {
            let longest = (LINE_BYTES_MAX + PIECE_BYTES).saturating_sub(into.len());
            into.reserve_exact(into.len().min(longest).max(PIECE_BYTES));
        }
        self.input.by_ref().take(PIECE_BYTES as u64).read_to_end(into)
    }

    fn skip_line(&mut self, start: Vec<u8>) -> io::Result<Piece> {
        let mut hasher = Hasher::default();
        hasher.update(&start);
        let mut bytes = start.len() as u64;
        let start = start[..START_BYTES].to_vec();
        let mut more = Vec::new();
        loop {
            more.clear();
            let at_end = self.fill(&mut more)? == 0;
            let end = more.iter().position(|byte| *byte == b'\n');
            let of_line = &more[..end.unwrap_or(more.len())];
            hasher.update(of_line);
            bytes += of_line.len() as u64;
            if let Some(end) = end {
                self.rest = more.split_off(end + 1);
            }
            if end.is_some() || at_end {
                return Ok(Piece::TooLong(LongLine { digest: hasher.finish(), bytes, start }));
            }
        }
    }
}

/// Returns the offset after the last line end.
fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Gives a few bytes at a time, as a slow pipe does.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let some = buffer.len().min(self.1).min(self.0.len());
            buffer[..some].copy_from_slice(&self.0[..some]);
            self.0 = &self.0[some..];
            Ok(some)
        }
    }

    fn joined(input: impl Read) -> Vec<u8> {
        let mut pieces = Pieces::new(input, Overlong::PassOver);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next().unwrap() {
            let Piece::Lines(lines) = piece else { panic!("no line is too long") };
            all.extend_from_slice(&lines);
        }
        all
    }

    #[test]
    fn pieces_are_whole_lines_and_together_the_input() {
        let line = vec![b'x'; 300_000];
        let mut input = [line.as_slice(), b"\n"].concat().repeat(9);
        input.extend_from_slice(b"last");
        assert_eq!(joined(input.as_slice()), input);
        assert_eq!(joined(Trickle(&input, 4_099)), input);
        let mut pieces = Pieces::new(input.as_slice(), Overlong::PassOver);
        let Some(Piece::Lines(first)) = pieces.next().unwrap() else { panic!("lines") };
        assert_eq!(first.last(), Some(&b'\n'));
        assert_eq!(joined(io::empty()), b"");
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_known_by_its_digest() {
        let long = vec![b'x'; LINE_BYTES_MAX + 2 * PIECE_BYTES + 17];
        let input = [b"first\n", long.as_slice(), b"\nlast\n"].concat();
        let mut pieces = Pieces::new(input.as_slice(), Overlong::PassOver);
        let mut seen = Vec::new();
        while let Some(piece) = pieces.next().unwrap() {
            match piece {
                Piece::Lines(lines) => seen.extend(lines),
                Piece::TooLong(line) => assert_eq!(line, LongLine::of(&long)),
                Piece::Endless(start) => panic!("only refused ones: {start:?}"),
            }
        }
        assert_eq!(seen, b"first\nlast\n");
    }

    fn opened(input: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        open(Cursor::new(input))?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn formats_are_known_by_their_first_bytes_and_members_are_joined() {
        let gzip = |text: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7].to_vec();
        assert_eq!(opened(b"{}".to_vec()).unwrap(), b"{}");
        assert_eq!(opened(Vec::new()).unwrap(), b"");
        assert_eq!(opened([gzip(b"one\n"), gzip(b"two")].concat()).unwrap(), b"one\ntwo");
        assert_eq!(opened([zstd(b"one\n"), zstd(b"two")].concat()).unwrap(), b"one\ntwo");
        assert_eq!(opened([skippable, zstd(b"one")].concat()).unwrap(), b"one");
        let mut cut = gzip(&[b'x'; 1_000]);
        cut.truncate(cut.len() - 4);
        assert_eq!(opened(cut).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
