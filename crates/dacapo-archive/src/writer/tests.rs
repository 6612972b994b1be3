//! A stream is extended by one writer at a time, and survives one killed between any two steps.

use dacapo_event::{Event, Message, Timestamp};

use super::*;
use crate::store::memory::MemoryStore;
use crate::{SegmentBuilder, testing};

fn clock() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

fn stream() -> StreamName {
    "shop".parse().unwrap()
}

/// A segment of three events that continues `writer`; `hour` moves it to another partition.
fn segment(writer: &StreamWriter, hour: u64, note: &str) -> Sealed {
    let first = writer.next();
    let at = Timestamp::from_secs(1_800_000_000 + hour * 3_600);
    let mut builder = SegmentBuilder::new(stream(), first);
    for sequence in first..first + 3 {
        let event = Event {
            sequence,
            archived_at: at,
            time: at,
            id: format!("{note}-{sequence}"),
            kind: String::new(),
            key: None,
            message: Message::default(),
        };
        builder.push(event).unwrap();
    }
    builder.seal(writer.tip(), at, None).unwrap()
}

async fn open(store: &Arc<dyn Store>) -> StreamWriter {
    StreamWriter::open(Arc::clone(store), stream(), clock).await.unwrap()
}

async fn sound(store: &Arc<dyn Store>) -> crate::verify::Report {
    let report = crate::verify::verify(Arc::clone(store), &[], |_| {}).await.unwrap();
    assert_eq!(report.problems, [], "the archive is sound");
    report
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

#[tokio::test]
async fn a_new_writer_goes_on_where_the_last_one_ended() {
    let store = memory();
    let mut writer = open(&store).await;
    assert_eq!(writer.next(), 1);
    for _ in 0..3 {
        let next = segment(&writer, 0, "a");
        writer.append(&next).await.unwrap();
    }
    assert_eq!(open(&store).await.next(), 10);
    assert_eq!(sound(&store).await.events, 9);
}

#[tokio::test]
async fn a_segment_put_by_a_killed_writer_is_adopted() {
    let store = memory();
    let mut writer = open(&store).await;
    let first = segment(&writer, 0, "a");
    writer.append(&first).await.unwrap();
    let left = segment(&writer, 0, "left");
    store.put_new(&left.summary.key, left.bytes.clone()).await.unwrap();

    let successor = open(&store).await;
    assert_eq!((successor.next(), successor.tip()), (7, Some(left.summary.digest)));
    assert_eq!(sound(&store).await.segments, 2);
}

#[tokio::test]
async fn a_head_left_behind_by_a_killed_writer_is_moved() {
    let store = memory();
    let mut writer = open(&store).await;
    let first = segment(&writer, 0, "a");
    writer.append(&first).await.unwrap();
    let before = chain::head(&*store, &stream()).await.unwrap().unwrap();
    let second = segment(&writer, 0, "b");
    writer.append(&second).await.unwrap();
    store.replace(&layout::head(&stream()), before.to_bytes()).await.unwrap();

    assert_eq!(open(&store).await.next(), 7);
    assert_eq!(chain::head(&*store, &stream()).await.unwrap().unwrap().last, 6);
    assert_eq!(sound(&store).await.notes, []);
}

#[test]
fn a_compacted_stream_without_a_head_is_gone_on_with_though_its_segments_are_deleted() {
    let mut objects = testing::compacted("now", testing::Inputs::Deleted);
    let head = objects.remove(&layout::head(&stream())).unwrap();
    testing::block_on(async {
        let store = testing::store_of(&objects).await;
        assert_eq!(open(&store).await.next(), 19);
        sound(&store).await;
        let made = store.get(&layout::head(&stream()), ByteRange::Full).await.unwrap();
        let [made, before] =
            [made, head].map(|bytes| Head::from_bytes(&layout::head(&stream()), &bytes).unwrap());
        assert_eq!((made.digest, made.segment), (before.digest, before.segment));
    });
}

#[tokio::test]
async fn an_end_of_the_chain_that_contradicts_its_segment_is_not_gone_on_with() {
    let store = memory();
    let mut writer = open(&store).await;
    writer.append(&segment(&writer, 0, "a")).await.unwrap();
    let entry = layout::chain_entry(&stream(), 1);
    let text = store.get(&entry, ByteRange::Full).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let digest = writer.tip().unwrap().to_string();
    let other = Digest::of(b"another").to_string();
    store.replace(&entry, text.replace(&digest, &other).into()).await.unwrap();
    store.delete(&layout::head(&stream())).await.unwrap();
    let error = StreamWriter::open(Arc::clone(&store), stream(), clock).await.unwrap_err();
    assert!(error.to_string().contains("contradict each other"), "{error}");
}

#[tokio::test]
async fn of_two_writers_one_is_fenced_even_across_partitions() {
    for hour_of_second in [0, 1] {
        let store = memory();
        let (mut a, mut b) = (open(&store).await, open(&store).await);
        let (from_a, from_b) = (segment(&a, 0, "a"), segment(&b, hour_of_second, "b"));
        a.append(&from_a).await.unwrap();
        let error = b.append(&from_b).await.unwrap_err();
        assert!(matches!(error, ArchiveError::Fenced { sequence: 1, .. }), "{error}");

        let committed = chain::committed(&*store, &stream(), None).await.unwrap();
        assert_eq!(committed.len(), 1);
        assert_eq!(committed[0].0.key, from_a.summary.key);
        let mut reopened = open(&store).await;
        let next = segment(&reopened, hour_of_second, "c");
        reopened.append(&next).await.unwrap();
        assert_eq!(sound(&store).await.segments, 2);
    }
}

#[tokio::test]
async fn appending_the_same_segment_again_is_no_conflict() {
    let store = memory();
    let mut writer = open(&store).await;
    let first = segment(&writer, 0, "a");
    store.put_new(&first.summary.key, first.bytes.clone()).await.unwrap();
    writer.append(&first).await.unwrap();
    assert_eq!(sound(&store).await.segments, 1);
}

#[tokio::test]
async fn a_store_that_keeps_put_once_passes_the_probe_and_is_left_clean() {
    let store = memory();
    probe_write_once(&*store, clock).await.unwrap();
    assert!(chain::list_all(&*store, "", None).await.unwrap().is_empty());
}
