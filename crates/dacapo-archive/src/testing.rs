//! What the tests of verify and repair share: small archives, and their objects to be damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Event, Message, StreamName, Timestamp};

use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, ObjectKey, Store};
use crate::{SegmentBuilder, StreamWriter, chain};

/// All objects of an archive.
pub(crate) type Objects = BTreeMap<ObjectKey, Bytes>;

/// The one moment at which all tests take place, so that what is written again is the same.
pub(crate) fn clock() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

/// Runs a future where a test cannot be async.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
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
