//! What the tests of archiver and import share: a store that fails on a script, and the whole
//! archive as a list of events.

use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_archive::store::memory::MemoryStore;
use dacapo_archive::store::{ByteRange, ListPage, ObjectKey, Put, Store, StoreError};
use dacapo_archive::{ColumnSet, Rows, Segment, chain, verify};
use dacapo_event::{Event, StreamName, Timestamp};
use tokio::sync::Notify;

/// Noon of the day on which all tests take place.
pub(crate) fn noon() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

pub(crate) fn stream() -> StreamName {
    "shop".parse().unwrap()
}

/// On which side of a call the writer is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    After,
}

type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;
type Hook = Box<dyn Fn(&'static str, &str) -> Waiting + Send + Sync>;

/// A store that can be down, kill its caller at the nth call, and show each call to a hook.
pub(crate) struct FaultyStore {
    pub(crate) inner: Arc<MemoryStore>,
    pub(crate) down: AtomicBool,
    /// From 1; a call that is never answered stands for the end of the process.
    pub(crate) kill: Option<(usize, Side)>,
    pub(crate) fail: Option<usize>,
    pub(crate) killed: Notify,
    pub(crate) hook: Option<Hook>,
    pub(crate) calls: AtomicUsize,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

impl FaultyStore {
    pub(crate) fn new(inner: Arc<MemoryStore>) -> Self {
        FaultyStore {
            inner,
            down: AtomicBool::new(false),
            kill: None,
            fail: None,
            killed: Notify::new(),
            hook: None,
            calls: AtomicUsize::new(0),
        }
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        key: &str,
        real: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let nth = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(hook) = &self.hook {
            hook(operation, key).await;
        }
        if self.kill == Some((nth, Side::Before)) {
            self.killed.notify_one();
            pending::<()>().await;
        }
        if self.down.load(Ordering::SeqCst) || self.fail == Some(nth) {
            return Err(StoreError::Unavailable {
                key: key.to_owned(),
                location: self.location(),
                reason: "the script says so".to_owned(),
            });
        }
        let done = real.await;
        if self.kill == Some((nth, Side::After)) {
            self.killed.notify_one();
            pending::<()>().await;
        }
        done
    }
}

#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
#[async_trait]
impl Store for FaultyStore {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        self.call("put_new", key.as_str(), self.inner.put_new(key, bytes)).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.call("replace", key.as_str(), self.inner.replace(key, bytes)).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        self.call("get", key.as_str(), self.inner.get(key, range)).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        self.call("list", prefix, self.inner.list(prefix, after)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.call("delete", key.as_str(), self.inner.delete(key)).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// Returns the committed segments of the stream, each as its events.
pub(crate) async fn segments(store: &Arc<MemoryStore>) -> Vec<Vec<Event>> {
    let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
    let mut segments = Vec::new();
    for (object, _) in chain::committed(&*store, &stream(), None).await.unwrap() {
        let segment =
            Segment::open(Arc::clone(&store), &object.key, Some(object.size)).await.unwrap();
        let mut events = Vec::new();
        for group in 0..segment.row_groups() {
            let rows = Rows::all(segment.facts(group).rows);
            events.extend(segment.read(group, &rows, ColumnSet::ALL).await.unwrap());
        }
        segments.push(events);
    }
    segments
}

/// Returns the events of the stream in order.
pub(crate) async fn archived(store: &Arc<MemoryStore>) -> Vec<Event> {
    segments(store).await.concat()
}

/// Asserts that the archive has no fault, and returns its events in order.
#[track_caller]
pub(crate) fn sound(store: &Arc<MemoryStore>) -> impl Future<Output = Vec<Event>> + use<> {
    let (store, caller) = (Arc::clone(store), std::panic::Location::caller());
    async move {
        let whole: Arc<dyn Store> = Arc::<MemoryStore>::clone(&store);
        let report = verify::verify(whole, &[], |_| {}).await.unwrap();
        assert_eq!(report.problems, [], "the archive is sound at {caller}");
        archived(&store).await
    }
}
