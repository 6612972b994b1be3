//! What every [`Store`] must do; run by the tests of each implementation.
//!
//! The suite asks nothing about how: it puts, reads, lists and deletes, and panics with the
//! promise that was broken.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};

use super::{ByteRange, ListPage, ObjectKey, Put, Store, StoreError};

/// Writers of one key at the same time: more than the blocking threads that two cores run at once.
const RACERS: u8 = 16;
/// Keys in the paging check: more than one page of 1,000, and not a multiple of it.
const PAGED_KEYS: usize = 1_234;
/// Puts under way at once while the paging check fills the store.
const FILLERS: usize = 32;
/// A size that no implementation moves in one piece.
const LARGE_BYTES: usize = 5 * 1024 * 1024;

/// Checks a store that is empty and that nobody else uses; leaves objects behind.
///
/// # Panics
/// The store breaks the contract; the message says which promise.
pub async fn check_store(store: Arc<dyn Store>) {
    let store = store.as_ref();
    an_empty_store_lists_nothing(store).await;
    a_put_is_write_once(store).await;
    of_many_writers_one_wins(store).await;
    replace_creates_and_replaces(store).await;
    every_range_is_exact(store).await;
    empty_and_large_objects_come_back(store).await;
    a_missing_object_is_named(store).await;
    delete_is_idempotent(store).await;
    listings_follow_the_bytes_of_the_keys(store).await;
    listings_come_in_pages(store).await;
}

async fn an_empty_store_lists_nothing(store: &dyn Store) {
    let page = promised(store.list("", None).await, "an empty store can be listed");
    assert_eq!(
        page,
        ListPage { objects: Vec::new(), more: false },
        "the suite needs an empty store"
    );
}

async fn a_put_is_write_once(store: &dyn Store) {
    let key = key("once/object");
    put(store, &key, b"first").await;
    let again = promised(store.put_new(&key, text("second")).await, "a taken key is no error");
    assert_eq!(again, Put::Exists, "other bytes do not get a taken key");
    assert_eq!(full(store, &key).await, "first", "a refused put changes nothing");
    let retry = promised(store.put_new(&key, text("first")).await, "a put can be tried again");
    assert_eq!(retry, Put::Created, "a put that is tried again finds its own object");
}

async fn of_many_writers_one_wins(store: &dyn Store) {
    let key = key("once/raced");
    let bytes_of = |racer: u8| Bytes::from(vec![racer; 10_000 + usize::from(racer)]);
    let puts = (0..RACERS).map(|racer| store.put_new(&key, bytes_of(racer)));
    let outcomes = join_all(puts).await;
    let winners: Vec<u8> = (0..RACERS)
        .zip(outcomes)
        .filter_map(|(racer, put)| {
            (promised(put, "racing is no error") == Put::Created).then_some(racer)
        })
        .collect();
    let [winner] = winners[..] else { panic!("one racer must win, these did: {winners:?}") };
    assert!(full(store, &key).await == bytes_of(winner), "the object is the winner's, whole");
}

async fn replace_creates_and_replaces(store: &dyn Store) {
    let key = key("head.json");
    promised(store.replace(&key, text("one, and longer")).await, "replace creates");
    assert_eq!(full(store, &key).await, "one, and longer");
    promised(store.replace(&key, text("two")).await, "replace replaces");
    assert_eq!(full(store, &key).await, "two", "nothing of the former object is left");
    let put = promised(store.put_new(&key, text("three")).await, "a replaced key is a taken one");
    assert_eq!(put, Put::Exists);
}

async fn every_range_is_exact(store: &dyn Store) {
    let key = key("ranges");
    put(store, &key, b"0123456789").await;
    for (range, expected) in [
        (ByteRange::Full, "0123456789"),
        (ByteRange::Span(0, 1), "0"),
        (ByteRange::Span(3, 7), "3456"),
        (ByteRange::Span(9, 10), "9"),
        (ByteRange::Span(0, 10), "0123456789"),
        (ByteRange::Suffix(0), ""),
        (ByteRange::Suffix(4), "6789"),
        (ByteRange::Suffix(10), "0123456789"),
        (ByteRange::Suffix(11), "0123456789"),
        (ByteRange::Suffix(1 << 40), "0123456789"),
    ] {
        let bytes = promised(store.get(&key, range).await, "a range inside the object is given");
        assert_eq!(bytes, expected, "{range:?}");
    }
    for range in [
        ByteRange::Span(0, 11),
        ByteRange::Span(9, 11),
        ByteRange::Span(10, 11),
        ByteRange::Span(500, 501),
        ByteRange::Span(5, 1 << 40),
        ByteRange::Span(5, 5),
        ByteRange::Span(7, 3),
    ] {
        let outcome = store.get(&key, range).await;
        let Err(StoreError::Permanent { key: named, .. }) = &outcome else {
            panic!("{range:?} of 10 bytes must be a permanent error, was {outcome:?}")
        };
        assert_eq!(named, "ranges", "the error names the object");
    }
}

async fn empty_and_large_objects_come_back(store: &dyn Store) {
    let empty = key("sizes/empty");
    put(store, &empty, b"").await;
    for range in [ByteRange::Full, ByteRange::Suffix(0), ByteRange::Suffix(7)] {
        let bytes = promised(store.get(&empty, range).await, "an empty object can be read");
        assert!(bytes.is_empty(), "{range:?} of an empty object is empty");
    }
    let span = store.get(&empty, ByteRange::Span(0, 1)).await;
    assert!(matches!(span, Err(StoreError::Permanent { .. })), "no span of nothing: {span:?}");

    let large = key("sizes/large");
    // A period that divides no power of two shows pieces that were swapped or repeated.
    let bytes: Vec<u8> = (0..LARGE_BYTES).map(|at| (at % 251) as u8).collect();
    put(store, &large, &bytes).await;
    assert!(full(store, &large).await == bytes, "a large object comes back as it was");
    let middle = store.get(&large, ByteRange::Span(1_000_003, 4_000_037)).await;
    assert!(promised(middle, "a large span is given") == bytes[1_000_003..4_000_037]);

    let page = promised(store.list("sizes/", None).await, "a prefix can be listed");
    let sizes: Vec<u64> = page.objects.iter().map(|object| object.size).collect();
    assert_eq!(sizes, [0, LARGE_BYTES as u64], "listings give sizes");
}

async fn a_missing_object_is_named(store: &dyn Store) {
    for missing in ["absent", "once/absent", "no/such/place/absent", "once"] {
        for range in [ByteRange::Full, ByteRange::Span(0, 1), ByteRange::Suffix(1)] {
            let outcome = store.get(&key(missing), range).await;
            let Err(StoreError::NotFound { key, .. }) = &outcome else {
                panic!("`{missing}` does not exist, the store said {outcome:?}")
            };
            assert_eq!(key, missing);
        }
    }
}

async fn delete_is_idempotent(store: &dyn Store) {
    let key = key("probe/passing");
    put(store, &key, b"soon gone").await;
    promised(store.delete(&key).await, "an object can be deleted");
    promised(store.delete(&key).await, "what is not there can be deleted");
    promised(store.delete(&self::key("no/such/place")).await, "nor where there is no place");
    let gone = store.get(&key, ByteRange::Full).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "deleted, yet {gone:?}");
    let page = promised(store.list("probe/", None).await, "a prefix without objects is no error");
    assert_eq!(page, ListPage { objects: Vec::new(), more: false });
    put(store, &key, b"a deleted key is free").await;
}

/// No key here lies under another: a directory cannot be a file, and the archive's layout needs
/// no such keys.
async fn listings_follow_the_bytes_of_the_keys(store: &dyn Store) {
    // `-` and `.` sort before `/`, digits and letters after it: a walk by name gets these wrong.
    let mut keys = vec![
        "order/a-b",
        "order/a-x/y",
        "order/a.b",
        "order/a/b",
        "order/a/c/d",
        "order/a/c/e",
        "order/a0",
        "order/a=1/x",
        "order/ab",
        "order/b",
        "order/zz/1/2/3",
        "order/é",
    ];
    for text in keys.iter().rev() {
        put(store, &key(text), text.as_bytes()).await;
    }
    keys.sort_unstable();

    let prefixes = [
        "order/",
        "order",
        "order/a",
        "order/a/",
        "order/a/c",
        "order/a/c/",
        "order/a.",
        "order/a-",
        "order/a-b",
        "order/z",
        "order/b",
        "order/b/",
        "order/é",
        "order/none",
        "order/none/",
    ];
    // Not only keys: also places before, between and after them, and a directory's own name.
    let places = ["aaa", "order", "order/a", "order/a/bb", "order/a/c", "order/a/c/dd", "zzz"];
    for prefix in prefixes {
        check_list(store, &keys, prefix, None).await;
        for after in keys.iter().chain(&places) {
            check_list(store, &keys, prefix, Some(after)).await;
        }
    }
}

async fn check_list(store: &dyn Store, keys: &[&str], prefix: &str, after: Option<&str>) {
    let is_asked = |key: &&&str| key.starts_with(prefix) && after.is_none_or(|after| **key > after);
    let expected: Vec<&str> = keys.iter().filter(is_asked).copied().collect();
    let page = promised(store.list(prefix, after.map(key).as_ref()).await, "a listing is given");
    let listed: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(listed, expected, "the keys that begin with `{prefix}`, after {after:?}");
    assert!(!page.more, "nothing comes after the last object");
}

async fn listings_come_in_pages(store: &dyn Store) {
    let expected: Vec<String> =
        (0..PAGED_KEYS).map(|at| format!("paged/{}/{at:05}.json", at / 700)).collect();
    let fill = |name: &String| {
        let key = key(name);
        async move { put(store, &key, b"small").await }
    };
    stream::iter(&expected).map(fill).buffer_unordered(FILLERS).collect::<()>().await;

    let (mut seen, mut after) = (Vec::new(), None);
    // Each page brings at least one object, or the loop could not know where to go on.
    for _ in 0..=PAGED_KEYS {
        let page = promised(store.list("paged/", after.as_ref()).await, "a page can be listed");
        assert!(page.objects.len() <= 1_000, "a page has at most 1,000 objects");
        assert!(!page.more || !page.objects.is_empty(), "a page that says more has an object");
        seen.extend(page.objects.iter().map(|object| object.key.to_string()));
        after = page.objects.last().map(|object| object.key.clone());
        if !page.more {
            break;
        }
    }
    assert!(seen == expected, "pages join without a gap or a repeat: {} objects", seen.len());
}

async fn put(store: &dyn Store, key: &ObjectKey, bytes: &[u8]) {
    let put = store.put_new(key, Bytes::copy_from_slice(bytes)).await;
    assert_eq!(promised(put, "a free key can be put"), Put::Created, "`{key}` was free");
}

async fn full(store: &dyn Store, key: &ObjectKey) -> Bytes {
    promised(store.get(key, ByteRange::Full).await, "what was put can be read")
}

#[track_caller]
fn promised<T: Debug>(outcome: Result<T, StoreError>, promise: &str) -> T {
    outcome.unwrap_or_else(|error| panic!("{promise}, but: {error}"))
}

fn key(text: &str) -> ObjectKey {
    text.parse().expect("the suite's keys are object keys")
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}
