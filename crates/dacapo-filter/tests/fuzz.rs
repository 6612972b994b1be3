//! Whatever a person or a plan has typed into a selection: no panic, bounded memory, and bounded
//! time for one event.

#![cfg(test)]

use bytes::Bytes;
use dacapo_event::{Event, Message, ShortStr, StreamName, Timestamp};
use dacapo_filter::{Selection, SelectionSpec, TopicPattern, parse_time};
use dacapo_fuzz::Attack;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The parser's tree of an expression of 8 KiB, and a compiled regular expression (4 MiB each at
/// the most).
const MEMORY: usize = 64 * 1024 * 1024;

fn stream() -> StreamName {
    "shop".parse().unwrap()
}

fn event(body: &str) -> Event {
    Event {
        sequence: 42,
        archived_at: Timestamp::from_secs(1_800_000_000),
        time: Timestamp::from_secs(1_700_000_000),
        id: "m-1".to_owned(),
        kind: "order.placed".to_owned(),
        key: Some("order-17".to_owned()),
        message: Message {
            exchange: ShortStr::from_static("shop"),
            routing_key: ShortStr::from_static("orders.placed"),
            body: Bytes::copy_from_slice(body.as_bytes()),
            ..Message::default()
        },
    }
}

fn filtered(source: &str) -> Result<Selection, String> {
    let spec = SelectionSpec { where_: Some(source.to_owned()), ..SelectionSpec::default() };
    Selection::compile(spec).map_err(|error| error.to_string())
}

#[test]
fn expressions_are_refused_or_evaluate() {
    let seeds = [
        r#"type == "order.placed" && body.items.exists(i, i.sku == 'a' && i.n >= 2)"#,
        r#"body.?customer.?country.orValue('?') == 'DE' || has(headers.x)"#,
        r#"type.matches("^(a+)+$") && size(body.items.map(i, i.n * 2).filter(n, n > 3)) > 0"#,
        r#"time > timestamp("2026-01-01T00:00:00Z") + duration("1h") ? key in ["a", 'b'] : sequence % 2u == 1u"#,
        r#"{"a": [1, 2.5, b"\xff", null]}["a"][0] == int(string(bytes("12")))"#,
    ];
    let event = event(r#"{"items": [{"sku": "a", "n": 2}, {"sku": "b", "n": 9}], "n": 7}"#);
    let seeds = seeds.map(|text| text.as_bytes().to_vec());
    Attack::new(HERE, "where", MEMORY).seeds(seeds).slow(2).run(|bytes| {
        if let Ok(selection) = filtered(&String::from_utf8_lossy(bytes)) {
            drop(selection.matches_attributes(&stream(), &event));
            drop(selection.matches(&stream(), &event));
        }
    });
}

#[test]
fn bodies_are_decoded_or_are_text() {
    let selection = filtered("size(string(body)) >= 0 || body.a.b == 1").unwrap();
    let seeds = [r#"{"a": {"b": [1, -2.5e3, "\u00e9", null, true]}}"#.as_bytes().to_vec()];
    Attack::new(HERE, "body", MEMORY).seeds(seeds).run(|bytes| {
        let mut event = event("");
        event.message.body = Bytes::copy_from_slice(bytes);
        drop(selection.matches(&stream(), &event));
    });
}

#[test]
fn patterns_and_times_are_refused_or_come_back() {
    const MEMORY: usize = 4 * 1024 * 1024;
    let seeds = ["orders.*.placed", "#.a.#.b.*.#", "2h ago", "2026-11-23 08:00", "yesterday"];
    let seeds = seeds.map(|text| text.as_bytes().to_vec());
    let now = Timestamp::from_secs(1_800_000_000);
    Attack::new(HERE, "typed", MEMORY).seeds(seeds).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(pattern) = text.parse::<TopicPattern>() {
            assert_eq!(pattern.to_string().parse(), Ok(pattern.clone()));
            std::hint::black_box(pattern.matches("a.b.a.b.a.b.a.b".as_bytes()));
            std::hint::black_box(pattern.matches(&[b'.'; 255]));
        }
        if let Ok(time) = parse_time(&text, now) {
            assert_eq!(parse_time(&time.to_string(), now), Ok(time));
        }
    });
}

#[test]
fn descriptor_sets_are_refused_or_decode() {
    // A `FileDescriptorSet` of one file with `message A { string b = 1; A c = 2; }`.
    let set = [
        b"\x0a\x30\x0a\x07a.proto\x22\x1d\x0a\x01A".as_slice(),
        b"\x12\x09\x0a\x01b\x18\x01\x20\x01\x28\x09".as_slice(),
        b"\x12\x0d\x0a\x01c\x18\x02\x20\x01\x28\x0b\x32\x02.A".as_slice(),
        b"\x62\x06proto3".as_slice(),
    ];
    let attack = Attack::new(HERE, "descriptors", MEMORY).seeds([set.concat()]);
    attack.caught_panics_pass().run(|bytes| {
        let spec = SelectionSpec {
            where_: Some("size(string(body)) >= 0".to_owned()),
            descriptor_set: Some(Bytes::copy_from_slice(bytes)),
            ..SelectionSpec::default()
        };
        if let Ok(selection) = Selection::compile(spec) {
            let mut event = event("");
            event.message.body = Bytes::copy_from_slice(&bytes[..bytes.len().min(200)]);
            drop(selection.matches(&stream(), &event));
        }
    });
}
