//! Round trips of everything that AMQP can say.

use proptest::prelude::*;

use super::*;

fn short_str() -> impl Strategy<Value = ShortStr> {
    prop_oneof![
        "[a-z.#*é]{0,20}".prop_map(|text| ShortStr::try_from(text).unwrap()),
        proptest::collection::vec(any::<u8>(), 0..=255)
            .prop_map(|bytes| ShortStr::new(bytes).unwrap()),
    ]
}

fn field_value() -> impl Strategy<Value = FieldValue> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let leaf = prop_oneof![
        any::<bool>().prop_map(FieldValue::Boolean),
        any::<i8>().prop_map(FieldValue::ShortShortInt),
        any::<u8>().prop_map(FieldValue::ShortShortUInt),
        any::<i16>().prop_map(FieldValue::ShortInt),
        any::<u16>().prop_map(FieldValue::ShortUInt),
        any::<i32>().prop_map(FieldValue::LongInt),
        any::<u32>().prop_map(FieldValue::LongUInt),
        any::<i64>().prop_map(FieldValue::LongLongInt),
        any::<f32>().prop_map(FieldValue::Float),
        any::<f64>().prop_map(FieldValue::Double),
        (any::<u8>(), any::<u32>()).prop_map(|(scale, value)| FieldValue::Decimal { scale, value }),
        bytes().prop_map(FieldValue::LongString),
        any::<u64>().prop_map(FieldValue::Timestamp),
        Just(FieldValue::Void),
        bytes().prop_map(FieldValue::ByteArray),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(FieldValue::Array),
            proptest::collection::vec((short_str(), inner), 0..5)
                .prop_map(|fields| FieldValue::Table(fields.into_iter().collect())),
        ]
    })
}

fn properties() -> impl Strategy<Value = Properties> {
    let option = || proptest::option::of(short_str());
    let headers = proptest::option::of(
        proptest::collection::vec((short_str(), field_value()), 0..6)
            .prop_map(|fields| fields.into_iter().collect::<FieldTable>()),
    );
    (
        [option(), option(), option(), option(), option()],
        [option(), option(), option(), option(), option()],
        headers,
        proptest::option::of(any::<u8>().prop_map(DeliveryMode::from)),
        proptest::option::of(any::<u8>()),
        proptest::option::of(any::<u64>()),
    )
        .prop_map(|(a, b, headers, delivery_mode, priority, timestamp)| {
            let [content_type, content_encoding, correlation_id, reply_to, expiration] = a;
            let [message_id, kind, user_id, app_id, cluster_id] = b;
            Properties {
                content_type,
                content_encoding,
                headers,
                delivery_mode,
                priority,
                correlation_id,
                reply_to,
                expiration,
                message_id,
                timestamp,
                kind,
                user_id,
                app_id,
                cluster_id,
            }
        })
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_was(
        exchange in short_str(),
        routing_key in short_str(),
        properties in properties(),
    ) {
        let message = Message { exchange, routing_key, properties, body: Bytes::from_static(b"body") };
        let column = encode_properties(&message);
        // A text column would hold the replacement characters; they must not be believed.
        let text = |short: &ShortStr| match short.as_str() {
            Some(_) => short.clone(),
            None => ShortStr::from_static("lossy"),
        };
        let (exchange, routing_key) = (text(&message.exchange), text(&message.routing_key));
        let decoded = decode_message(exchange, routing_key, &column, message.body.clone());
        prop_assert_eq!(decoded.unwrap(), message);
    }

    #[test]
    fn hostile_bytes_are_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Either outcome is fine; reaching it is the test.
        drop(decode_message(ShortStr::default(), ShortStr::default(), &bytes, Bytes::new()));
    }
}

#[test]
fn deep_nesting_is_refused() {
    let mut value = FieldValue::Void;
    for _ in 0..NESTING_MAX + 2 {
        value = FieldValue::Array(vec![value]);
    }
    let headers: FieldTable = [(ShortStr::from_static("deep"), value)].into_iter().collect();
    let message = Message {
        properties: Properties { headers: Some(headers), ..Properties::default() },
        ..Message::default()
    };
    let column = encode_properties(&message);
    assert!(
        decode_message(ShortStr::default(), ShortStr::default(), &column, Bytes::new()).is_err()
    );
}
