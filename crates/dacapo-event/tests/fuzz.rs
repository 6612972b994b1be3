//! Whatever bytes the `properties` column holds, or text a time, an attribute or a JSON event: no
//! panic, bounded memory, and what is read can be written and read again.

#![cfg(test)]

use bytes::Bytes;
use dacapo_event::{
    FieldTable, FieldValue, Message, Properties, ShortStr, StreamName, Timestamp, envelope, ndjson,
    wire,
};
use dacapo_fuzz::Attack;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A field of a table takes 12 times its bytes once decoded, and is there twice on the way.
const MEMORY: usize = 24 * 1024 * 1024;

/// Tables as deep as an archive holds them.
fn nested(depth: usize) -> FieldValue {
    (0..depth).fold(FieldValue::Void, |inner, level| {
        if level % 2 == 0 {
            FieldValue::Array(vec![inner])
        } else {
            FieldValue::Table([(ShortStr::from_static("in"), inner)].into_iter().collect())
        }
    })
}

fn message() -> Message {
    let short = ShortStr::from_static;
    let headers: FieldTable = [
        (short("a"), FieldValue::text("text")),
        (short("b"), FieldValue::ByteArray(Bytes::from_static(&[0xff, 0]))),
        (short("c"), FieldValue::Decimal { scale: 2, value: 314 }),
        (short("d"), FieldValue::Double(0.5)),
        (short("e"), FieldValue::Timestamp(u64::MAX)),
        (short("f"), FieldValue::LongLongInt(-1)),
        (short("g"), nested(40)),
    ]
    .into_iter()
    .collect();
    Message {
        routing_key: ShortStr::new(vec![0xff; 3]).unwrap(),
        properties: Properties {
            content_type: Some(short("application/json")),
            headers: Some(headers),
            priority: Some(9),
            ..Properties::default()
        },
        ..Message::default()
    }
}

#[test]
fn properties_are_refused_or_come_back() {
    let seeds = [wire::encode_properties(&message()), Vec::new()];
    Attack::new(HERE, "properties", MEMORY).seeds(seeds).run(|bytes| {
        let short = ShortStr::from_static;
        let decode =
            |bytes: &[u8]| wire::decode_message(short("shop"), short("key"), bytes, Bytes::new());
        if let Ok(message) = decode(bytes) {
            let again = decode(&wire::encode_properties(&message)).unwrap();
            assert_eq!(again.properties, message.properties);
            drop(ndjson::properties_to_json(&message.properties));
            drop(message.properties.headers.map(|table| ndjson::table_to_json(&table).to_string()));
        }
    });
}

#[test]
fn texts_are_refused_or_come_back() {
    let seeds = [
        "2026-11-23T08:00:00.123456+02:00",
        "9999-12-31T23:59:59Z",
        "shop.orders-1",
        r#"{"content_type": "a", "priority": 3, "timestamp": 1700000000, "x": [[1, {"y": null}]]}"#,
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec());
    Attack::new(HERE, "texts", MEMORY).seeds(seeds).run(|bytes| {
        drop(envelope::field(bytes, "id"));
        let text = String::from_utf8_lossy(bytes);
        drop(ndjson::bytes_from_base64(&text));
        if let Ok(time) = text.parse::<Timestamp>() {
            assert_eq!(time.to_string().parse(), Ok(time));
        }
        if let Ok(stream) = text.parse::<StreamName>() {
            assert_eq!(stream.as_str(), text);
        }
        if let Ok(serde_json::Value::Object(members)) = serde_json::from_str(&text) {
            drop(ndjson::properties_from_json(&members));
            drop(ndjson::table_from_json(&members));
        }
    });
}
