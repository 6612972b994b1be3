//! What is replayed is what was published: every property, every header with its type, every byte.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Platform, Queue, check_receipt, event_id, headers, services};

/// Headers of every field type that RabbitMQ accepts, at the edges of their ranges.
fn every_field_type() -> Value {
    json!([
        ["array", "A", [["I", 1], ["S", "two"], ["F", [["three", "t", true]]], ["V", null]]],
        ["boolean", "t", true],
        ["byte-array", "x", { "hex": "00ff" }],
        ["decimal", "D", [255, u32::MAX]],
        ["double", "d", "bff0000000000001"],
        ["float", "f", "80000000"],
        ["long", "I", i32::MIN],
        ["long-long", "l", i64::MIN],
        ["long-unsigned", "i", u32::MAX],
        ["naïve", "S", ""],
        ["octet", "b", -128],
        ["octet-unsigned", "B", 255],
        ["short", "s", -32_768],
        ["short-unsigned", "u", 65_535],
        ["string", "S", "naïve"],
        ["string-bytes", "S", { "hex": "c328" }],
        ["table", "F", [["empty", "F", []], ["nested", "F", [["deep", "A", [["A", []]]]]]]],
        ["timestamp", "T", u64::MAX],
        ["void", "V", null]
    ])
}

/// What a test says of one message: as published, and what is to be different when it is replayed.
struct Case {
    id: &'static str,
    published: Value,
    /// Headers in which the neutralised is kept: name, tag and value.
    kept: Value,
    /// Headers that must be gone.
    gone: &'static [&'static str],
}

/// Properties that are moved into headers or replaced.
const NEUTRALISED: [&str; 5] = ["user_id", "expiration", "reply_to", "priority", "delivery_mode"];

fn everything() -> Case {
    let (_, user) = services::amqp_with_password("any");
    Case {
        id: "everything",
        published: json!({
            "routing_key": "order.placed",
            "properties": {
                "content_type": "application/json",
                "content_encoding": "identity",
                "headers": every_field_type(),
                "delivery_mode": 2,
                "priority": 255,
                "correlation_id": "c",
                "reply_to": "amq.gen-x",
                "expiration": "600000",
                "message_id": "everything",
                "timestamp": 1_767_000_000,
                "type": "order.placed",
                "user_id": user,
                "app_id": "a",
                "cluster_id": "k",
            },
            "body": "{\"total\": 1.50}",
        }),
        kept: json!([
            ["x-dacapo-original-user-id", "S", user],
            ["x-dacapo-original-expiration", "S", "600000"],
            ["x-dacapo-original-reply-to", "S", "amq.gen-x"],
            ["x-dacapo-original-priority", "B", 255]
        ]),
        gone: &[],
    }
}

fn acted_on() -> Case {
    let copies = json!([["S", "copy.one"], ["S", "copy.two"]]);
    let deaths =
        json!([["F", [["count", "l", 3], ["queue", "S", "q"], ["reason", "S", "expired"]]]]);
    Case {
        id: "acted-on",
        published: json!({
            "routing_key": "r".repeat(255),
            "properties": {
                "message_id": "acted-on",
                "delivery_mode": 1,
                "timestamp": u64::MAX,
                "headers": [["CC", "A", copies], ["x-death", "A", deaths]],
            },
            "body": { "hex": "00fffe80" },
        }),
        kept: json!([
            ["x-dacapo-original-cc", "A", copies],
            ["x-dacapo-original-x-death", "A", deaths],
            ["x-dacapo-original-delivery-mode", "B", 1]
        ]),
        gone: &["CC", "x-death"],
    }
}

fn large() -> Case {
    Case {
        id: "large",
        published: json!({
            "routing_key": "naïve.ключ",
            "properties": { "message_id": "large", "headers": [], "priority": 0 },
            "body": { "repeat": "0123456789abcdef", "times": 65_536 },
        }),
        kept: json!([["x-dacapo-original-priority", "B", 0]]),
        gone: &[],
    }
}

fn bare(platform: &Platform) -> Case {
    // It gets its place in the stream as its id; it is the fourth.
    let id = format!("{}:4", platform.archive_queue);
    Case {
        id: Box::leak(id.into_boxed_str()),
        published: json!({ "routing_key": "", "properties": {}, "body": "" }),
        kept: json!([]),
        gone: &[],
    }
}

/// Returns the properties and headers that a replay of `case` must have.
fn expected(
    case: &Case,
    seen: &Value,
    replay: &Value,
    event: &Value,
) -> (Value, BTreeMap<String, Value>) {
    let published = &case.published;
    let mut properties = published["properties"].clone();
    let map = properties.as_object_mut().unwrap();
    for name in NEUTRALISED {
        map.remove(name);
    }
    map.insert("delivery_mode".to_owned(), json!(2));
    map.remove("headers");
    let rows = published["properties"]["headers"].as_array().cloned().unwrap_or_default();
    let rows = rows.into_iter().filter(|row| !case.gone.contains(&row[0].as_str().unwrap()));
    let marking = json!([
        ["x-dacapo-replay", "S", replay],
        ["x-dacapo-event-id", "S", case.id],
        ["x-dacapo-body-digest", "S", seen["body_sha256"]],
        ["x-dacapo-original-time", "S", event["time"]],
        ["x-dacapo-original-exchange", "S", event["exchange"]],
        ["x-dacapo-original-routing-key", "S", published["routing_key"]]
    ]);
    let added = [marking, case.kept.clone()];
    let added = added.iter().flat_map(|rows| rows.as_array().unwrap().clone());
    let headers =
        rows.chain(added).map(|row| (row[0].to_string(), json!([row[1], row[2]]))).collect();
    (properties, headers)
}

#[test]
fn every_property_header_type_and_byte_survives_archive_and_replay() {
    let platform = Platform::new();
    let live = platform.service("live");
    let cases = [everything(), acted_on(), large(), bare(&platform)];
    let messages: Vec<Value> = cases.iter().map(|case| case.published.clone()).collect();
    platform.archive(&messages);
    let originals = live.take(cases.len() + 1);
    assert_eq!(originals.len(), cases.len());

    let queue = Queue::new("replayed");
    let receipt = platform.dacapo.json(["replay", "--json", "--to-queue", queue.name()]);
    check_receipt(&receipt, "completed", cases.len(), cases.len());
    let replayed = queue.take(cases.len() + 1);
    assert_eq!(replayed.len(), cases.len());
    let events = platform.events();

    for (case, original) in cases.iter().zip(&originals) {
        let seen = replayed.iter().find(|message| event_id(message) == case.id);
        let seen = seen.unwrap_or_else(|| panic!("{} was not replayed", case.id));
        let event = events.iter().find(|event| event["id"] == case.id).unwrap();
        for part in ["routing_key", "body", "body_bytes", "body_sha256"] {
            assert_eq!(seen[part], original[part], "{part} of {}", case.id);
        }
        let mut properties = seen["properties"].clone();
        properties.as_object_mut().unwrap().remove("headers");
        let expected = expected(case, seen, &receipt["replay"], event);
        assert_eq!((properties, headers(seen)), expected, "{}", case.id);
        assert_eq!(event["exchange"], *platform.exchange);
    }
}

#[test]
fn priorities_are_kept_on_request() {
    let platform = Platform::new();
    platform.archive(&[large().published]);
    let queue = Queue::new("priority");
    let to = ["replay", "--json", "--keep-priority", "--to-queue", queue.name()];
    check_receipt(&platform.dacapo.json(to), "completed", 1, 1);
    assert_eq!(queue.take(1)[0]["properties"]["priority"], 0);
}
