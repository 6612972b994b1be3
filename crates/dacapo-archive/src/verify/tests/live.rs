//! An archive that changes while it is verified: an archiver adds to it, or a compaction takes away
//! from it. Nothing of that is a problem.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::store::{ListPage, Put, StoreError};
use crate::testing::{
    Inputs, PagesOfOne, block_on, compact_all, objects, store_of, to_be_compacted,
};

/// A store in which others are at work at one of the calls of whoever uses it.
#[derive(Debug)]
struct Busy {
    inner: Arc<dyn Store>,
    calls_before: AtomicUsize,
    work: fn(&Arc<dyn Store>),
}

impl Busy {
    fn call(&self) {
        let less = |left: usize| left.checked_sub(1);
        let before = self.calls_before.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        if before == Ok(1) {
            // A thread has no runtime yet.
            thread::scope(|scope| scope.spawn(|| (self.work)(&self.inner)).join()).unwrap();
        }
    }
}

#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
#[async_trait]
impl Store for Busy {
    async fn put_new(&self, key: &ObjectKey, _: Bytes) -> Result<Put, StoreError> {
        panic!("{key} was put")
    }

    async fn replace(&self, key: &ObjectKey, _: Bytes) -> Result<(), StoreError> {
        panic!("{key} was replaced")
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        self.call();
        self.inner.get(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        self.call();
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        panic!("{key} was deleted")
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// Checks that the archive is sound at whichever call of the verification the work is done.
#[track_caller]
fn check_at_any_call(archive: fn() -> Arc<dyn Store>, work: fn(&Arc<dyn Store>)) {
    for calls in 1.. {
        let store =
            Arc::new(Busy { inner: archive(), calls_before: AtomicUsize::new(calls), work });
        let paged = Arc::new(PagesOfOne(store.clone()));
        let report = block_on(verify(paged, &[], |_| {})).unwrap();
        assert_eq!(report.problems, [], "at call {calls}");
        if store.calls_before.load(Ordering::SeqCst) > 0 {
            assert!(calls > 5, "it was never at work");
            return;
        }
    }
}

/// Three segments more, and one that was put and is not committed yet.
fn archive_more(store: &Arc<dyn Store>) {
    block_on(async {
        extend(store, 3).await;
        let ahead = store_of(&objects(store).await).await;
        extend(&ahead, 1).await;
        let segment = keys(&ahead, "segments/").await.pop().unwrap();
        let bytes = ahead.get(&segment, ByteRange::Full).await.unwrap();
        assert_eq!(store.put_new(&segment, bytes).await.unwrap(), Put::Created);
    });
}

#[test]
fn an_archiver_may_go_on() {
    check_at_any_call(|| block_on(archive(4)), archive_more);
}

#[test]
fn an_archiver_may_begin_a_stream() {
    let work = |store: &Arc<dyn Store>| block_on(testing::extend(store, "new", 2, "word"));
    check_at_any_call(|| block_on(archive(4)), work);
    check_at_any_call(|| block_on(archive(0)), work);
}

/// Its chain entry is there before.
#[test]
fn a_first_writer_may_put_its_head_a_moment_later() {
    block_on(async {
        let store = archive(1).await;
        let head = keys(&store, layout::HEADS).await.remove(0);
        let bytes = store.get(&head, ByteRange::Full).await.unwrap();
        store.delete(&head).await.unwrap();
        let put = async {
            tokio::time::sleep(HEAD_PATIENCE / 2).await;
            store.replace(&head, bytes).await.unwrap();
        };
        let (report, ()) = tokio::join!(verify(Arc::clone(&store), &[], |_| {}), put);
        assert_eq!(report.unwrap().problems, []);
    });
}

#[test]
fn a_compaction_may_merge_and_delete() {
    let work = |store: &Arc<dyn Store>| block_on(compact_all(store, Inputs::Deleted));
    check_at_any_call(|| block_on(to_be_compacted("word")), work);
}

#[test]
fn an_archiver_and_a_compaction_may_go_on() {
    let work = |store: &Arc<dyn Store>| {
        archive_more(store);
        block_on(compact_all(store, Inputs::Deleted));
    };
    check_at_any_call(|| block_on(to_be_compacted("word")), work);
}
