//! Properties come back as they were written, and no bytes are refused.

use bytes::{BufMut, BytesMut};
use dacapo_event::wire::{decode_message, encode_properties};
use proptest::prelude::*;

use super::*;
use crate::wire::frame::put_short;

/// Short strings, text or not.
fn text() -> impl Strategy<Value = ShortStr> {
    prop_oneof![
        "\\PC{0,60}".prop_map(|text| ShortStr::try_from(text).expect("60 characters fit")),
        proptest::collection::vec(any::<u8>(), 0..=255)
            .prop_map(|bytes| ShortStr::new(bytes).expect("255 bytes fit")),
    ]
}

fn scalar() -> impl Strategy<Value = FieldValue> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    prop_oneof![
        any::<bool>().prop_map(FieldValue::Boolean),
        any::<i8>().prop_map(FieldValue::ShortShortInt),
        any::<u8>().prop_map(FieldValue::ShortShortUInt),
        any::<i16>().prop_map(FieldValue::ShortInt),
        any::<u16>().prop_map(FieldValue::ShortUInt),
        any::<i32>().prop_map(FieldValue::LongInt),
        any::<u32>().prop_map(FieldValue::LongUInt),
        any::<i64>().prop_map(FieldValue::LongLongInt),
        proptest::num::f32::NORMAL.prop_map(FieldValue::Float),
        proptest::num::f64::NORMAL.prop_map(FieldValue::Double),
        any::<(u8, u32)>().prop_map(|(scale, value)| FieldValue::Decimal { scale, value }),
        bytes().prop_map(FieldValue::LongString),
        any::<u64>().prop_map(FieldValue::Timestamp),
        Just(FieldValue::Void),
        bytes().prop_map(FieldValue::ByteArray),
    ]
}

fn value() -> impl Strategy<Value = FieldValue> {
    scalar().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(FieldValue::Array),
            proptest::collection::hash_map(text(), inner, 0..4)
                .prop_map(|map| FieldValue::Table(map.into_iter().collect())),
        ]
    })
}

/// Properties with names that occur once, every one of them absent or present.
pub(crate) fn properties() -> impl Strategy<Value = Properties> {
    let some = || proptest::option::of(text());
    let headers = proptest::option::of(
        proptest::collection::hash_map(text(), value(), 0..5)
            .prop_map(|map| map.into_iter().collect::<FieldTable>()),
    );
    let numbers = (
        proptest::option::of(any::<u8>().prop_map(DeliveryMode::from)),
        proptest::option::of(any::<u8>()),
        proptest::option::of(any::<u64>()),
    );
    let texts = (some(), some(), some(), some(), some(), some(), some(), some(), some(), some());
    (headers, numbers, texts).prop_map(|(headers, (delivery_mode, priority, timestamp), texts)| {
        let (a, b, c, d, e, f, g, h, i, j) = texts;
        Properties {
            content_type: a,
            content_encoding: b,
            headers,
            delivery_mode,
            priority,
            correlation_id: c,
            reply_to: d,
            expiration: e,
            message_id: f,
            timestamp,
            kind: g,
            user_id: h,
            app_id: i,
            cluster_id: j,
        }
    })
}

fn encoded(properties: &Properties) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(&mut bytes, properties);
    bytes.freeze()
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_was(properties in properties()) {
        let bytes = encoded(&properties);
        prop_assert_eq!(encoded_len(&properties), 12 + bytes.len());
        prop_assert!(is_finite(&properties));
        prop_assert_eq!(decode(bytes), (properties, Reading::Whole));
    }

    #[test]
    fn no_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (properties, _) = decode(Bytes::from(bytes));
        // Whatever came out of it, the archive can hold.
        let message = Message { properties, ..Message::default() };
        let column = encode_properties(&message);
        let back = decode_message(ShortStr::default(), ShortStr::default(), &column, Bytes::new()).unwrap();
        prop_assert_eq!(back, message);
    }

    #[test]
    fn a_damaged_header_table_is_kept_as_bytes(
        properties in properties(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encoded(&properties).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let (properties, reading) = decode(Bytes::from(bytes));
        let headers = properties.headers.unwrap_or_default();
        let kept = headers.get("x-dacapo-unread-headers").or(headers.get("x-dacapo-unread-properties"));
        prop_assert_eq!(kept.is_some(), reading == Reading::Kept);
    }
}

/// Returns the properties of a message whose headers are tables in tables.
fn nested(levels: usize) -> Bytes {
    let mut innermost = BytesMut::new();
    for _ in 0..levels {
        let mut around = BytesMut::new();
        put_short(&mut around, b"t");
        around.put_u8(b'F');
        around.put_u32(u32::try_from(innermost.len()).unwrap());
        around.put_slice(&innermost);
        innermost = around;
    }
    let mut bytes = BytesMut::new();
    bytes.put_u16(1 << 13);
    bytes.put_u32(u32::try_from(innermost.len()).unwrap());
    bytes.put_slice(&innermost);
    bytes.freeze()
}

#[test]
fn tables_as_deep_as_a_frame_holds_are_read_and_can_be_archived() {
    for levels in [1, 20, 23, 24, 25, 30, 18_000] {
        let (properties, reading) = decode(nested(levels));
        assert_eq!(reading, Reading::Whole);
        let message = Message { properties, ..Message::default() };
        let column = encode_properties(&message);
        let back = decode_message(ShortStr::default(), ShortStr::default(), &column, Bytes::new())
            .unwrap();
        assert_eq!(back, message, "{levels}");
    }
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let short = ShortStr::from_static;
    let headers = [(short("n"), FieldValue::LongInt(1)), (short("s"), FieldValue::text("x"))];
    let properties = Properties {
        content_type: Some(short("a")),
        headers: Some(headers.into_iter().collect()),
        delivery_mode: Some(DeliveryMode::Persistent),
        message_id: Some(short("m")),
        timestamp: Some(7),
        cluster_id: Some(short("")),
        ..Properties::default()
    };
    // Content type, headers, delivery mode, message id, timestamp and cluster id.
    let flags = b"\xb0\xc4";
    let expected = [
        &flags[..],
        b"\x01a",
        b"\0\0\0\x0f\x01nI\0\0\0\x01\x01sS\0\0\0\x01x",
        b"\x02",
        b"\x01m",
        b"\0\0\0\0\0\0\0\x07",
        b"\0",
    ];
    assert_eq!(encoded(&properties), expected.concat());
}

#[test]
fn absent_headers_stay_absent_and_empty_ones_empty() {
    for headers in [None, Some(FieldTable::new())] {
        let properties = Properties { headers: headers.clone(), ..Properties::default() };
        assert_eq!(decode(encoded(&properties)).0.headers, headers);
    }
}

#[test]
fn a_header_that_occurs_twice_is_sent_twice() {
    let name = ShortStr::from_static("n");
    let headers = [(name.clone(), FieldValue::LongInt(1)), (name, FieldValue::LongInt(2))];
    let headers: FieldTable = headers.into_iter().collect();
    let properties = Properties { headers: Some(headers.clone()), ..Properties::default() };
    let back = decode(encoded(&properties)).0.headers.unwrap();
    assert!(back.iter().eq(headers.iter()));
}

#[test]
fn bytes_that_are_no_text_are_noticed_wherever_they_are() {
    let bad = ShortStr::new(&b"\xff"[..]).unwrap();
    let plain = Message::default();
    assert!(is_text(&plain));
    assert!(!is_text(&Message { routing_key: bad.clone(), ..Message::default() }));
    let app_id = Properties { app_id: Some(bad.clone()), ..Properties::default() };
    assert!(!is_text(&Message { properties: app_id, ..Message::default() }));
    let table: FieldTable = [(bad, FieldValue::Void)].into_iter().collect();
    let array = FieldValue::Array(vec![FieldValue::Table(table)]);
    let headers = [(ShortStr::from_static("a"), array)].into_iter().collect();
    let properties = Properties { headers: Some(headers), ..Properties::default() };
    assert!(!is_text(&Message { properties, ..Message::default() }));
}
