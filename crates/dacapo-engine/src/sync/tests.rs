//! The index follows the archive, and says what it could not read.

use dacapo_archive::store::metered::{Metered, ReadTotals};
use dacapo_archive::store::{ByteRange, ObjectKey};
use dacapo_event::Event;
use dacapo_index::Holder;
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testing::{Archive, at, block_on, clock, event, name};

fn index() -> (TempDir, Index) {
    let dir = tempfile::tempdir().unwrap();
    let holder = Holder { command: "dacapo test".to_owned(), since: clock() };
    let index = Index::open(dir.path(), &holder).unwrap();
    (dir, index)
}

fn events(count: u64) -> Vec<Event> {
    (0..count).map(|n| event(n, at(n))).collect()
}

async fn synced(store: &Arc<dyn Store>, index: &Index) -> (SyncReport, ReadTotals) {
    let metered = Arc::new(Metered::new(Arc::clone(store)));
    let store = Arc::clone(&metered) as Arc<dyn Store>;
    let report = sync(&store, index, |progress| assert!(progress.done <= progress.all)).await;
    (report.unwrap(), metered.totals())
}

fn indexed(index: &Index) -> Vec<SegmentSummary> {
    index.segments().collect::<Result<_, _>>().unwrap()
}

async fn delete_all(store: &Arc<dyn Store>, prefix: &str) {
    for object in chain::list_all(&**store, prefix, None).await.unwrap() {
        store.delete(&object.key).await.unwrap();
    }
}

#[tokio::test]
async fn an_empty_index_gets_everything_and_then_only_what_is_new() {
    let mut archive = Archive::of(vec![events(60), events(9)], 2).await;
    let (_dir, index) = index();
    let (report, _) = synced(&archive.store, &index).await;
    assert_eq!(report, SyncReport { added: 35, ..SyncReport::default() });
    assert!(report.is_complete());
    assert_eq!(indexed(&index), archive.summaries);

    // Nothing new: a listing of heads, the heads, a listing that shows that none is gone, and one
    // of compactions.
    let (report, read) = synced(&archive.store, &index).await;
    assert_eq!(report, SyncReport::default());
    assert!(read.requests <= 5, "{read:?}");

    let key = archive.append("s0", events(2)).await;
    let (report, read) = synced(&archive.store, &index).await;
    assert_eq!(report, SyncReport { added: 1, ..SyncReport::default() });
    assert_eq!(indexed(&index), archive.summaries);
    // On top of that: the chain entry of what is known, two listings, one footer.
    let size = archive.summaries.iter().find(|summary| summary.key == key).unwrap().size;
    assert!(read.requests <= 5 + 4, "{read:?}");
    assert!(read.bytes < size + 3_000, "{read:?}");
}

#[tokio::test]
async fn an_empty_archive_is_complete() {
    let (_dir, index) = index();
    let (report, _) = synced(&Archive::new().store, &index).await;
    assert!(report.is_complete());
    assert_eq!(index.stats().unwrap().segments, 0);
}

#[tokio::test]
async fn an_index_of_another_archive_is_begun_again() {
    let later = |count: u64| (0..count).map(|n| event(n, at(n + 1_000))).collect::<Vec<_>>();
    // As long, longer and shorter than what is known.
    for other in [6, 9, 3] {
        let first = Archive::of(vec![events(6), events(4)], 3).await;
        let mut second = Archive::of(vec![later(other)], 3).await;
        for events in events(4).chunks(3) {
            second.append("s1", events.to_vec()).await;
        }
        let (_dir, index) = index();
        synced(&first.store, &index).await;
        let (report, _) = synced(&second.store, &index).await;
        assert_eq!((report.restarted, report.is_complete()), (1, true), "{other}: {report:?}");
        assert_eq!(indexed(&index), second.summaries, "{other}");
    }
}

#[tokio::test]
async fn streams_that_are_gone_are_dropped() {
    let archive = Archive::of(vec![events(6), events(6)], 3).await;
    let (_dir, index) = index();
    synced(&archive.store, &index).await;
    for prefix in ["heads/s0", "chain/s0/", "segments/stream=s0/"] {
        delete_all(&archive.store, prefix).await;
    }
    let (report, _) = synced(&archive.store, &index).await;
    assert_eq!(report, SyncReport { restarted: 1, ..SyncReport::default() });
    assert_eq!(indexed(&index), archive.summaries[2..]);
}

#[tokio::test]
async fn a_stream_without_its_head_stays_known_and_is_reported() {
    let archive = Archive::of(vec![events(6), events(6)], 3).await;
    let (_dir, index) = index();
    synced(&archive.store, &index).await;
    delete_all(&archive.store, "heads/s0").await;
    let (report, _) = synced(&archive.store, &index).await;
    assert!(!report.is_complete());
    let [(key, problem)] = report.unreadable.as_slice() else { panic!("{report:?}") };
    assert_eq!(key, "heads/s0.json");
    assert!(problem.contains("archive verify"), "{problem}");
    assert_eq!(indexed(&index), archive.summaries);
}

/// Breaks one segment in a way, syncs an empty index and one that knew half, mends it, syncs again.
async fn check_broken(
    number: usize,
    problem: &str,
    broken: impl AsyncFn(&Arc<dyn Store>, &ObjectKey),
) {
    let mut archive = Archive::of(vec![events(9)], 3).await;
    let (_dir, index) = index();
    if number > 2 {
        synced(&archive.store, &index).await;
    }
    for events in events(6).chunks(3) {
        archive.append("s0", events.to_vec()).await;
    }
    let summary = archive.summaries[number].clone();
    let sound = archive.store.get(&summary.key, ByteRange::Full).await.unwrap();
    broken(&archive.store, &summary.key).await;
    // The second time the rest is known already, and what is wrong is still told.
    for _ in 0..2 {
        let (report, _) = synced(&archive.store, &index).await;
        let [(key, told)] = report.unreadable.as_slice() else { panic!("{number}: {report:?}") };
        assert_eq!(key, summary.key.as_str());
        assert!(told.contains(problem), "{told}");
        let gap = Gap { stream: name("s0"), first: summary.first, last: summary.last };
        assert_eq!(report.gaps, [gap], "{number}");
        let known: Vec<_> =
            archive.summaries.iter().filter(|other| **other != summary).cloned().collect();
        assert_eq!(indexed(&index), known, "{number}");
    }
    archive.store.replace(&summary.key, sound).await.unwrap();
    let (report, _) = synced(&archive.store, &index).await;
    assert_eq!(report, SyncReport { added: 1, ..SyncReport::default() }, "{number}");
    assert_eq!(indexed(&index), archive.summaries, "{number}");
}

#[tokio::test]
async fn a_broken_segment_is_reported_the_rest_indexed_and_a_mended_one_found() {
    for number in 0..5 {
        check_broken(number, "is damaged", async |store, key| {
            let size = store.get(key, ByteRange::Full).await.unwrap().len();
            store.replace(key, vec![7; size].into()).await.unwrap();
        })
        .await;
        check_broken(number, "it is empty or gone", async |store, key| {
            store.replace(key, bytes::Bytes::new()).await.unwrap();
        })
        .await;
        check_broken(number, "it is empty or gone", async |store, key| {
            store.delete(key).await.unwrap();
        })
        .await;
        check_broken(number, "its footer is of another segment", async |store, key| {
            // Of another stream, with the same sequences.
            let mut other = Archive::new();
            for events in events(15).chunks(3) {
                other.append("other", events.to_vec()).await;
            }
            let other_key = &other.summaries[number].key;
            let bytes = other.store.get(other_key, ByteRange::Full).await.unwrap();
            store.replace(key, bytes).await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_tail_that_the_head_knows_and_the_chain_does_not_is_a_gap() {
    let archive = Archive::of(vec![events(9)], 3).await;
    let (_dir, index) = index();
    archive.store.delete(&layout::chain_entry(&name("s0"), 7)).await.unwrap();
    let (report, _) = synced(&archive.store, &index).await;
    assert_eq!(report.gaps, [Gap { stream: name("s0"), first: 7, last: 9 }]);
    assert!(!report.is_complete());
    assert_eq!(indexed(&index), archive.summaries[..2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_index_kept_up_to_date_equals_one_built_at_once(
        appends in vec((0_u8..3, 1_u64..4, any::<bool>()), 1..25),
    ) {
        block_on(async {
            let mut archive = Archive::new();
            let (_dir, kept) = index();
            for (stream, count, sync_now) in appends {
                archive.append(&format!("s{stream}"), events(count)).await;
                if sync_now {
                    synced(&archive.store, &kept).await;
                }
            }
            let (report, _) = synced(&archive.store, &kept).await;
            assert!(report.is_complete() && report.restarted == 0, "{report:?}");
            assert_eq!(indexed(&kept), archive.summaries);
            let (_dir, anew) = index();
            synced(&archive.store, &anew).await;
            assert_eq!(indexed(&anew), indexed(&kept));
            assert_eq!(anew.streams().unwrap(), kept.streams().unwrap());
        });
    }
}

#[tokio::test]
async fn a_stream_whose_head_is_gone_is_indexed_and_told() {
    let archive = Archive::of(vec![events(6), events(4)], 2).await;
    let head = layout::head(&"s0".parse().unwrap());
    archive.store.delete(&head).await.unwrap();
    let (_dir, index) = index();
    let (report, _) = synced(&archive.store, &index).await;
    assert_eq!(indexed(&index), archive.summaries);
    assert!(!report.is_complete());
    assert_eq!(report.unreadable, [(head.to_string(), HEAD_GONE.to_owned())]);
}

#[tokio::test]
async fn outputs_take_the_place_of_what_they_were_made_of_at_the_price_of_their_footers() {
    let mut archive = Archive::of(vec![events(60), events(9)], 2).await;
    let (_dir, kept) = index();
    synced(&archive.store, &kept).await;
    for later in [false, true] {
        archive.compact(1 << 20, later).await;
        let (report, read) = synced(&archive.store, &kept).await;
        assert!(report.is_complete() && report.restarted == 0, "{report:?}");
        assert_eq!(indexed(&kept), archive.summaries);
        // Two outputs, each with its entry, once; afterwards nothing is new.
        assert_eq!(report.added, if later { 0 } else { 2 });
        assert!(read.requests <= if later { 5 } else { 9 }, "{read:?}");
        let (_dir, anew) = index();
        let (report, read) = synced(&archive.store, &anew).await;
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(indexed(&anew), indexed(&kept));
        assert_eq!(anew.streams().unwrap(), kept.streams().unwrap());
        // The footers of merged segments are not read.
        assert!(read.requests <= 5 + 2 * (2 + 2 + 1), "{read:?}");
    }
}

#[tokio::test]
async fn an_output_that_is_gone_or_damaged_leaves_what_it_was_made_of() {
    for damage in ["gone", "damaged", "no entry"] {
        let mut archive = Archive::of(vec![events(20)], 2).await;
        let before = archive.summaries.clone();
        archive.compact(1 << 20, false).await;
        let (_dir, kept) = index();
        synced(&archive.store, &kept).await;
        let (_dir, anew) = index();
        let output = archive.summaries[0].clone();
        let entry = layout::compaction_entry(&name("s0"), 1);
        let key = if damage == "no entry" { entry } else { output.key.clone() };
        let sound = archive.store.get(&key, ByteRange::Full).await.unwrap();
        match damage {
            "damaged" => archive.store.replace(&key, vec![7; sound.len()].into()).await.unwrap(),
            _ => archive.store.delete(&key).await.unwrap(),
        }
        let (report, _) = synced(&archive.store, &anew).await;
        assert_eq!(report.unreadable.len(), usize::from(damage != "no entry"), "{report:?}");
        assert_eq!((indexed(&anew), report.gaps), (before.clone(), vec![]), "{damage}");
        if damage == "no entry" {
            // Its rollback is noticed by an index that knew it.
            let (report, _) = synced(&archive.store, &kept).await;
            assert_eq!((report.restarted, indexed(&kept)), (1, before), "{damage}");
        }
        archive.store.put_new(&key, sound.clone()).await.unwrap();
        archive.store.replace(&key, sound).await.unwrap();
        for index in [&kept, &anew] {
            let (report, _) = synced(&archive.store, index).await;
            assert!(report.is_complete(), "{damage}: {report:?}");
            assert_eq!(indexed(index), archive.summaries, "{damage}");
        }
        assert_eq!(anew.streams().unwrap(), kept.streams().unwrap());
    }
}

/// Two compactions that a wrong restore has put together.
#[tokio::test]
async fn outputs_that_overlap_are_told_and_stop_no_command() {
    let mut archive = Archive::of(vec![events(40), events(6)], 2).await;
    let mut other = Archive::of(vec![events(20)], 2).await;
    archive.compact(1 << 20, false).await;
    other.compact(1 << 20, false).await;
    for n in 10..20 {
        other.append("s0", vec![event(2 * n, at(2 * n)), event(2 * n + 1, at(2 * n + 1))]).await;
    }
    other.compact(1 << 20, false).await;
    let output = other.summaries.iter().find(|summary| summary.first == 19).unwrap();
    for key in [output.key.clone(), layout::compaction_entry(&name("s0"), 19)] {
        let bytes = other.store.get(&key, ByteRange::Full).await.unwrap();
        archive.store.put_new(&key, bytes).await.unwrap();
    }
    let (_dir, index) = index();
    let (report, _) = synced(&archive.store, &index).await;
    let [(key, problem)] = report.unreadable.as_slice() else { panic!("{report:?}") };
    assert_eq!(key, output.key.as_str());
    assert_eq!(*problem, format!("it has events of `{}`, too", archive.summaries[0].key));
    assert_eq!(indexed(&index), archive.summaries);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn so_does_one_of_an_archive_that_is_compacted_now_and_then(
        steps in vec((0_u8..3, 1_u64..4, any::<bool>(), 0_u8..6), 1..25),
    ) {
        block_on(async {
            let mut archive = Archive::new();
            let (_dir, kept) = index();
            for (stream, count, sync_now, compact) in steps {
                // The same events each time, so that some are repeats.
                archive.append(&format!("s{stream}"), events(count)).await;
                if compact < 2 {
                    archive.compact(20_000, compact == 1).await;
                }
                if sync_now {
                    synced(&archive.store, &kept).await;
                }
            }
            let (report, _) = synced(&archive.store, &kept).await;
            assert!(report.is_complete() && report.restarted == 0, "{report:?}");
            assert_eq!(indexed(&kept), archive.summaries);
            let (_dir, anew) = index();
            synced(&archive.store, &anew).await;
            assert_eq!(indexed(&anew), indexed(&kept));
            assert_eq!(anew.streams().unwrap(), kept.streams().unwrap());
        });
    }
}
