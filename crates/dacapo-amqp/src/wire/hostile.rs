//! Whatever bytes a broker, or who stands in for one, sends: no panic, and no more memory than a
//! few times a frame.
//!
//! Here and not in `tests/`, because the wire is nobody else's business.

use bytes::{BufMut, Bytes, BytesMut};
use dacapo_event::{FieldTable, FieldValue, ShortStr};
use dacapo_fuzz::Attack;

use super::arriving::Arriving;
use super::frame::{Inbox, put_short};
use super::{properties, table};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The inbox, and tables of a few hundred kilobytes whose fields are 64 bytes each once decoded.
const MEMORY: usize = 32 * 1024 * 1024;

fn fields() -> FieldTable {
    let short = ShortStr::from_static;
    let inner: FieldTable =
        [(short("deep"), FieldValue::Array(vec![FieldValue::Void; 3]))].into_iter().collect();
    [
        (short("a"), FieldValue::text("text")),
        (short("b"), FieldValue::ByteArray(Bytes::from_static(&[0xff, 0]))),
        (short("c"), FieldValue::Decimal { scale: 2, value: 314 }),
        (short("d"), FieldValue::Timestamp(u64::MAX)),
        (short("x-death"), FieldValue::Array(vec![FieldValue::Table(inner)])),
    ]
    .into_iter()
    .collect()
}

/// A table, its length before it.
fn encoded_table() -> BytesMut {
    let mut bytes = BytesMut::new();
    table::encode(&mut bytes, &fields());
    bytes
}

/// Properties with every flag, from the flags on.
fn encoded_properties() -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.put_u16(0xfffc);
    put_short(&mut bytes, b"application/json");
    put_short(&mut bytes, b"gzip");
    bytes.extend_from_slice(&encoded_table());
    bytes.put_slice(&[2, 5]);
    for text in ["correlation", "reply", "60000", "m-1"] {
        put_short(&mut bytes, text.as_bytes());
    }
    bytes.put_u64(1_700_000_000);
    for text in ["type", "user", "app", "cluster"] {
        put_short(&mut bytes, text.as_bytes());
    }
    bytes.to_vec()
}

/// The arguments of a delivery.
fn encoded_delivery() -> Vec<u8> {
    let mut bytes = BytesMut::new();
    put_short(&mut bytes, b"consumer");
    bytes.put_u64(7);
    bytes.put_u8(1);
    put_short(&mut bytes, b"shop");
    put_short(&mut bytes, b"orders.placed");
    bytes.to_vec()
}

#[test]
fn tables_are_refused_or_come_back() {
    Attack::new(HERE, "table", MEMORY).seeds([encoded_table()[4..].to_vec()]).run(|bytes| {
        if let Ok(read) = table::decode(Bytes::copy_from_slice(bytes)) {
            let mut again = BytesMut::new();
            table::encode(&mut again, &read);
            assert_eq!(again.len(), table::encoded_len(&read));
            assert_eq!(table::decode(again.freeze().slice(4..)), Ok(read));
        }
    });
}

#[test]
fn properties_are_read_or_kept_as_bytes() {
    Attack::new(HERE, "properties", MEMORY).seeds([encoded_properties()]).run(|bytes| {
        let (read, _) = properties::decode(Bytes::copy_from_slice(bytes));
        let mut again = BytesMut::new();
        properties::encode(&mut again, &read);
        assert_eq!(12 + again.len(), properties::encoded_len(&read));
    });
}

#[test]
fn deliveries_are_refused_or_whole() {
    let header = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], encoded_properties().as_slice()].concat();
    // The arguments, the header and the body follow each other, each after its length.
    let seed: Vec<u8> = [encoded_delivery(), header, b"hello".to_vec()]
        .iter()
        .flat_map(|part| [&[part.len() as u8], part.as_slice()].concat())
        .collect();
    Attack::new(HERE, "delivery", MEMORY).seeds([seed]).run(|bytes| {
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut part = || {
            let length = rest.first().map_or(0, |length| usize::from(*length) + 1).min(rest.len());
            let part = rest.split_to(length);
            part.slice(1.min(part.len())..)
        };
        let Ok(mut arriving) = Arriving::new(part(), b"parked") else { return };
        if arriving.take_header(part()).is_err() {
            return;
        }
        // Two frames, so that room is made for the whole body.
        for _ in 0..2 {
            if arriving.is_whole() {
                drop(arriving.into_delivery(&ShortStr::from_static("q")));
                return;
            }
            if arriving.take_body(part()).is_err() {
                return;
            }
        }
    });
}

#[test]
fn frames_are_cut_out_or_refused() {
    let seed = [[1, 0, 1, 0, 0, 0, 4, 0, 60, 0, 80, 0xce], [8, 0, 0, 0, 0, 0, 0, 0xce, 3, 0, 1, 0]];
    Attack::new(HERE, "frames", MEMORY).seeds([seed.concat()]).slow(4).run(|bytes| {
        let mut inbox = Inbox::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = inbox.room();
            let count = room.len().min(rest.len());
            room[..count].copy_from_slice(&rest[..count]);
            inbox.filled(count);
            rest = &rest[count..];
            loop {
                match inbox.next() {
                    Ok(Some(frame)) => assert!(frame.payload.len() <= bytes.len()),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    });
}
