//! The conversion is lossless, and what has no form in lapin is refused by name.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// Texts of every length that a short string may have.
fn text() -> impl Strategy<Value = ShortStr> {
    "\\PC{0,60}".prop_map(|text| ShortStr::try_from(text).expect("60 characters fit"))
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

proptest! {
    #[test]
    fn properties_survive_lapin(properties in properties()) {
        let there = to_lapin(&properties).unwrap();
        prop_assert_eq!(from_lapin(&there), properties);
    }
}

#[test]
fn a_short_string_that_is_not_utf8_is_refused_by_name() {
    let bad = ShortStr::new(&b"caf\xe9"[..]).unwrap();
    let in_property = Properties { message_id: Some(bad.clone()), ..Properties::default() };
    assert_eq!(
        to_lapin(&in_property).unwrap_err().to_string(),
        "message cannot be sent: its message_id `caf\u{fffd}` is not UTF-8, \
         which the client library cannot send"
    );
    let headers = [(bad, FieldValue::Void)].into_iter().collect();
    let nested = Properties {
        headers: Some(
            [(ShortStr::from_static("t"), FieldValue::Table(headers))].into_iter().collect(),
        ),
        ..Properties::default()
    };
    assert!(to_lapin(&nested).unwrap_err().to_string().contains("header name"));
}

#[test]
fn absent_headers_stay_absent_and_empty_ones_empty() {
    let none = Properties::default();
    let empty = Properties { headers: Some(FieldTable::new()), ..Properties::default() };
    assert_eq!(from_lapin(&to_lapin(&none).unwrap()).headers, None);
    assert_eq!(from_lapin(&to_lapin(&empty).unwrap()).headers, Some(FieldTable::new()));
}

#[test]
fn a_float_that_rabbitmq_cannot_take_is_refused() {
    for number in [FieldValue::Float(f32::NAN), FieldValue::Double(f64::INFINITY)] {
        let headers = [(ShortStr::from_static("n"), FieldValue::Array(vec![number]))];
        let headers = Some(headers.into_iter().collect());
        assert!(to_lapin(&Properties { headers, ..Properties::default() }).is_err());
    }
}
