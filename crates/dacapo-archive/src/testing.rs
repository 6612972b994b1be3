//! What the tests of verify and repair share: small archives, and their objects to be damaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_event::{Digest, Event, MemoryBudget, Message, StreamName, Timestamp};

use crate::compact::{Mode, Options, compact};
use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, ListPage, ObjectKey, Put, Store, StoreError};
use crate::{SegmentBuilder, StreamWriter, chain};

/// All objects of an archive.
pub(crate) type Objects = BTreeMap<ObjectKey, Bytes>;

/// The one moment at which all tests take place, so that what is written again is the same.
pub(crate) fn clock() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

/// Runs a future where a test cannot be async; what it waits for passes at once.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(future)
}

/// Adds segments of two events each, with a word in every body.
pub(crate) async fn extend(store: &Arc<dyn Store>, stream: &str, segments: u64, word: &str) {
    let name: StreamName = stream.parse().unwrap();
    let mut writer = StreamWriter::open(Arc::clone(store), name.clone(), clock).await.unwrap();
    for _ in 0..segments {
        let mut builder = SegmentBuilder::new(name.clone(), writer.next());
        for _ in 0..2 {
            let sequence = builder.next();
            let event = Event {
                sequence,
                archived_at: clock(),
                time: clock(),
                id: format!("e{sequence}"),
                kind: "t".to_owned(),
                key: None,
                message: Message {
                    body: format!("{word} {sequence}").into(),
                    ..Message::default()
                },
            };
            builder.push(event).unwrap();
        }
        let sealed = builder.seal(writer.tip(), clock(), None).unwrap();
        writer.append(&sealed).await.unwrap();
    }
}

/// Returns the objects of an archive with these streams and numbers of segments.
pub(crate) fn written(streams: &[(&str, u64)], word: &str) -> Objects {
    block_on(async {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        for (stream, segments) in streams {
            extend(&store, stream, *segments, word).await;
        }
        objects(&store).await
    })
}

/// Whether the segments that were merged are still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inputs {
    Kept,
    Deleted,
}

/// Segments of each stream of a compacted archive, two events each.
pub(crate) const COMPACTED: [(&str, u64); 2] = [("audit", 3), ("shop", 9)];

/// Of this stream this segment is large enough to be its own output.
const LARGE: (&str, u64) = ("shop", 4);

/// Two segments of a compacted archive are filed under each day, and become an output; the one
/// before the large one stays alone.
const DAYS_SEGMENTS: u64 = 2;

/// Between the segments of a day, which are filed under different hours.
const MINUTES_APART: u64 = 70;

/// The size of outputs there, of which a small segment is less than a quarter.
const OUTPUT_BYTES: u64 = 32_000;

/// Returns the objects of an archive that is compacted but for the last segment of each stream,
/// which is its writer's. Every second segment begins with a repeat, which is dropped.
pub(crate) fn compacted(word: &str, inputs: Inputs) -> Objects {
    block_on(async {
        let store = to_be_compacted(word).await;
        compact_all(&store, inputs).await;
        objects(&store).await
    })
}

/// Returns that archive as it is before.
pub(crate) async fn to_be_compacted(word: &str) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (stream, segments) in COMPACTED {
        for segment in 1..=segments {
            append_to_be_merged(&store, stream, segment, word).await;
        }
    }
    store
}

/// Compacts that archive.
pub(crate) async fn compact_all(store: &Arc<dyn Store>, inputs: Inputs) {
    let options = Options {
        streams: Vec::new(),
        older_than: Duration::ZERO,
        grace: Duration::from_secs(if inputs == Inputs::Kept { 60 } else { 0 }),
        output_bytes: OUTPUT_BYTES,
        memory: MemoryBudget::DEFAULT,
        mode: Mode::Apply,
        clock,
    };
    compact(Arc::clone(store), &options, |_| {}).await.unwrap();
}

async fn append_to_be_merged(store: &Arc<dyn Store>, stream: &str, segment: u64, word: &str) {
    let name: StreamName = stream.parse().unwrap();
    let mut writer = StreamWriter::open(Arc::clone(store), name.clone(), clock).await.unwrap();
    let mut builder = SegmentBuilder::new(name, writer.next());
    // All of it happened before the one moment, and days but the last are over.
    let (_, segments) = COMPACTED.into_iter().find(|(name, _)| *name == stream).unwrap();
    let day_of = |segment: u64| (segment - 1) / DAYS_SEGMENTS;
    let days = day_of(segments) - day_of(segment);
    let minutes = (DAYS_SEGMENTS - segment % DAYS_SEGMENTS) * MINUTES_APART + 15 * days;
    let archived_at = Timestamp::from_secs(1_800_000_000 - (days * 24 * 60 + minutes) * 60);
    let of_first = match (segment.is_multiple_of(2), LARGE == (stream, segment)) {
        // That of the last event before, again.
        (true, false) => builder.next() - 1,
        _ => builder.next(),
    };
    for number in [of_first, builder.next() + 1] {
        let body = match LARGE == (stream, segment) {
            true => noise(word, number, OUTPUT_BYTES / 2),
            false => format!("{word} {number}").into(),
        };
        let event = Event {
            sequence: builder.next(),
            archived_at,
            time: clock(),
            id: format!("e{number}"),
            kind: "t".to_owned(),
            key: None,
            message: Message { body, ..Message::default() },
        };
        builder.push(event).unwrap();
    }
    let sealed = builder.seal(writer.tip(), archived_at, None).unwrap();
    writer.append(&sealed).await.unwrap();
}

/// Returns bytes that no encoding makes smaller.
fn noise(word: &str, number: u64, bytes: u64) -> Bytes {
    let piece = |at: u64| Digest::of(format!("{word} {number} {at}").as_bytes());
    let pieces = (0..bytes.div_ceil(64)).map(|at| piece(at).to_string());
    pieces.collect::<String>().into()
}

pub(crate) async fn objects(store: &Arc<dyn Store>) -> Objects {
    let mut objects = Objects::new();
    for object in chain::list_all(&**store, "", None).await.unwrap() {
        let bytes = store.get(&object.key, ByteRange::Full).await.unwrap();
        objects.insert(object.key, bytes);
    }
    objects
}

pub(crate) async fn store_of(objects: &Objects) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (key, bytes) in objects {
        store.replace(key, bytes.clone()).await.unwrap();
    }
    store
}

/// A store whose listings have one object a page.
#[derive(Debug)]
pub(crate) struct PagesOfOne(pub(crate) Arc<dyn Store>);

#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
#[async_trait]
impl Store for PagesOfOne {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        self.0.put_new(key, bytes).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.0.replace(key, bytes).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        self.0.get(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        let mut page = self.0.list(prefix, after).await?;
        page.more |= page.objects.len() > 1;
        page.objects.truncate(1);
        Ok(page)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.0.delete(key).await
    }

    fn location(&self) -> String {
        self.0.location()
    }
}
