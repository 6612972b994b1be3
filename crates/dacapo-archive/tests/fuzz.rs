//! Whatever bytes lie where a segment, a chain entry or a head should be: they are refused, or read
//! as what was written, within bounded memory.

#![cfg(test)]

use std::sync::Arc;

use bytes::Bytes;
use dacapo_archive::compaction::{self, Input};
use dacapo_archive::store::memory::MemoryStore;
use dacapo_archive::store::{ObjectKey, Store};
use dacapo_archive::{
    ArchiveError, ColumnSet, PageBounds, PrunedBy, Rows, Segment, SegmentBuilder, chain, verified,
};
use dacapo_event::{
    Digest, Event, FieldTable, FieldValue, Message, Properties, ShortStr, Timestamp,
};
use dacapo_fuzz::Attack;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A damaged segment of a few kilobytes takes no more: decoded rows, their pages, and the contexts
/// of zstd.
const SEGMENT_MEMORY: usize = 24 * 1024 * 1024;

fn event(sequence: u64) -> Event {
    let headers: FieldTable =
        [(ShortStr::from_static("try"), FieldValue::LongUInt(3))].into_iter().collect();
    Event {
        sequence,
        archived_at: Timestamp::from_secs(1_800_000_000 + sequence),
        time: Timestamp::from_secs(1_700_000_000 + sequence),
        id: format!("id-{sequence}"),
        kind: format!("type-{}", sequence % 3),
        key: (!sequence.is_multiple_of(5)).then(|| format!("key-{sequence}")),
        message: Message {
            exchange: ShortStr::from_static("shop"),
            routing_key: ShortStr::from_static("orders.placed"),
            properties: Properties { headers: Some(headers), ..Properties::default() },
            body: format!("{{\"order\": {sequence}}}").into(),
        },
    }
}

fn events() -> Vec<Event> {
    (1..=40).map(event).collect()
}

fn segment(events: &[Event]) -> Vec<u8> {
    let mut builder = SegmentBuilder::new("shop".parse().unwrap(), events[0].sequence);
    events.iter().for_each(|event| builder.push(event.clone()).unwrap());
    builder.seal(None, Timestamp::from_secs(1_800_000_000), None).unwrap().bytes.to_vec()
}

/// An output of two inputs that lacks two of these events.
fn output(events: &[Event]) -> Vec<u8> {
    let mut builder = SegmentBuilder::new("shop".parse().unwrap(), 1);
    for event in events {
        match event.sequence {
            20 | 31 => builder.drop_repeat(7),
            _ => builder.push(event.clone()).unwrap(),
        }
    }
    let input =
        |first, last| Input { first, last, bytes: 900, digest: Digest::of(b"x"), hour: Some(7) };
    let first = "segments/stream=shop/date=2027-01-15/hour=08/00000000000000000001.parquet";
    let inputs = vec![input(1, 25), input(26, 40)];
    let sealed = builder.seal_compacted(None, &first.parse().unwrap(), inputs, None).unwrap();
    sealed.bytes.to_vec()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// Opens a segment and asks everything of it that a reader asks.
async fn read(bytes: Bytes) -> Result<Vec<Event>, ArchiveError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let key: ObjectKey = "segments/stream=shop/date=2027-01-15/hour=08/x.parquet".parse().unwrap();
    let size = bytes.len() as u64;
    store.put_new(&key, bytes).await?;
    let segment = Segment::open(store, &key, Some(size)).await?;
    for at in [0, 1, 7, 19, 20, 40, 41, u64::MAX] {
        assert!(segment.sequence_at(at) >= segment.summary().first);
        assert!(segment.rows_before(at) <= at);
        if let Some(made) = segment.compaction() {
            assert!(made.input(at).is_none_or(|input| input.first == at));
            assert!(!made.has_dropped(at) || at > segment.summary().first);
        }
    }
    let mut events = Vec::new();
    for group in 0..segment.row_groups() {
        let facts = segment.facts(group);
        for by in [PrunedBy::Time, PrunedBy::Type, PrunedBy::Key, PrunedBy::Id, PrunedBy::Exchange]
        {
            let keep = |page: PageBounds<'_>| page != PageBounds::AllAbsent;
            let rows = segment.rows_in_pages(group, by, &keep);
            assert!(rows.iter().all(|row| row < facts.rows));
            drop(segment.bloom(group, by).await.map(|bloom| bloom.map(|b| b.may_contain("id-1"))));
        }
        for rows in segment.batches(group, &Rows::all(facts.rows), 1_000) {
            assert!(rows.iter().all(|row| row < facts.rows));
            drop(segment.read(group, &rows, ColumnSet::ATTRIBUTES).await);
            events.extend(segment.read(group, &rows, ColumnSet::ALL).await?);
        }
    }
    Ok(events)
}

#[test]
fn a_damaged_segment_is_refused_or_read_as_it_was() {
    let (whole, others) = (events(), [event(41), event(42)]);
    let mut written: Vec<Event> = whole.iter().chain(&others).cloned().collect();
    let kept = std::fs::read_dir(format!("{HERE}/tests/corpus/segment")).unwrap();
    for file in kept {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        // Those that were once misread are refused.
        written.extend(block_on(read(bytes.into())).unwrap_or_default());
    }
    assert!(written.len() > 100, "the corpus is read");
    let seeds = [segment(&whole), segment(&others), output(&whole)];
    Attack::new(HERE, "segment", SEGMENT_MEMORY).seeds(seeds).run(|bytes| {
        if let Ok(events) = block_on(read(Bytes::copy_from_slice(bytes))) {
            assert!(events.iter().all(|event| written.contains(event)), "another event");
        }
    });
}

#[test]
fn a_damaged_chain_entry_or_head_is_refused() {
    /// Where a compaction entry is.
    const COMPACTION: &str = "compactions/shop/00000000000000000001.json";
    /// The store itself holds an input three times, and gives parts of it.
    const RECORD_MEMORY: usize = 8 * 1024 * 1024;
    let digest = "ab".repeat(32);
    let segment = "segments/stream=shop/date=2026-11-23/hour=08/00000000000000000001.parquet";
    let entry = format!(
        r#"{{"format":1,"segment":"{segment}","bytes":4711,"first_sequence":1,"last_sequence":240,"digest":"{digest}","previous":null}}"#
    );
    let head = format!(
        r#"{{"format":1,"stream":"shop","last_sequence":240,"digest":"{digest}","segment":"{segment}","moved_at":"2026-11-23T08:00:00Z"}}"#
    );
    let compaction = format!(
        r#"{{"format":1,"segment":"{segment}","bytes":4711,"first_sequence":1,"last_sequence":240,"digest":"{digest}","previous":null,"compacted_at":"2026-11-25T03:00:00Z","checksum":"00000000"}}"#
    );
    let seeds = [entry.into_bytes(), head.into_bytes(), compaction.into_bytes()];
    Attack::new(HERE, "record", RECORD_MEMORY).seeds(seeds).run(|bytes| {
        block_on(async {
            let store = MemoryStore::new();
            let stream = "shop".parse().unwrap();
            for key in [
                "chain/shop/00000000000000000001.json",
                COMPACTION,
                "heads/shop.json",
                "verified.json",
            ] {
                let key: ObjectKey = key.parse().unwrap();
                store.put_new(&key, Bytes::copy_from_slice(bytes)).await.unwrap();
            }
            drop(compaction::entry(&store, &stream, 1).await);
            drop(compaction::entries_of(&store, &stream).await);
            drop(verified::last(&store).await);
            drop(chain::entry(&store, &stream, 1).await);
            drop(chain::head(&store, &stream).await);
            drop(chain::heads(&store).await);
            drop(chain::committed(&store, &stream, None).await);
            drop(compaction::entry(&store, &stream, 1).await);
            let store: Arc<dyn Store> = Arc::new(store);
            drop(compaction::successor(&store, &stream, 7, &Digest::of(b"x")).await);
        });
    });
}

#[test]
fn sequences_that_no_writer_gives_are_refused() {
    let digest = "ab".repeat(32);
    let segment = "segments/stream=shop/date=2026-11-23/hour=08/00000000000000000001.parquet";
    let entry = |first: u64, last: u64| {
        format!(
            r#"{{"format":1,"segment":"{segment}","bytes":4711,"first_sequence":{first},"last_sequence":{last},"digest":"{digest}","previous":null}}"#
        )
    };
    let head = format!(
        r#"{{"format":1,"stream":"shop","last_sequence":{},"digest":"{digest}","segment":"{segment}","moved_at":"2026-11-23T08:00:00Z"}}"#,
        1_u64 << 63
    );
    let stream = "shop".parse().unwrap();
    block_on(async {
        let store = MemoryStore::new();
        let key: ObjectKey = "chain/shop/00000000000000000001.json".parse().unwrap();
        for (first, last) in [(1, u64::MAX), (1, 1 << 63), (u64::MAX, u64::MAX)] {
            store.replace(&key, entry(first, last).into()).await.unwrap();
            let error = chain::entry(&store, &stream, 1).await.unwrap_err().to_string();
            assert!(error.contains("_sequence` is not readable"), "{error}");
        }
        store.replace(&key, entry(1, (1 << 63) - 1).into()).await.unwrap();
        chain::entry(&store, &stream, 1).await.unwrap();
        store.replace(&"heads/shop.json".parse().unwrap(), head.into()).await.unwrap();
        let error = chain::head(&store, &stream).await.unwrap_err().to_string();
        assert!(error.contains("`last_sequence` is not readable"), "{error}");
    });
}

#[test]
fn no_more_than_a_record_is_read_where_one_should_be() {
    let store = MemoryStore::new();
    let large = Bytes::from(vec![b' '; 1 << 20]);
    block_on(async {
        for key in ["chain/shop/00000000000000000001.json", "heads/shop.json"] {
            store.put_new(&key.parse().unwrap(), large.clone()).await.unwrap();
        }
        let stream = "shop".parse().unwrap();
        let head = chain::head(&store, &stream).await.unwrap_err().to_string();
        let heads = chain::heads(&store).await.unwrap_err().to_string();
        let entry = chain::entry(&store, &stream, 1).await.unwrap_err().to_string();
        for error in [head, heads, entry] {
            assert!(error.contains("it is larger than any chain entry or head"), "{error}");
        }
    });
}
