//! What is inserted is found, and what cannot be opened says what to do.

use dacapo_archive::Tally;
use dacapo_event::{Digest, Timestamp};
use proptest::prelude::*;

use super::*;

fn holder() -> Holder {
    Holder { command: "dacapo test".to_owned(), since: Timestamp::from_secs(1_800_000_000) }
}

fn open(dir: &Path) -> Index {
    Index::open(dir, &holder()).unwrap()
}

fn name(text: &str) -> StreamName {
    text.parse().unwrap()
}

fn tally(pairs: &[(&str, u64)], other: u64) -> Tally {
    Tally { counts: pairs.iter().map(|(text, n)| ((*text).to_owned(), *n)).collect(), other }
}

fn segment(stream: &str, first: Sequence, last: Sequence) -> SegmentSummary {
    let at = |n: u64| Timestamp::from_secs(1_700_000_000 + n);
    SegmentSummary {
        key: format!("segments/stream={stream}/date=2026-11-23/hour=08/{first:020}.parquet")
            .parse()
            .unwrap(),
        size: 4_096 + first,
        stream: name(stream),
        first,
        last,
        dropped: 0,
        time_min: at(first),
        time_max: at(last),
        archived_min: at(first + 1),
        archived_max: at(last + 1),
        body_bytes: 77,
        by_type: tally(&[("order.placed", last - first + 1)], 0),
        by_routing_key: tally(&[("", 1), ("a.é", 2)], 3),
        by_exchange: tally(&[], 9),
        digest: Digest::of(&first.to_be_bytes()),
        previous: (first > 1).then(|| Digest::of(b"before")),
        source_mark: None,
    }
}

fn all(index: &Index) -> Vec<SegmentSummary> {
    index.segments().collect::<Result<_, _>>().unwrap()
}

#[test]
fn segments_come_back_in_order_of_stream_and_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let import =
        SegmentSummary { source_mark: Some(Digest::of(b"line")), ..segment("shop-import", 1, 2) };
    let expected = vec![
        segment("mail", 1, 300),
        segment("shop", 1, 10),
        segment("shop", 11, 256),
        segment("shop", 257, 70_000),
        import,
    ];
    let mut shuffled = expected.clone();
    shuffled.rotate_left(2);
    index.insert_segments(&shuffled).unwrap();
    assert_eq!(all(&index), expected);
    let of_shop: Vec<_> = index.segments_of(&name("shop")).map(Result::unwrap).collect();
    assert_eq!(of_shop, expected[1..4]);
    assert_eq!(index.segment(&name("shop"), 11).unwrap().as_ref(), Some(&expected[2]));
    assert_eq!(index.segment(&name("shop"), 12).unwrap(), None);
    index.close().unwrap();
    assert_eq!(all(&open(dir.path())), expected, "after it was closed and opened again");
}

#[test]
fn progress_moves_with_the_segments() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    assert_eq!(index.streams().unwrap(), []);
    index.insert_segments(&[segment("shop", 1, 10), segment("mail", 1, 5)]).unwrap();
    index.insert_segments(&[segment("shop", 11, 12)]).unwrap();
    let progress = index.progress(&name("shop")).unwrap().unwrap();
    let expected = StreamProgress {
        stream: name("shop"),
        last: 12,
        segments: 2,
        events: 12,
        last_key: segment("shop", 11, 12).key,
        dropped: 0,
        compacted: None,
    };
    assert_eq!(progress, expected);
    assert!(progress.is_contiguous());
    assert_eq!(index.streams().unwrap()[1], expected);
    let stats = index.stats().unwrap();
    assert_eq!((stats.streams, stats.segments, stats.events), (2, 3, 17));
    assert!(stats.bytes_on_disk > 0);
}

#[test]
fn a_hole_is_seen_until_it_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let shop = name("shop");
    index.insert_segments(&[segment("shop", 1, 10), segment("shop", 21, 30)]).unwrap();
    let progress = index.progress(&shop).unwrap().unwrap();
    assert_eq!((progress.last, progress.is_contiguous()), (30, false));
    index.insert_segments(&[segment("shop", 11, 20)]).unwrap();
    let progress = index.progress(&shop).unwrap().unwrap();
    assert_eq!((progress.last, progress.is_contiguous()), (30, true));
    assert_eq!(progress.last_key, segment("shop", 21, 30).key);
}

#[test]
fn inserting_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let segments = [segment("shop", 1, 10), segment("shop", 11, 20)];
    index.insert_segments(&segments).unwrap();
    let before = index.streams().unwrap();
    index.insert_segments(&segments[..1]).unwrap();
    index.insert_segments(&segments).unwrap();
    assert_eq!(index.streams().unwrap(), before);
    assert_eq!(all(&index), segments);
}

#[test]
fn a_segment_that_overlaps_is_refused_with_its_whole_batch() {
    #[track_caller]
    fn check(segments: &[SegmentSummary], expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let index = open(dir.path());
        index.insert_segments(&[segment("shop", 11, 20), segment("shop", 31, 40)]).unwrap();
        let before = (all(&index), index.streams().unwrap());
        let error = index.insert_segments(segments).unwrap_err().to_string();
        assert!(error.starts_with(&format!("segment `{expected}` overlaps")), "{error}");
        assert_eq!((all(&index), index.streams().unwrap()), before);
    }
    let key = |first| segment("shop", first, first).key.to_string();
    check(&[segment("mail", 1, 2), segment("shop", 20, 21)], &key(20));
    check(&[segment("shop", 30, 31)], &key(30));
    check(&[segment("shop", 11, 31)], &key(11));
    check(&[segment("shop", 41, 50), segment("shop", 50, 51)], &key(50));
}

#[test]
fn a_stream_is_removed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index
        .insert_segments(&[segment("shop", 1, 10), segment("shop2", 1, 10), segment("sho", 1, 10)])
        .unwrap();
    index.remove_stream(&name("shop")).unwrap();
    assert_eq!(all(&index), [segment("sho", 1, 10), segment("shop2", 1, 10)]);
    assert_eq!(index.progress(&name("shop")).unwrap(), None);
    index.clear().unwrap();
    assert_eq!((all(&index), index.streams().unwrap()), (vec![], vec![]));
    index.close().unwrap();
    assert_eq!(all(&open(dir.path())), []);
}

#[test]
fn wiping_loses_nothing_that_cannot_be_inserted_again() {
    let dir = tempfile::tempdir().unwrap();
    let segments: Vec<_> = (0..50).map(|n| segment("shop", n * 10 + 1, n * 10 + 10)).collect();
    let index = open(dir.path());
    index.insert_segments(&segments).unwrap();
    let known = (all(&index), index.streams().unwrap());
    index.close().unwrap();
    let index = Index::open_anew(dir.path(), &holder()).unwrap();
    assert_eq!(all(&index), []);
    for chunk in segments.chunks(7) {
        index.insert_segments(chunk).unwrap();
    }
    assert_eq!((all(&index), index.streams().unwrap()), known);
}

#[test]
fn a_second_handle_is_refused_and_the_name_goes_with_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = Index::open(dir.path(), &holder()).unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "in use by process {} (`dacapo test`) since 2027",
            std::process::id()
        )),
        "{error}"
    );
    assert!(matches!(Index::open_anew(dir.path(), &holder()), Err(IndexError::Busy { .. })));
    first.close().unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("lock")).unwrap(), "");
}

#[test]
fn reopening_at_once_succeeds_closed_or_dropped() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let index = open(dir.path());
        index.insert_segments(&[segment("shop", round * 10 + 1, round * 10 + 10)]).unwrap();
        if round % 2 == 0 { index.close().unwrap() } else { drop(index) }
    }
    assert_eq!(all(&open(dir.path())).len(), 20);
}

/// Returns what is found in an index of two segments after `damage` was done to sled's files.
fn after(
    damage: impl FnOnce(&Path),
) -> (tempfile::TempDir, Result<Vec<SegmentSummary>, IndexError>) {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.insert_segments(&[segment("shop", 1, 10), segment("shop", 11, 20)]).unwrap();
    index.close().unwrap();
    damage(&dir.path().join(SLED));
    wait_for_sled(dir.path()).unwrap();
    let found = Index::open(dir.path(), &holder())
        .and_then(|index| index.segments().collect::<Result<Vec<_>, _>>());
    (dir, found)
}

fn with_db(sled: &Path, change: impl FnOnce(&sled::Db)) {
    let db = sled::open(sled).unwrap();
    change(&db);
    db.flush().unwrap();
}

#[test]
fn a_damaged_index_says_how_to_make_it_anew() {
    type Damage = fn(&Path);
    let damage: [(Damage, &str); 3] = [
        (
            |sled| {
                with_db(sled, |db| {
                    db.insert(entry::segment_key(&name("shop"), 11), "no segment").unwrap();
                });
            },
            "failed to decode",
        ),
        (
            |sled| {
                with_db(sled, |db| drop(db.remove(entry::segment_key(&name("shop"), 11)).unwrap()));
            },
            "1 segments of stream `shop` are there, and 2 should be",
        ),
        (
            |sled| with_db(sled, |db| drop(db.remove(entry::progress_key(&name("shop"))).unwrap())),
            "a stream has segments but no progress",
        ),
    ];
    for (damage, expected) in damage {
        let (dir, found) = after(damage);
        let error = found.unwrap_err();
        assert!(matches!(error, IndexError::Damaged { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("`dacapo index rebuild`"), "{text}");
        let index = Index::open_anew(dir.path(), &holder()).unwrap();
        index.insert_segments(&[segment("shop", 1, 10)]).unwrap();
        assert_eq!(all(&index), [segment("shop", 1, 10)]);
    }
}

#[test]
fn spoilt_files_never_show_a_part_of_what_was_there() {
    let spoil: [fn(&Path); 4] = [
        |sled| fs::write(sled.join(SLED_FILE), vec![0xAB; 600_000]).unwrap(),
        |sled| fs::write(sled.join(SLED_FILE), "").unwrap(),
        |sled| fs::write(sled.join("conf"), "nonsense").unwrap(),
        |sled| {
            let path = sled.join(SLED_FILE);
            let mut bytes = fs::read(&path).unwrap();
            bytes.iter_mut().skip(64).step_by(97).for_each(|byte| *byte ^= 0x55);
            fs::write(path, bytes).unwrap();
        },
    ];
    for spoil in spoil {
        match after(spoil).1 {
            // sled takes files that it cannot read for new ones: only time is lost.
            Ok(segments) => assert!(
                segments.is_empty()
                    || segments == [segment("shop", 1, 10), segment("shop", 11, 20)],
                "{segments:?}"
            ),
            Err(error) => assert!(matches!(error, IndexError::Damaged { .. }), "{error:?}"),
        }
    }
}

#[test]
fn a_newer_index_says_how_to_make_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.db.insert(entry::VERSION_KEY, &(entry::VERSION + 1).to_be_bytes()).unwrap();
    index.close().unwrap();
    let error = Index::open(dir.path(), &holder()).unwrap_err();
    assert!(matches!(error, IndexError::OtherVersion { found: 3, known: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("`dacapo index rebuild`"), "{error}");
}

#[test]
fn a_large_index_stays_small() {
    const SEGMENTS: u64 = 5_000;
    const EVENTS: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    for from in (0..SEGMENTS).step_by(500) {
        let batch: Vec<_> =
            (from..from + 500).map(|n| segment("shop", n * EVENTS + 1, (n + 1) * EVENTS)).collect();
        index.insert_segments(&batch).unwrap();
    }
    index.flush().unwrap();
    let stats = index.stats().unwrap();
    assert_eq!(stats.events, SEGMENTS * EVENTS);
    assert!(stats.bytes_on_disk < 5 * stats.events, "{stats:?}");
}

fn tallies() -> impl Strategy<Value = Tally> {
    (prop::collection::btree_map("\\PC{0,12}", any::<u64>(), 0..5), any::<u64>())
        .prop_map(|(counts, other)| Tally { counts, other })
}

proptest! {
    #[test]
    fn any_summary_comes_back(
        times in [any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>()],
        numbers in [any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()],
        tallies in [tallies(), tallies(), tallies()],
        digests in (any::<[u8; 32]>(), any::<Option<[u8; 32]>>(), any::<Option<[u8; 32]>>()),
    ) {
        let at = times.map(Timestamp::from_micros);
        let [by_type, by_routing_key, by_exchange] = tallies;
        let summary = SegmentSummary {
            size: numbers[0],
            first: numbers[1].min(numbers[2]),
            last: numbers[1].max(numbers[2]),
            time_min: at[0].min(at[1]),
            time_max: at[0].max(at[1]),
            archived_min: at[2].min(at[3]),
            archived_max: at[2].max(at[3]),
            body_bytes: numbers[3],
            by_type,
            by_routing_key,
            by_exchange,
            digest: Digest::from_bytes(digests.0),
            previous: digests.1.map(Digest::from_bytes),
            source_mark: digests.2.map(Digest::from_bytes),
            ..segment("shop", 1, 1)
        };
        prop_assert_eq!(entry::decode_segment(&entry::encode_segment(&summary)), Ok(summary));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        drop(entry::decode_segment(&bytes));
        drop(entry::decode_progress(&bytes, &bytes));
    }
}

fn output(first: Sequence, last: Sequence, dropped: u64) -> SegmentSummary {
    let key = format!(
        "compacted/stream=shop/date=2026-11-23/hour=08/{first:020}-0123456789abcdef.parquet"
    );
    let digest = Digest::of(b"output");
    SegmentSummary { key: key.parse().unwrap(), dropped, digest, ..segment("shop", first, last) }
}

#[test]
fn an_output_takes_the_place_of_what_lies_within_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let shop = name("shop");
    let segments = [segment("shop", 1, 10), segment("shop", 11, 20), segment("shop", 21, 30)];
    index.insert_segments(&segments).unwrap();
    index.insert_segments(&[segment("mail", 1, 5)]).unwrap();
    index.replace_covered(&output(1, 20, 3)).unwrap();
    index.set_compacted(&shop, 1).unwrap();
    let expected = [segment("mail", 1, 5), output(1, 20, 3), segment("shop", 21, 30)];
    assert_eq!(all(&index), expected);
    let progress = index.progress(&shop).unwrap().unwrap();
    assert_eq!((progress.segments, progress.events, progress.dropped), (2, 27, 3));
    assert_eq!((progress.last, progress.compacted), (30, Some(1)));
    assert!(progress.is_contiguous());
    for (sequence, first) in [(1, 1), (15, 1), (20, 1), (21, 21), (30, 21)] {
        assert_eq!(index.segment_at(&shop, sequence).unwrap().unwrap().first, first);
    }
    assert_eq!(index.segment_at(&shop, 31).unwrap(), None);
    // Again, in a fresh index, and over a part of a segment.
    index.replace_covered(&output(1, 20, 3)).unwrap();
    assert_eq!(all(&index), expected);
    let error = index.replace_covered(&output(1, 25, 0)).unwrap_err();
    assert!(matches!(error, IndexError::Overlap { .. }), "{error}");
    let error = index.replace_covered(&output(15, 20, 0)).unwrap_err();
    assert!(matches!(error, IndexError::Overlap { .. }), "{error}");
    index.close().unwrap();
    let index = open(dir.path());
    assert_eq!(all(&index), expected, "after it was closed and opened again");
    assert_eq!(index.progress(&shop).unwrap(), Some(progress));
}

#[test]
fn an_index_of_the_version_before_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.insert_segments(&[segment("shop", 1, 10)]).unwrap();
    index.db.insert(entry::VERSION_KEY, &entry::VERSION_BEFORE.to_be_bytes()).unwrap();
    index.close().unwrap();
    let index = open(dir.path());
    assert_eq!(all(&index), [segment("shop", 1, 10)]);
    let version = index.db.get(entry::VERSION_KEY).unwrap().unwrap();
    assert_eq!(version.as_ref(), entry::VERSION.to_be_bytes());
}
