//! Segments are read as they were written, and anything else is refused.

use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{
    Digest, Event, FieldTable, FieldValue, Message, Properties, ShortStr, Timestamp,
};
use proptest::prelude::*;

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::metered::{Metered, ReadTotals};
use crate::{Sealed, SegmentBuilder};

fn event(sequence: u64) -> Event {
    let headers: FieldTable = [
        (ShortStr::from_static("tenant"), FieldValue::text("acme")),
        (ShortStr::from_static("try"), FieldValue::LongInt(3)),
    ]
    .into_iter()
    .collect();
    let body: Vec<u8> = (0..700).map(|n| (n * sequence % 251) as u8).collect();
    Event {
        sequence,
        archived_at: Timestamp::from_secs(1_800_000_000 + sequence),
        time: Timestamp::from_secs(1_700_000_000 + sequence),
        id: format!("id-{sequence}"),
        kind: format!("type-{}", sequence % 3),
        key: (!sequence.is_multiple_of(5)).then(|| format!("key-{}", sequence % 100)),
        message: Message {
            exchange: ShortStr::from_static("shop"),
            routing_key: ShortStr::try_from(format!("orders.{}", sequence % 4)).unwrap(),
            properties: Properties {
                content_type: Some(ShortStr::from_static("application/octet-stream")),
                headers: (!sequence.is_multiple_of(7)).then_some(headers),
                ..Properties::default()
            },
            body: body.into(),
        },
    }
}

fn sealed(events: impl IntoIterator<Item = Event>) -> Sealed {
    let mut events = events.into_iter().peekable();
    let first = events.peek().unwrap().sequence;
    let mut builder = SegmentBuilder::new("shop".parse().unwrap(), first);
    events.for_each(|event| builder.push(event).unwrap());
    builder.seal(None, Timestamp::from_secs(1_800_000_000), None).unwrap()
}

async fn opened(bytes: Bytes) -> Result<Segment, ArchiveError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let key: ObjectKey = "segments/stream=shop/date=2027-01-15/hour=08/x.parquet".parse().unwrap();
    let size = bytes.len() as u64;
    store.put_new(&key, bytes).await.unwrap();
    Segment::open(store, &key, Some(size)).await
}

async fn all_events(segment: &Segment) -> Result<Vec<Event>, ArchiveError> {
    let mut events = Vec::new();
    for group in 0..segment.row_groups() {
        let rows = Rows::all(segment.facts(group).rows);
        events.extend(segment.read(group, &rows, ColumnSet::ALL).await?);
    }
    Ok(events)
}

#[tokio::test]
async fn events_come_back_as_they_were() {
    let events: Vec<Event> = (1..=30_000).map(event).collect();
    let sealed = sealed(events.clone());
    let segment = opened(sealed.bytes.clone()).await.unwrap();
    assert!(segment.row_groups() > 1, "the test wants several row groups");
    let mut summary = sealed.summary.clone();
    summary.key = segment.summary().key.clone();
    assert_eq!(segment.summary(), &summary);
    assert_eq!(all_events(&segment).await.unwrap(), events);
}

#[tokio::test]
async fn some_rows_and_columns_cost_only_their_pages() {
    let events: Vec<Event> = (1..=3_000).map(event).collect();
    let segment = opened(sealed(events.clone()).bytes).await.unwrap();
    let wanted = Rows::from_sorted([0, 7, 8, 1_500, 2_999]);
    let found = segment.read(0, &wanted, ColumnSet::ALL).await.unwrap();
    let expected: Vec<Event> = wanted.iter().map(|row| events[row].clone()).collect();
    assert_eq!(found, expected);

    let times = segment.read(0, &wanted, ColumnSet::TIME | ColumnSet::KEY).await.unwrap();
    for (partial, whole) in times.iter().zip(&expected) {
        assert_eq!((partial.time, &partial.key), (whole.time, &whole.key));
        assert_eq!(partial.id, "", "what was not asked for stays blank");
    }
}

#[tokio::test]
async fn pages_and_bloom_filters_narrow_the_rows() {
    let segment = opened(sealed((1..=5_000).map(event)).bytes).await.unwrap();
    let at = Timestamp::from_secs(1_700_000_000 + 2_500);
    let rows = segment.rows_in_pages(0, PrunedBy::Time, &|page| match page {
        PageBounds::Time(min, max) => min <= at && at <= max,
        _ => panic!("time pages have times"),
    });
    assert!(rows.touches(&(2_499..2_500)) && rows.len() < 2_000, "{rows:?}");

    let ids = segment.bloom(0, PrunedBy::Id).await.unwrap().unwrap();
    assert!(ids.may_contain("id-17"));
    assert!(!ids.may_contain("nobody"));
    assert!(segment.bloom(0, PrunedBy::Time).await.unwrap().is_none());
}

/// A body of 4 KB of which a fifth is left when it is stored.
fn record(sequence: u64) -> Bytes {
    let mut state = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut lines = String::new();
    while lines.len() < 4_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        lines += &format!("{{\"article\":\"{:010x}\",\"warehouse\":\"north\"}},", state >> 24);
    }
    lines.into()
}

/// Opens a segment of so many events; returns its row groups and what that read.
async fn opening(events: u64) -> (usize, u64, ReadTotals) {
    let with_body = |sequence| {
        let mut event = event(sequence);
        event.message.body = record(sequence);
        event
    };
    let bytes = sealed((1..=events).map(with_body)).bytes;
    let metered = Arc::new(Metered::new(Arc::new(MemoryStore::new())));
    let (key, size): (ObjectKey, _) = ("segments/x".parse().unwrap(), bytes.len() as u64);
    metered.put_new(&key, bytes).await.unwrap();
    let segment = Segment::open(Arc::clone(&metered) as Arc<dyn Store>, &key, Some(size)).await;
    (segment.unwrap().row_groups(), size, metered.totals())
}

#[tokio::test]
async fn opening_costs_one_request_for_a_hundredth_of_the_segment() {
    for (events, groups) in [(2_000, 2), (8_000, 5)] {
        let (row_groups, size, read) = opening(events).await;
        assert_eq!((row_groups, read.requests), (groups, 1), "{size} bytes");
        assert!(read.bytes * 100 <= size, "{} of {size} bytes", read.bytes);
    }
}

#[tokio::test]
async fn batches_cover_the_rows_once_and_hold_to_their_bound() {
    let segment = opened(sealed((1..=3_000).map(event)).bytes).await.unwrap();
    let rows = Rows::from_sorted((0..3_000).filter(|row| row % 3 != 0));
    let batches = segment.batches(0, &rows, 300_000);
    assert!(batches.len() >= 7, "{} batches of 2.1 MB", batches.len());
    let together: Vec<usize> = batches.iter().flat_map(Rows::iter).collect();
    assert_eq!(together, rows.iter().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Parts end anywhere in a page, and leave rows out.
    #[test]
    fn parts_of_fetched_pages_are_what_a_read_of_them_all_gives(
        wanted in proptest::collection::btree_set(0_usize..2_500, 1..800),
        lengths in proptest::collection::vec(1_usize..200, 1..20),
    ) {
        let wanted: Vec<usize> = wanted.into_iter().collect();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let segment = opened(sealed((1..=2_500).map(event)).bytes).await.unwrap();
            let rows = Rows::from_sorted(wanted.iter().copied());
            let whole = segment.read(0, &rows, ColumnSet::ALL).await.unwrap();
            let fetched = segment.pages(0, &rows, ColumnSet::ALL, u64::MAX).await.unwrap();
            let mut pages = fetched.unwrap();
            let (mut events, mut left) = (Vec::new(), &wanted[..]);
            for length in lengths.iter().cycle() {
                let (part, rest) = left.split_at((*length).min(left.len()));
                let rows = Rows::from_sorted(part.iter().copied());
                let (decoded, further) = segment.decode(pages, &rows).await.unwrap();
                events.extend(decoded);
                (pages, left) = (further, rest);
                if left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(events, whole);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn bodies_of_nothing_and_of_16_mib_are_kept() {
    let mut events = [event(1), event(2), event(3)];
    events[0].message.body = Bytes::new();
    events[1].message.body = vec![7; 16 * 1024 * 1024].into();
    let segment = opened(sealed(events.clone()).bytes).await.unwrap();
    assert_eq!(all_events(&segment).await.unwrap(), events);
}

#[tokio::test]
async fn a_segment_with_as_many_row_groups_as_there_may_be_is_read() {
    let mut builder = SegmentBuilder::with_row_groups_of("shop".parse().unwrap(), 1, 1);
    let mut full_at = None;
    for sequence in 1..=limits::ROW_GROUPS_MAX as u64 {
        if builder.is_full() {
            full_at.get_or_insert(sequence);
        }
        builder.push(event(sequence)).unwrap();
    }
    assert_eq!(full_at, Some(961), "there is room for what was on its way");
    let error = builder.push(event(1_025)).unwrap_err().to_string();
    assert!(error.ends_with("its segment has 1024 row groups"), "{error}");
    let sealed = builder.seal(None, Timestamp::from_secs(1_800_000_000), None).unwrap();
    let segment = opened(sealed.bytes).await.unwrap();
    assert_eq!((segment.row_groups(), segment.summary().events()), (1_024, 1_024));
    assert_eq!(all_events(&segment).await.unwrap().len(), 1_024);
}

/// Nine hundred events with the largest headers that a broker delivers are more than one row group.
#[tokio::test]
async fn events_that_are_mostly_headers_are_read() {
    let trace = FieldValue::LongString(Bytes::from(vec![b'x'; 120_000]));
    let headers: FieldTable = [(ShortStr::from_static("trace"), trace)].into_iter().collect();
    let large = |sequence| {
        let mut event = event(sequence);
        event.message.properties.headers = Some(headers.clone());
        event
    };
    let segment = opened(sealed((1..=900).map(large)).bytes).await.unwrap();
    assert!(segment.row_groups() > 10, "{} row groups", segment.row_groups());
    let rows = Rows::all(segment.facts(0).rows);
    let events = segment.read(0, &rows, ColumnSet::ALL).await.unwrap();
    assert_eq!(events[0], large(1));
}

#[tokio::test]
async fn an_event_that_no_reader_would_take_is_not_written() {
    let check = async |change: fn(&mut Event), refused: Option<&str>| {
        let mut builder = SegmentBuilder::new("shop".parse().unwrap(), 1);
        builder.push(event(1)).unwrap();
        let mut large = event(2);
        change(&mut large);
        match refused {
            None => builder.push(large).unwrap(),
            Some(reason) => {
                let error = builder.push(large).unwrap_err().to_string();
                assert!(error.contains(reason), "{error}");
                builder.push(event(2)).unwrap();
            }
        }
        let sealed = builder.seal(None, Timestamp::from_secs(1_800_000_000), None).unwrap();
        let segment = opened(sealed.bytes).await.unwrap();
        assert_eq!(all_events(&segment).await.unwrap().len(), 2);
    };
    check(|event| event.kind = "t".repeat(60 << 20), None).await;
    check(
        |event| event.kind = "t".repeat(65 << 20),
        Some("its attributes and properties have 681575"),
    )
    .await;
    check(
        |event| event.message.body = vec![0; (512 << 20) + 1].into(),
        Some("its body has 536870913 bytes"),
    )
    .await;
}

#[tokio::test]
async fn a_routing_key_that_is_not_text_is_kept() {
    let mut odd = event(1);
    odd.message.routing_key = ShortStr::new(vec![0xff; 255]).unwrap();
    let segment = opened(sealed([odd.clone()]).bytes).await.unwrap();
    assert_eq!(all_events(&segment).await.unwrap(), [odd]);
}

#[tokio::test]
async fn what_is_no_segment_is_refused_by_name() {
    let whole = sealed((1..=50).map(event)).bytes;
    for (bytes, expected) in [
        (Bytes::new(), "it is empty"),
        (Bytes::from_static(b"hello, this is a text file"), "no readable Parquet"),
        (whole.slice(..whole.len() / 2), "no readable Parquet"),
        (whole.slice(..whole.len() - 1), "no readable Parquet"),
    ] {
        let error = opened(bytes).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("x.parquet"), "{error}");
    }
}

#[tokio::test]
async fn a_newer_format_is_refused_with_the_next_step() {
    let sealed = sealed([event(1)]);
    let mut bytes = sealed.bytes.to_vec();
    let place = bytes.windows(13).rposition(|window| window == b"dacapo.format").unwrap();
    assert_eq!(bytes[place + 15], b'1');
    bytes[place + 15] = b'9';
    let error = opened(bytes.into()).await.unwrap_err().to_string();
    assert!(
        error.ends_with("has format version 9, this dacapo reads up to 2; use a newer dacapo"),
        "{error}"
    );
}

/// Returns the digest that an object should have, as a verification takes it.
fn digest_in_pieces(object: &[u8], piece: usize) -> Option<Digest> {
    let tail = &object[object.len().saturating_sub(footer::DIGEST_TAIL_BYTES)..];
    let mut hasher = footer::ObjectHasher::new(object.len() as u64, tail)?;
    object.chunks(piece).for_each(|piece| hasher.update(piece));
    Some(hasher.finish())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A flipped byte is an error or makes no difference to what is read; never other events.
    #[test]
    fn a_flipped_byte_never_becomes_another_event(
        place in any::<prop::sample::Index>(), flip in 1u8.., piece in 1_usize..5_000,
    ) {
        let events: Vec<Event> = (1..=40).map(event).collect();
        let sealed = sealed(events.clone());
        let mut bytes = sealed.bytes.to_vec();
        prop_assert_eq!(digest_in_pieces(&bytes, piece), Some(sealed.summary.digest));
        let digits = sealed.summary.digest.to_string();
        let digits = bytes.windows(64).rposition(|window| window == digits.as_bytes()).unwrap();
        let at = place.index(bytes.len());
        bytes[at] ^= flip;
        // A digit that became another one is not in the digest of the rest, which the chain names.
        if !(digits..digits + 64).contains(&at) {
            prop_assert_ne!(digest_in_pieces(&bytes, piece), Some(sealed.summary.digest));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            if let Ok(segment) = opened(bytes.into()).await
                && let Ok(read) = all_events(&segment).await
            {
                assert_eq!(read, events, "byte {at}");
            }
        });
    }
}
