//! Whatever is given to an import: bad lines are told and left out, and the rest is archived, within
//! bounded memory, however much a compressed input decodes to.

#![cfg(test)]

use std::io::{Cursor, Write as _};
use std::sync::Arc;

use dacapo_archive::store::memory::MemoryStore;
use dacapo_archiver::import::{BadLines, FieldMap, ImportConfig, import};
use dacapo_archiver::{RollPolicy, WriteOnce};
use dacapo_event::Timestamp;
use dacapo_fuzz::Attack;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Three lines as long as any, which a few kilobytes decode to (one is read while one waits and one
/// is parsed), and a row group, its pages and its segment.
const MEMORY: usize = 256 * 1024 * 1024;

fn config() -> ImportConfig {
    ImportConfig {
        input: "events.ndjson".to_owned(),
        stream: "shop".parse().unwrap(),
        fields: FieldMap::default(),
        bad_lines: BadLines::Keep(Box::new(std::io::sink())),
        segment_bytes: RollPolicy::BYTES,
        clock: || Timestamp::from_secs(1_800_000_000),
        write_once: WriteOnce::SingleWriter,
    }
}

fn imported(input: Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(MemoryStore::new());
        drop(import(config(), Cursor::new(input), store, |_| {}).await);
    });
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn lines_are_imported_or_left_out() {
    let lines = concat!(
        r#"{"id":"e-1","time":"2026-11-23T08:00:00Z","type":"a","key":7,"headers":{"x":[1,{"y":null}]},"body":{"a":1}}"#,
        "\n",
        r#"{"id":"e-2","properties":{"priority":3,"content_type":"t"},"body_base64":"AAEC","routing_key":"r.k"}"#,
        "\n{}\n\n",
        r#"{"id":"e-3","id":"e-4","body":"\u00e9\ud83d\ude00"}"#,
        "\n",
    );
    let seeds = [
        lines.as_bytes().to_vec(),
        gzip(lines.as_bytes()),
        zstd::encode_all(lines.as_bytes(), 3).unwrap(),
    ];
    Attack::new(HERE, "import", MEMORY).seeds(seeds).slow(4).run(|bytes| imported(bytes.to_vec()));
}
