//! Every kind of damage is found and named.

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, ObjectKey};
use crate::testing;

mod crafted;
mod damage;
mod live;

/// An archive of one stream with `segments` segments of two events.
async fn archive(segments: u64) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    extend(&store, segments).await;
    store
}

async fn extend(store: &Arc<dyn Store>, segments: u64) {
    testing::extend(store, "shop", segments, "body").await;
}

async fn problems(store: &Arc<dyn Store>, expected: &[Head]) -> Vec<String> {
    let report = verify(Arc::clone(store), expected, |_| {}).await.unwrap();
    report.problems.iter().map(|finding| format!("{}: {}", finding.key, finding.problem)).collect()
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<ObjectKey> {
    let objects = chain::list_all(&**store, prefix, None).await.unwrap();
    objects.into_iter().map(|object| object.key).collect()
}

async fn change(store: &Arc<dyn Store>, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = store.get(key, ByteRange::Full).await.unwrap().to_vec();
    change(&mut bytes);
    store.replace(key, bytes.into()).await.unwrap();
}

#[track_caller]
fn check(found: &[String], key: &ObjectKey, problem: &str) {
    let named = found.iter().any(|line| line.contains(key.as_str()) && line.contains(problem));
    assert!(named, "`{problem}` of {key} is not in {found:#?}");
}

#[tokio::test]
async fn a_sound_archive_has_no_problem() {
    let store = archive(4).await;
    let report = verify(Arc::clone(&store), &[], |_| {}).await.unwrap();
    assert_eq!((report.streams, report.segments, report.events), (1, 4, 8));
    assert_eq!((report.problems, report.notes), (vec![], vec![]));
    assert!(problems(&store, &report.heads).await.is_empty());
}

#[tokio::test]
async fn an_empty_archive_is_sound() {
    assert!(problems(&archive(0).await, &[]).await.is_empty());
}

#[tokio::test]
async fn a_flipped_byte_a_cut_and_a_removal_are_named() {
    let store = archive(4).await;
    let segments = keys(&store, "segments/").await;
    change(&store, &segments[0], |bytes| bytes[100] ^= 1).await;
    change(&store, &segments[1], |bytes| bytes.truncate(bytes.len() - 10)).await;
    store.delete(&segments[2]).await.unwrap();
    let found = problems(&store, &[]).await;
    assert_eq!(found.len(), 3, "{found:#?}");
    check(&found, &segments[0], "digest differs");
    check(&found, &segments[1], "was written with");
    check(&found, &segments[2], "is missing");
}

#[tokio::test]
async fn two_segments_swapped_are_both_named() {
    let store = archive(3).await;
    let segments = keys(&store, "segments/").await;
    let a = store.get(&segments[0], ByteRange::Full).await.unwrap();
    let b = store.get(&segments[1], ByteRange::Full).await.unwrap();
    store.replace(&segments[0], b).await.unwrap();
    store.replace(&segments[1], a).await.unwrap();
    let found = problems(&store, &[]).await;
    assert!(found.iter().any(|line| line.contains(segments[0].as_str())), "{found:#?}");
    assert!(found.iter().any(|line| line.contains(segments[1].as_str())), "{found:#?}");
}

#[tokio::test]
async fn a_gap_in_the_chain_is_named_with_its_sequences() {
    let store = archive(4).await;
    let entry = keys(&store, "chain/").await.remove(1);
    store.delete(&entry).await.unwrap();
    let report = verify(Arc::clone(&store), &[], |_| {}).await.unwrap();
    let [missing] = report.problems.as_slice() else { panic!("{:#?}", report.problems) };
    assert_eq!(missing.key, entry.as_str());
    assert_eq!((missing.problem.as_str(), missing.sequences), ("is missing", Some((3, 4))));
}

#[tokio::test]
async fn a_tail_rolled_back_shows_against_the_head() {
    let store = archive(4).await;
    for prefix in ["segments/", "chain/"] {
        store.delete(keys(&store, prefix).await.last().unwrap()).await.unwrap();
    }
    let head = keys(&store, "heads/").await.remove(0);
    check(&problems(&store, &[]).await, &head, "the chain ends at 6: the tail is gone");
}

#[tokio::test]
async fn a_rollback_of_tail_and_head_shows_against_a_kept_copy() {
    let store = archive(2).await;
    let head = keys(&store, "heads/").await.remove(0);
    let early = store.get(&head, ByteRange::Full).await.unwrap();
    extend(&store, 1).await;
    let kept = verify(Arc::clone(&store), &[], |_| {}).await.unwrap().heads;
    for prefix in ["segments/", "chain/"] {
        store.delete(keys(&store, prefix).await.last().unwrap()).await.unwrap();
    }
    store.replace(&head, early).await.unwrap();
    assert!(problems(&store, &[]).await.is_empty(), "on its own it looks sound");
    check(&problems(&store, &kept).await, &head, "rolled back");
}

#[tokio::test]
async fn unreadable_small_objects_are_named() {
    let store = archive(3).await;
    let entry = keys(&store, "chain/").await.remove(1);
    let head = keys(&store, "heads/").await.remove(0);
    change(&store, &entry, |bytes| bytes.truncate(20)).await;
    change(&store, &head, |bytes| bytes[0] = b'x').await;
    let found = problems(&store, &[]).await;
    check(&found, &entry, "EOF");
    check(&found, &head, "expected");
}

#[tokio::test]
async fn a_head_that_is_gone_is_named() {
    let store = archive(2).await;
    let head = keys(&store, "heads/").await.remove(0);
    store.delete(&head).await.unwrap();
    check(&problems(&store, &[]).await, &head, "is missing, and its chain ends at 4");
}

/// The recipe of docs/operations.md names these prefixes, which `integration/tests/workspace` holds
/// it to.
#[test]
fn a_stream_that_is_removed_with_all_its_prefixes_leaves_a_sound_archive() {
    let whole = testing::compacted("now", testing::Inputs::Kept);
    testing::block_on(async {
        let removed = |prefix: &'static str| {
            move |key: &ObjectKey| {
                let stream = layout::stream_of(key);
                stream.is_some_and(|name| name.as_str() == "shop")
                    && key.as_str().starts_with(prefix)
            }
        };
        let without = |prefixes: &[&'static str]| {
            let mut objects = whole.clone();
            objects.retain(|key, _| !prefixes.iter().any(|prefix| removed(prefix)(key)));
            objects
        };
        let of_streams = layout::OF_STREAMS;
        for kept in of_streams {
            let some: Vec<_> = of_streams.into_iter().filter(|prefix| *prefix != kept).collect();
            let report =
                verify(testing::store_of(&without(&some)).await, &[], |_| {}).await.unwrap();
            assert!(!(report.problems.is_empty() && report.notes.is_empty()), "{kept}");
        }
        let all = testing::store_of(&without(&of_streams)).await;
        let report = verify(all, &[], |_| {}).await.unwrap();
        assert_eq!((report.problems, report.notes, report.streams), (vec![], vec![], 1));
    });
}

/// The digest is taken with its own digits zeroed, so it says nothing of them.
#[tokio::test]
async fn a_letter_of_a_segments_own_digest_in_upper_case_is_found() {
    let store = archive(1).await;
    let segment = keys(&store, "segments/").await.remove(0);
    change(&store, &segment, |bytes| {
        let name = b"dacapo.digest";
        let at = bytes.windows(name.len()).rposition(|window| window == name).unwrap();
        let digits = at + name.len()..;
        let letter = bytes[digits.clone()].iter().position(|b| (b'a'..=b'f').contains(b)).unwrap();
        bytes[digits][letter].make_ascii_uppercase();
    })
    .await;
    check(&problems(&store, &[]).await, &segment, "digest");
}

/// All that the entry leads to is as it was: the bytes from the start, and the tail with the digest.
#[tokio::test]
async fn a_second_tail_after_a_segments_own_is_found() {
    let store = archive(2).await;
    let segment = keys(&store, "segments/").await.remove(0);
    change(&store, &segment, |bytes| bytes.extend_from_within(..)).await;
    check(&problems(&store, &[]).await, &segment, "was written with");
}
