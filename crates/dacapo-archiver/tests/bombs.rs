//! Inputs of an import that decode to far more than they are: refused at the longest line and no
//! later, or passed over, within bounded memory.

#![cfg(test)]

use std::io::{Cursor, Read, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dacapo_archive::store::memory::MemoryStore;
use dacapo_archiver::import::{BadLines, FieldMap, ImportConfig, ImportReport, Progress, import};
use dacapo_archiver::{RollPolicy, WriteOnce};
use dacapo_event::Timestamp;
use dacapo_fuzz::Attack;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A line too long, and its copy while it grows. The window of a decoder is not counted, for it is
/// C that takes it.
const MEMORY: usize = 160 * 1024 * 1024;

/// What a bomb decodes to.
const BOMB_BYTES: usize = 4 * 1024 * 1024 * 1024;

/// The most that a block of zstd decodes to, of four bytes.
const BLOCK_BYTES: usize = 128 * 1024;

/// What a member of gzip decodes to here, of about a kilobyte.
const MEMBER_BYTES: usize = 1024 * 1024;

/// The window of [`BLOCK_BYTES`], as a frame says it: the power of two above 1 KiB, and eighths.
const SMALL_WINDOW: u8 = 7 << 3;

/// The first and the last line, in frames or members of their own, are sound.
const FIRST: &[u8] = b"{\"id\":\"first\"}\n";
const LAST: &[u8] = b"\n{\"id\":\"last\"}\n";

/// Returns a zstd frame whose blocks all repeat one byte.
fn frame(window: u8, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    let blocks = bytes / BLOCK_BYTES;
    for block in 1..=blocks {
        const REPEATED: u32 = 1 << 1;
        let header = (BLOCK_BYTES as u32) << 3 | REPEATED | u32::from(block == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 1).unwrap()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Imports, and returns the outcome with its cause and the last progress.
fn imported(input: impl Read + Send + 'static, bad_lines: BadLines) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let config = ImportConfig {
        input: "events.ndjson".to_owned(),
        stream: "shop".parse().unwrap(),
        fields: FieldMap::default(),
        bad_lines,
        segment_bytes: RollPolicy::BYTES,
        clock: || Timestamp::from_secs(1_800_000_000),
        write_once: WriteOnce::SingleWriter,
    };
    let mut last = Progress::default();
    let ended = runtime.block_on(async {
        import(config, input, Arc::new(MemoryStore::new()), |progress| last = progress).await
    });
    let ended = ended.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    });
    (ended, last)
}

type Outcome = (Result<ImportReport, String>, Progress);

fn pass_over() -> BadLines {
    BadLines::Keep(Box::new(std::io::sink()))
}

/// Counts what is read of an input.
struct Counted(Cursor<Vec<u8>>, Arc<AtomicUsize>);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read, Ordering::Relaxed);
        Ok(read)
    }
}

#[track_caller]
fn check_refused(bomb: Vec<u8>) {
    Attack::new(HERE, "bombs", MEMORY).seeds([bomb]).only_seeds().run(|bytes| {
        let bytes_read = Arc::new(AtomicUsize::new(0));
        let counted = Counted(Cursor::new(bytes.to_vec()), Arc::clone(&bytes_read));
        let (ended, _) = imported(counted, BadLines::Stop);
        let error = ended.unwrap_err();
        let expected = "line 2 of `events.ndjson` is not an event: it has more than the 64 MiB allowed, in `xxx";
        assert!(error.starts_with(expected), "{error}");
        // 65 of 4,096 MiB, and what is read ahead of the decoder.
        let read = bytes_read.load(Ordering::Relaxed);
        assert!(read < bytes.len() / 64 + 256 * 1024, "{read} of {} bytes were read", bytes.len());
    });
}

#[test]
fn a_bomb_is_refused_at_the_longest_line_and_decoded_no_further() {
    check_refused([zstd(FIRST), frame(SMALL_WINDOW, BOMB_BYTES), zstd(LAST)].concat());
    let frames = frame(SMALL_WINDOW, 64 * BLOCK_BYTES).repeat(BOMB_BYTES / BLOCK_BYTES / 64);
    check_refused([zstd(FIRST), frames, zstd(LAST)].concat());
    let members = gzip(&vec![b'x'; MEMBER_BYTES]).repeat(BOMB_BYTES / MEMBER_BYTES);
    check_refused([gzip(FIRST), members, gzip(LAST)].concat());
}

#[test]
fn a_bomb_is_passed_over_within_the_same_memory_and_is_seen_to_go_on() {
    // A part of it says the same of memory, and takes a second.
    const PART: usize = BOMB_BYTES / 8;
    let bomb = [zstd(FIRST), frame(SMALL_WINDOW, PART), zstd(LAST)].concat();
    Attack::new(HERE, "bombs", MEMORY).seeds([bomb]).only_seeds().run(|bytes| {
        let (report, progress) = imported(Cursor::new(bytes.to_vec()), pass_over());
        let report = report.unwrap();
        assert_eq!((report.events, report.skipped), (2, 1));
        let problem = format!("it has {PART} bytes, more than the 64 MiB allowed");
        assert_eq!(report.problems[0].problem, problem);
        assert_eq!(progress.bytes_read, bytes.len() as u64);
        assert!(progress.bytes_decoded > PART as u64, "{progress:?}");
    });
}

#[test]
fn a_frame_that_claims_a_huge_window_is_refused() {
    let expected = "failed to read `events.ndjson` after line 0; see that the file is whole and run the import again, it goes on where it ended: a zstd frame asks for a window of more than 128 MiB; compress it again without `--long`, or decode it first: `zstd -dc --long=31 FILE | dacapo archive import - --name STREAM`";
    // From an eighth more than 128 MiB, over 256 MiB, to the most that a frame can say.
    for window in [(17 << 3) + 1, 18 << 3, 21 << 3, 0xff] {
        let (ended, _) = imported(Cursor::new(frame(window, BLOCK_BYTES)), BadLines::Stop);
        assert_eq!(ended.unwrap_err(), expected, "{window}");
    }
    // What the tool makes without `--long` is read.
    let (ended, _) = imported(Cursor::new(frame(17 << 3, BLOCK_BYTES)), pass_over());
    assert_eq!(ended.unwrap().skipped, 1);
}
