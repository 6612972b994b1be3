//! Imports as a whole: formats, restarts, bad lines.

use std::io::{Cursor, Write};
use std::sync::Mutex;

use bytes::Bytes;
use dacapo_archive::store::memory::MemoryStore;

use super::*;
use crate::testing::{FaultyStore, Side, noon, segments, sound, stream};

/// Rejected lines, for the test to look at.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Kept {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn config(bad_lines: BadLines) -> ImportConfig {
    ImportConfig {
        input: "events.ndjson".to_owned(),
        stream: stream(),
        fields: FieldMap::default(),
        bad_lines,
        segment_bytes: crate::RollPolicy::BYTES,
        clock: noon,
        write_once: WriteOnce::SingleWriter,
    }
}

async fn import_into(
    store: &Arc<MemoryStore>,
    input: impl Into<Vec<u8>>,
) -> Result<ImportReport, ImportError> {
    import(config(BadLines::Stop), Cursor::new(input.into()), store.clone(), |_| {}).await
}

/// `count` lines of about 100 bytes.
fn lines(count: usize) -> String {
    (1..=count)
        .map(|number| format!("{{\"id\":\"e-{number}\",\"body\":\"{}\"}}\n", "x".repeat(70)))
        .collect()
}

fn counts(report: &ImportReport) -> (u64, u64, u64) {
    (report.events, report.already, report.skipped)
}

#[tokio::test]
async fn plain_gzip_and_zstd_become_the_same_archive() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines(100).as_bytes()).unwrap();
    let inputs = [
        lines(100).into_bytes(),
        gzip.finish().unwrap(),
        zstd::encode_all(lines(100).as_bytes(), 1).unwrap(),
    ];
    let mut archives = Vec::new();
    for input in inputs {
        let store = Arc::new(MemoryStore::new());
        let report = import_into(&store, input).await.unwrap();
        assert_eq!(counts(&report), (100, 0, 0));
        assert_eq!(report.segments, 1);
        archives.push(sound(&store).await);
    }
    assert_eq!(archives[0].len(), 100);
    assert_eq!(archives[0][99].id, "e-100");
    assert_eq!(archives[0], archives[1]);
    assert_eq!(archives[0], archives[2]);
}

#[tokio::test]
async fn again_adds_nothing_and_a_grown_input_only_what_is_new() {
    let store = Arc::new(MemoryStore::new());
    assert_eq!(counts(&import_into(&store, lines(50)).await.unwrap()), (50, 0, 0));
    assert_eq!(counts(&import_into(&store, lines(50)).await.unwrap()), (0, 50, 0));
    assert_eq!(counts(&import_into(&store, lines(80)).await.unwrap()), (30, 50, 0));
    let events = sound(&store).await;
    assert_eq!(events.len(), 80);
    assert!(events.iter().enumerate().all(|(at, event)| event.id == format!("e-{}", at + 1)));
}

#[tokio::test]
async fn a_changed_input_or_mapping_is_refused_and_changes_nothing() {
    let store = Arc::new(MemoryStore::new());
    import_into(&store, lines(50)).await.unwrap();
    let changed = lines(60).replacen("e-7", "f-7", 1);
    let expected = "stream `shop` holds 50 events that are not the first 50 of `events.ndjson`: the \
                    input or the mapping of fields has changed; import it as another stream (`--name`)";
    for input in [changed, lines(49), String::new()] {
        assert_eq!(import_into(&store, input).await.unwrap_err().to_string(), expected);
    }
    let mapped = ImportConfig {
        fields: FieldMap { key: "customer".parse().unwrap(), ..FieldMap::default() },
        ..config(BadLines::Stop)
    };
    let ended = import(mapped, Cursor::new(lines(50)), store.clone(), |_| {}).await;
    assert_eq!(ended.unwrap_err().to_string(), expected);
    assert_eq!(sound(&store).await.len(), 50);
}

#[tokio::test]
async fn a_stream_of_an_archiver_is_not_imported_into() {
    let store = Arc::new(MemoryStore::new());
    let mut writer = StreamWriter::open(store.clone(), stream(), noon).await.unwrap();
    let mut builder = dacapo_archive::SegmentBuilder::new(stream(), 1);
    let rules = dacapo_event::attributes::AttributeRules::default();
    builder.push(rules.event(Default::default(), &stream(), 1, noon())).unwrap();
    writer.append(&builder.seal(None, noon(), None).unwrap()).await.unwrap();
    let error = import_into(&store, lines(1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "stream `shop` was not made by an import; choose another name (`--name`)"
    );
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_store_call_and_run_again_every_line_is_there_once() {
    let small = || ImportConfig { segment_bytes: 6_000, ..config(BadLines::Stop) };
    let mut kills = 0;
    for nth in 1.. {
        let mut reached = false;
        for side in [Side::Before, Side::After] {
            let inner = Arc::new(MemoryStore::new());
            let mut store = FaultyStore::new(Arc::clone(&inner));
            store.kill = Some((nth, side));
            let store = Arc::new(store);
            reached |= tokio::select! {
                ended = import(small(), Cursor::new(lines(30)), store.clone(), |_| {}) => {
                    assert_eq!(ended.unwrap().events, 30);
                    false
                }
                () = store.killed.notified() => true,
            };
            let again = import(small(), Cursor::new(lines(30)), inner.clone(), |_| {}).await;
            let report = again.unwrap();
            assert_eq!(report.already + report.events, 30, "{nth} {side:?}");
            let events = sound(&inner).await;
            let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
            let expected: Vec<String> = (1..=30).map(|number| format!("e-{number}")).collect();
            assert_eq!(ids, expected, "{nth} {side:?}");
        }
        if !reached {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 9, "three segments are more than {kills} calls");
}

#[tokio::test]
async fn any_one_failing_put_is_made_again_and_a_store_that_stays_down_is_an_error() {
    for nth in 4.. {
        let inner = Arc::new(MemoryStore::new());
        let mut store = FaultyStore::new(Arc::clone(&inner));
        store.fail = Some(nth);
        let store = Arc::new(store);
        let small = ImportConfig { segment_bytes: 6_000, ..config(BadLines::Stop) };
        import(small, Cursor::new(lines(30)), store.clone(), |_| {}).await.unwrap();
        assert_eq!(sound(&inner).await.len(), 30, "call {nth}");
        if store.calls.load(Ordering::SeqCst) < nth {
            break;
        }
    }
    let mut store = FaultyStore::new(Arc::new(MemoryStore::new()));
    store.hook = Some(Box::new(|_, _| Box::pin(async {})));
    store.down = true.into();
    let ended = import(config(BadLines::Stop), Cursor::new(lines(1)), Arc::new(store), |_| {});
    assert!(matches!(ended.await, Err(ImportError::Archive(ArchiveError::Store(_)))));
}

#[tokio::test]
async fn a_bad_line_is_named_and_what_was_right_can_be_finished_after_it_is_mended() {
    let store = Arc::new(MemoryStore::new());
    let input = format!("{}not json at all\n{}", lines(2), lines(3));
    assert_eq!(
        import_into(&store, input).await.unwrap_err().to_string(),
        "line 3 of `events.ndjson` is not an event: expected ident at column 2, in `not json at \
         all`; correct it, or keep such lines aside with `--skip-bad`"
    );
    assert_eq!(import_into(&store, lines(5)).await.unwrap().events, 5);
}

#[tokio::test]
async fn bad_lines_are_kept_aside_and_counted_on_every_run() {
    let store = Arc::new(MemoryStore::new());
    let mut input = b"{\"id\":1}\nnope\n\n{\"id\":2}\n{\"id\":\"".to_vec();
    input.extend_from_slice(b"\xff\"}\n{\"id\":3}\n");
    for run in 0..2 {
        let kept = Kept::default();
        let config = config(BadLines::Keep(Box::new(kept.clone())));
        let report =
            import(config, Cursor::new(input.clone()), store.clone(), |_| {}).await.unwrap();
        assert_eq!(counts(&report), if run == 0 { (3, 0, 2) } else { (0, 3, 2) });
        assert_eq!(report.problems[0].line, 2);
        assert_eq!(
            kept.text(),
            "{\"line\":2,\"problem\":\"expected ident at column 2\",\"text\":\"nope\"}\n\
             {\"line\":5,\"problem\":\"it is not UTF-8 from byte 8\",\"text_base64\":\"eyJpZCI6Iv8ifQ==\"}\n"
        );
    }
    assert_eq!(sound(&store).await.len(), 3);
}

#[tokio::test]
async fn a_line_that_is_too_long_is_a_bad_line() {
    let store = Arc::new(MemoryStore::new());
    let huge = format!("{{\"id\":\"{}\"}}", "x".repeat(LINE_BYTES_MAX));
    let input = format!("{{\"id\":1}}\n{huge}\n{{\"id\":2}}\n");
    let kept = Kept::default();
    let config = config(BadLines::Keep(Box::new(kept.clone())));
    let report = import(config, Cursor::new(input), store.clone(), |_| {}).await.unwrap();
    assert_eq!(counts(&report), (2, 0, 1));
    assert_eq!(report.problems[0].problem, "it has 67108873 bytes, more than the 64 MiB allowed");
    assert!(kept.text().len() < 2_000, "only its start is kept");
    assert_eq!(sound(&store).await.len(), 2);
}

#[tokio::test]
async fn bodies_of_no_bytes_and_of_16_mib_arrive() {
    let store = Arc::new(MemoryStore::new());
    let large = "y".repeat(16 * 1024 * 1024);
    let input = format!("{{\"body\":\"\"}}\n{{\"body\":\"{large}\"}}\n{{\"body\":{{}}}}");
    assert_eq!(import_into(&store, input).await.unwrap().events, 3);
    let bodies: Vec<Bytes> =
        sound(&store).await.into_iter().map(|event| event.message.body).collect();
    assert_eq!(bodies, [Bytes::new(), Bytes::from(large), Bytes::from_static(b"{}")]);
}

#[tokio::test]
async fn line_ends_blank_lines_and_a_byte_order_mark_do_not_matter() {
    let store = Arc::new(MemoryStore::new());
    let input = "\u{feff}{\"id\":\"a\"}\r\n\r\n  \n{\"id\":\"a\"}\r\n{\"id\":\"b\"}";
    assert_eq!(counts(&import_into(&store, input).await.unwrap()), (3, 0, 0));
    let ids: Vec<String> = sound(&store).await.into_iter().map(|event| event.id).collect();
    assert_eq!(ids, ["a", "a", "b"], "two lines with one id are two events");
}

#[tokio::test]
async fn an_empty_input_is_an_empty_stream() {
    let store = Arc::new(MemoryStore::new());
    assert_eq!(import_into(&store, "").await.unwrap(), ImportReport::default());
    assert_eq!(sound(&store).await, []);
}

#[tokio::test]
async fn a_truncated_input_is_an_error_and_the_whole_one_finishes_it() {
    let store = Arc::new(MemoryStore::new());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines(2_000).as_bytes()).unwrap();
    let whole = gzip.finish().unwrap();
    let error = import_into(&store, &whole[..whole.len() / 2]).await.unwrap_err();
    assert!(matches!(error, ImportError::Read { .. }), "{error}");
    let report = import_into(&store, whole).await.unwrap();
    assert_eq!(report.already + report.events, 2_000);
}

#[tokio::test]
async fn a_segment_is_filed_under_the_time_of_its_first_event() {
    let store = Arc::new(MemoryStore::new());
    let input = "{\"time\":\"2021-10-05T09:59:59Z\"}\n{\"time\":\"2021-10-05T10:00:00Z\"}";
    import_into(&store, input).await.unwrap();
    let page = store.list("segments/", None).await.unwrap();
    let keys: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["segments/stream=shop/date=2021-10-05/hour=09/00000000000000000001.parquet"]);
    assert_eq!(segments(&store).await.len(), 1);
}

#[tokio::test]
async fn progress_ends_with_everything() {
    let store = Arc::new(MemoryStore::new());
    let mut last = Progress::default();
    let input = lines(500);
    let bytes = input.len() as u64;
    let all = config(BadLines::Stop);
    import(all, Cursor::new(input), store, |progress| last = progress).await.unwrap();
    assert_eq!(last, Progress { bytes_read: bytes, bytes_decoded: bytes, lines: 500, events: 500 });
}
