//! Crafted segments: what they claim is refused before anything is allocated for it.

#![cfg(test)]

use std::sync::Arc;

use bytes::Bytes;
use dacapo_archive::store::memory::MemoryStore;
use dacapo_archive::store::{ObjectKey, Store};
use dacapo_archive::{ArchiveError, ColumnSet, Rows, Segment, SegmentBuilder};
use dacapo_event::{Event, Message, Timestamp};
use parquet::basic::Compression;
use parquet::file::metadata::{
    ColumnChunkMetaData, ColumnChunkMetaDataBuilder, FileMetaData, KeyValue,
    ParquetMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter,
};

/// Columns by their place in the schema.
#[derive(Clone, Copy)]
enum Column {
    Time = 2,
    Id = 3,
    Type = 4,
    Properties = 11,
    Body = 12,
    Checksum = 13,
}

/// Limits of the reader, as `docs/limits.md` has them.
const FOOTER_BYTES_MAX: u64 = 16 << 20;
const BODY_BYTES_MAX: i64 = (512 + 16) << 20;
const ATTRIBUTE_BYTES_MAX: i64 = (64 + 16) << 20;
const ROWS_MAX: i64 = 64 << 10;

/// As many rows as fit one row group.
const ROWS: u64 = 2_000;

fn sealed() -> Vec<u8> {
    let mut builder = SegmentBuilder::new("shop".parse().unwrap(), 1);
    for sequence in 1..=ROWS {
        let event = Event {
            sequence,
            archived_at: Timestamp::from_secs(1_800_000_000),
            time: Timestamp::from_secs(1_700_000_000),
            id: format!("id-{sequence}"),
            kind: "type".to_owned(),
            key: None,
            message: Message { body: Bytes::from_static(b"body"), ..Message::default() },
        };
        builder.push(event).unwrap();
    }
    builder.seal(None, Timestamp::from_secs(1_800_000_000), None).unwrap().bytes.to_vec()
}

/// What a segment claims, to be changed.
struct Claims {
    rows: i64,
    last: i64,
    columns: Vec<ColumnChunkMetaData>,
    /// How many such row groups there are.
    groups: usize,
    /// What the footer says in the place of, or beside, what it said.
    pairs: Vec<(&'static str, String)>,
}

impl Claims {
    fn change(
        &mut self,
        column: Column,
        change: impl FnOnce(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
    ) {
        let chunk = &mut self.columns[column as usize];
        *chunk = change(chunk.clone().into_builder()).build().unwrap();
    }

    /// Has a column begin with these bytes, at the end of the object, and no page index.
    fn point(&mut self, column: Column, dictionary: bool, at: usize, length: usize) {
        let at = i64::try_from(at).unwrap();
        self.change(column, |chunk| {
            chunk
                .set_dictionary_page_offset(dictionary.then_some(at))
                .set_data_page_offset(at)
                .set_total_compressed_size(i64::try_from(length).unwrap())
                .set_compression(Compression::UNCOMPRESSED)
        });
        for chunk in &mut self.columns {
            let builder = chunk.clone().into_builder();
            *chunk = builder
                .set_offset_index_offset(None)
                .set_offset_index_length(None)
                .set_column_index_offset(None)
                .set_column_index_length(None)
                .build()
                .unwrap();
        }
    }
}

/// Returns a segment with `pages` appended to its data and other claims in its footer; `change`
/// is told where the pages begin.
fn crafted(pages: &[u8], change: impl FnOnce(&mut Claims, usize)) -> Vec<u8> {
    let mut object = sealed();
    let length = u32::from_le_bytes(object[object.len() - 8..][..4].try_into().unwrap()) as usize;
    let footer = object.len() - 8 - length;
    let metadata =
        ParquetMetaDataReader::decode_metadata(&object[footer..footer + length]).unwrap();
    object.truncate(footer);
    object.extend_from_slice(pages);

    let group = metadata.row_group(0);
    let mut claims = Claims {
        rows: group.num_rows(),
        last: group.num_rows(),
        columns: group.columns().to_vec(),
        groups: 1,
        pairs: Vec::new(),
    };
    change(&mut claims, footer);
    claims.pairs.push(("dacapo.last_sequence", claims.last.to_string()));
    let said = metadata.file_metadata().key_value_metadata().unwrap().iter();
    let said = said.filter(|pair| claims.pairs.iter().all(|(key, _)| *key != pair.key)).cloned();
    let pairs =
        claims.pairs.iter().map(|(key, value)| KeyValue::new(key.to_string(), value.clone()));
    let pairs: Vec<KeyValue> = pairs.chain(said).collect();
    let file = metadata.file_metadata();
    let schema = file.schema_descr_ptr();
    let group = group.clone().into_builder();
    let group =
        group.set_num_rows(claims.rows).set_column_metadata(claims.columns).build().unwrap();
    let file = FileMetaData::new(1, claims.rows, None, Some(pairs), schema, None);
    let groups = vec![group; claims.groups];
    let metadata = ParquetMetaDataBuilder::new(file).set_row_groups(groups).build();
    let mut tail = Vec::new();
    ParquetMetaDataWriter::new(&mut tail, &metadata)
        .with_preserve_page_index_locations(true)
        .finish()
        .unwrap();
    object.extend_from_slice(&tail);
    object
}

async fn read(object: Vec<u8>) -> Result<Vec<Event>, ArchiveError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let key: ObjectKey = "segments/x.parquet".parse().unwrap();
    let size = object.len() as u64;
    store.put_new(&key, object.into()).await.unwrap();
    let segment = Segment::open(store, &key, Some(size)).await?;
    segment.read(0, &Rows::all(segment.facts(0).rows), ColumnSet::ALL).await
}

/// Checks what is said of a crafted segment.
#[track_caller]
fn check(object: Vec<u8>, expected: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(read(object)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

/// A number as Thrift's compact protocol writes it.
fn zigzag(number: i32) -> Vec<u8> {
    let mut left = ((number << 1) ^ (number >> 31)).cast_unsigned();
    let mut bytes = Vec::new();
    loop {
        let low = (left & 0x7f) as u8;
        left >>= 7;
        if left == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A page: its header (plain, of version 1) and what follows.
fn page(kind: i32, decoded: i32, values: i32, encoding: i32, data: &[u8]) -> Vec<u8> {
    let stored = i32::try_from(data.len()).unwrap();
    let mut bytes = Vec::new();
    for number in [kind, decoded, stored] {
        bytes.push(0x15);
        bytes.extend(zigzag(number));
    }
    // The field of the structure: 5 for data, 7 for a dictionary.
    bytes.push(if kind == 0 { 0x2c } else { 0x4c });
    for number in [values, encoding] {
        bytes.push(0x15);
        bytes.extend(zigzag(number));
    }
    if kind == 0 {
        // Levels are run-length encoded.
        bytes.extend([0x15, 6, 0x15, 6]);
    }
    bytes.extend([0, 0]);
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn what_is_crafted_and_claims_nothing_is_read() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let events = runtime.block_on(read(crafted(&[], |_, _| {}))).unwrap();
    assert_eq!(events.len() as u64, ROWS);
    // The same body from a page that was appended, found by its header alone.
    let body = [&[4, 0, 0, 0], b"body".as_slice()].concat().repeat(ROWS as usize);
    let page = page(0, body.len() as i32, ROWS as i32, 0, &body);
    let object = crafted(&page, |claims, at| claims.point(Column::Body, false, at, page.len()));
    assert_eq!(runtime.block_on(read(object)).unwrap(), events);
}

#[test]
fn huge_counts_of_rows_are_refused() {
    for rows in [1_i64 << 40, i64::MAX, ROWS_MAX + 1] {
        let object = crafted(&[], |claims, _| (claims.rows, claims.last) = (rows, rows));
        check(object, &format!("a row group claims {rows} rows (at most 65536 are read)"));
    }
    let object = crafted(&[], |claims, _| (claims.rows, claims.last) = (-1, 5));
    check(object, "a row group claims -1 rows");
    check(crafted(&[], |claims, _| claims.last = i64::MAX), "it has 2000 rows for");
    check(crafted(&[], |claims, _| (claims.rows, claims.last) = (60_000, 60_000)), "has too few");
}

#[test]
fn columns_of_absurd_sizes_or_places_are_refused() {
    for size in [1 << 60, -1, BODY_BYTES_MAX + 1] {
        let change = |claims: &mut Claims, _| {
            claims.change(Column::Body, |chunk| chunk.set_total_uncompressed_size(size));
        };
        check(crafted(&[], change), "column `body` claims an absurd size");
    }
    let change = |claims: &mut Claims, _| {
        let size = ATTRIBUTE_BYTES_MAX + 1;
        claims.change(Column::Id, |chunk| chunk.set_total_uncompressed_size(size));
    };
    check(crafted(&[], change), "column `id` claims an absurd size");
    for (offset, size) in [(i64::MAX, 10), (4, 1 << 60), (-4, 10), (1 << 40, 10)] {
        let change = |claims: &mut Claims, _| {
            claims.change(Column::Body, |chunk| {
                chunk.set_data_page_offset(offset).set_total_compressed_size(size)
            });
        };
        let object = crafted(&[], change);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(read(object)).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
}

#[test]
fn pages_that_claim_to_decode_to_gigabytes_are_refused() {
    let bomb = page(0, i32::MAX, ROWS as i32, 0, &[7; 100]);
    for column in [Column::Body, Column::Id, Column::Properties, Column::Checksum] {
        let object = crafted(&bomb, |claims, at| claims.point(column, false, at, bomb.len()));
        check(object, "it claims to decode to an absurd size");
    }
    // Each within the limit, together beyond it.
    let large = page(0, 300 << 20, 1_000, 0, &[7; 100]);
    let both = [large.as_slice(), &large].concat();
    let object = crafted(&both, |claims, at| claims.point(Column::Body, false, at, both.len()));
    check(object, "it claims to decode to an absurd size");
}

#[test]
fn dictionaries_that_claim_or_multiply_are_refused() {
    let claim = page(2, 100, i32::MAX, 0, &[7; 100]);
    let object = crafted(&claim, |claims, at| claims.point(Column::Type, true, at, claim.len()));
    check(object, "it claims an absurd number of values");

    // One text of a mebibyte, and every row has it: two gigabytes from a megabyte.
    let text = [&(1_u32 << 20).to_le_bytes(), vec![b'x'; 1 << 20].as_slice()].concat();
    let dictionary = page(2, text.len() as i32, 1, 0, &text);
    // Indexes of one bit, in one run: its length, shifted to mark it as one, then the index.
    let run = (ROWS as u32) << 1;
    let indexes = [1, (run & 0x7f) as u8 | 0x80, (run >> 7) as u8, 0];
    let rows = page(0, indexes.len() as i32, ROWS as i32, 8, &indexes);
    let both = [dictionary, rows].concat();
    let object = crafted(&both, |claims, at| claims.point(Column::Type, true, at, both.len()));
    check(object, "its rows decode to more than 83886080 bytes");
}

#[test]
fn pages_that_segments_do_not_have_are_refused() {
    for (kind, encoding, expected) in [
        (0, 5, "it is encoded in a way that segments are not"),
        (0, 6, "it is encoded in a way that segments are not"),
        (1, 0, "it is of a kind that segments do not have"),
        (3, 0, "it is of a kind that segments do not have"),
    ] {
        let odd = page(kind, 100, ROWS as i32, encoding, &[7; 100]);
        let object = crafted(&odd, |claims, at| claims.point(Column::Time, false, at, odd.len()));
        check(object, expected);
    }
}

#[test]
fn footers_that_nest_or_claim_lists_are_refused() {
    #[track_caller]
    fn refused(footer: &[u8], expected: &str) {
        let length = u32::try_from(footer.len()).unwrap().to_le_bytes();
        check([b"PAR1", footer, &length, b"PAR1"].concat(), expected);
    }
    // A schema of 4,000 groups, each in the one before: a library recurses to read it.
    let group = [0x48, 1, b'g', 0x15, 2, 0].repeat(4_000);
    let schema = [&[0x15, 2, 0x19, 0xfc, 0xa0, 0x1f], group.as_slice(), &[0]].concat();
    refused(&schema, "its schema has too many columns");
    refused(&[0x15, 2, 0x39, 0xfc, 0xff, 0xff, 0xff, 0x7f], "more elements than there are bytes");
    let groups = [&[0x49, 0xfc, 0xa0, 0x1f], [0; 4_000].as_slice()].concat();
    refused(&groups, "it has too many row groups");
    let pairs = [&[0x59, 0xfc, 0x80, 0x80, 0x20], vec![0; 600_000].as_slice()].concat();
    refused(&pairs, "its lists have too many elements");
    refused(&[0x1c; 200_000], "it nests deeper than a footer does");
}

#[test]
fn footers_that_claim_more_than_the_object_are_refused() {
    for (claimed, expected) in [(u32::MAX, "more bytes than it has"), (5, "more bytes than it has")]
    {
        check([b"PAR1".as_slice(), &claimed.to_le_bytes(), b"PAR1"].concat(), expected);
    }
    let mut large = vec![0; (FOOTER_BYTES_MAX + 100) as usize];
    large.extend_from_slice(&((FOOTER_BYTES_MAX + 10) as u32).to_le_bytes());
    large.extend_from_slice(b"PAR1");
    check(large, "its footer claims an absurd size");
}

#[test]
fn a_page_index_of_absurd_lists_is_refused() {
    let index = [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0, 0, 0];
    let object = crafted(&index, |claims, at| {
        claims.change(Column::Body, |chunk| {
            chunk
                .set_offset_index_offset(Some(i64::try_from(at).unwrap()))
                .set_offset_index_length(Some(index.len() as i32))
        });
    });
    check(object, "more elements than there are bytes");
}

/// A page index of so many pages, as Thrift's compact protocol writes it: each a structure of an
/// offset, a size and a first row.
fn offset_index(pages: u32) -> Vec<u8> {
    let mut bytes = vec![0x19, 0xfc];
    let mut left = pages;
    while left > 0x7f {
        bytes.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes.extend([0x16, 8, 0x15, 2, 0x16, 0, 0].repeat(pages as usize));
    bytes.push(0);
    bytes
}

/// Has every column chunk of so many row groups name one page index at the end of the object.
fn sharing_one_index(index: &[u8], groups: usize) -> Vec<u8> {
    crafted(index, |claims, at| {
        for chunk in &mut claims.columns {
            let builder = chunk.clone().into_builder();
            *chunk = builder
                .set_offset_index_offset(Some(i64::try_from(at).unwrap()))
                .set_offset_index_length(Some(i32::try_from(index.len()).unwrap()))
                .build()
                .unwrap();
        }
        claims.groups = groups;
        claims.last = claims.rows * i64::try_from(groups).unwrap();
    })
}

/// Two megabytes that would be decoded fourteen thousand times, into a hundred gigabytes.
#[test]
fn a_page_index_that_many_column_chunks_share_is_refused() {
    check(sharing_one_index(&offset_index(320_000), 1_000), "its page index claims an absurd size");
    // Each of a size that could be right, but not of so many pages.
    check(sharing_one_index(&offset_index(160_000), 1), "its page index has too many elements");
    // The row groups are looked at first.
    let rows = |claims: &mut Claims, _: usize| (claims.rows, claims.groups) = (0, 1_000);
    check(crafted(&offset_index(10), rows), "a row group claims 0 rows");
}

/// A tally of a million texts, a text of megabytes, and lists of what compaction never makes.
#[test]
fn footers_that_tell_more_apart_than_a_writer_does_are_refused() {
    let saying = |pairs: &[(&'static str, String)]| {
        crafted(&[], |claims, _| claims.pairs.extend_from_slice(pairs))
    };
    let tally = |counts: &str| format!(r#"{{"counts":{{{counts}}},"other":0}}"#);
    let many = |count: usize| {
        let counts: Vec<String> = (0..count).map(|n| format!(r#""{n}":1"#)).collect();
        tally(&counts.join(","))
    };
    for key in ["dacapo.by_type", "dacapo.by_routing_key", "dacapo.by_exchange"] {
        for text in [many(1_001), many(1_000_000), tally(&format!(r#""{}":1"#, "x".repeat(1_025)))]
        {
            check(saying(&[(key, text)]), &format!("`{key}` in its footer is missing or not"));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(read(saying(&[("dacapo.by_type", many(1_000))]))).unwrap();

    let list = |element: &str, count: usize| format!("[{}]", vec![element; count].join(","));
    let digest = "ab".repeat(32);
    let input = format!(r#"{{"first":1,"last":1,"bytes":1,"digest":"{digest}"}}"#);
    let repeat = r#"{"sequence":2,"repeat_of":1}"#;
    let inputs = |count| ("dacapo.inputs", list(&input, count));
    let dropped = |count| ("dacapo.dropped", list(repeat, count));
    check(saying(&[inputs(1_001), dropped(0)]), "`dacapo.inputs` in its footer is missing or not");
    check(saying(&[inputs(1), dropped(10_001)]), "`dacapo.dropped` in its footer is missing or");
    check(saying(&[inputs(1_000), dropped(10_000)]), "its inputs do not follow each other");
}
