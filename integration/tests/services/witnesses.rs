//! The witnesses agree with each other and with what was published: they are what the product's
//! fidelity is judged by.

use serde_json::{Value, json};

use super::services;
use super::witness::{self, Queue, on_broker};

/// One header of every field type that RabbitMQ takes, at the edges of its range, in the order of
/// the names.
fn every_field_type() -> Value {
    json!([
        ["array", "A", [["I", 1], ["S", "two"], ["F", [["three", "t", true]]], ["V", null]]],
        ["boolean", "t", true],
        ["byte-array", "x", { "hex": "00ff" }],
        ["decimal", "D", [2, 314]],
        ["double", "d", "bff0000000000001"],
        ["float", "f", "80000000"],
        ["long", "I", -2_147_483_648_i64],
        ["long-long", "l", i64::MIN],
        ["long-unsigned", "i", 4_294_967_295_u64],
        ["octet", "b", -128],
        ["octet-unsigned", "B", 255],
        ["short", "s", -32_768],
        ["short-unsigned", "u", 65_535],
        ["string", "S", "naïve"],
        ["string-bytes", "S", { "hex": "c328" }],
        ["table", "F", [["empty", "F", []], ["nested", "F", [["deep", "A", []]]]]],
        ["timestamp", "T", u64::MAX],
        ["void", "V", null]
    ])
}

fn every_property() -> Value {
    // The broker refuses the name of another user.
    let (_, user) = services::amqp_with_password("any");
    json!({
        "content_type": "application/json",
        "content_encoding": "gzip",
        "headers": every_field_type(),
        "delivery_mode": 2,
        "priority": 255,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "600000",
        "message_id": "m",
        "timestamp": u64::MAX,
        "type": "t",
        "user_id": user,
        "app_id": "a",
        "cluster_id": "k"
    })
}

/// Publishes with raw frames and takes the message out again.
#[track_caller]
fn check(properties: Value, body: Value, expected_bytes: usize) -> Value {
    let queue = Queue::new("witness");
    let published = on_broker(json!({
        "op": "publish",
        "routing_key": queue.name(),
        "properties": properties,
        "body": body,
    }));
    assert_eq!(published, json!({ "outcome": "ack", "returned": null }));
    let mut messages = queue.take(2);
    assert_eq!(messages.len(), 1);
    let message = messages.remove(0);
    assert_eq!(message["routing_key"], queue.name());
    assert_eq!(message["properties"], properties);
    assert_eq!(message["body_bytes"], expected_bytes);
    message
}

#[test]
fn every_property_and_field_type_comes_back_as_it_was() {
    let message = check(every_property(), json!("{}"), 2);
    assert_eq!(message["body"], "{}");
}

#[test]
fn absent_and_empty_headers_are_told_apart() {
    check(json!({}), json!(""), 0);
    check(json!({ "headers": [] }), json!(""), 0);
}

#[test]
fn strings_that_are_not_utf_8_are_told_as_bytes() {
    let bytes = json!({ "hex": "fffe" });
    check(
        json!({ "headers": [[bytes, "S", bytes]], "message_id": bytes, "type": bytes }),
        bytes.clone(),
        2,
    );
}

#[test]
fn a_body_of_many_frames_comes_back() {
    let message =
        check(json!({}), json!({ "repeat": "0123456789abcdef", "times": 65_536 }), 1 << 20);
    // `python3 -c 'import hashlib; print(hashlib.sha256(b"0123456789abcdef" * 65536).hexdigest())'`
    assert_eq!(
        message["body_sha256"],
        "aca1cd027e979588d14b877b7b0cb8585ad9fec599eb45801992ee5382b3760f"
    );
}

#[test]
fn a_message_that_nobody_takes_is_returned() {
    let published = on_broker(json!({ "op": "publish", "routing_key": services::unique("none") }));
    assert_eq!(published, json!({ "outcome": "ack", "returned": "312 NO_ROUTE" }));
}

#[test]
fn what_the_broker_refuses_is_told_and_the_next_operation_goes_on() {
    let queue = Queue::new("witness");
    let results = witness::raw_amqp(
        &services::amqp(),
        &[
            json!({ "op": "get", "queue": services::unique("none") }),
            json!({ "op": "declare_queue", "queue": queue.name(), "passive": true }),
        ],
    )
    .unwrap();
    let error = results[0]["error"].as_str().unwrap();
    assert!(error.starts_with("404 NOT_FOUND"), "{error}");
    assert_eq!(results[1]["messages"], 0);
}

/// Erlang has no such float, and RabbitMQ closes the connection over one: the only value of a
/// field type that it does not pass on.
#[test]
fn a_float_that_is_not_a_number_is_taken_by_no_broker() {
    for (tag, bytes) in [("f", "7fc00000"), ("d", "7ff8000000000000")] {
        let headers = json!([["nan", tag, bytes]]);
        let publish = json!({ "op": "publish", "properties": { "headers": headers } });
        let error = witness::raw_amqp(&services::amqp(), &[publish]).unwrap_err().to_string();
        assert!(error.contains("541 INTERNAL_ERROR"), "{error}");
    }
}

#[test]
fn a_wrong_password_is_an_error() {
    let (url, _) = services::amqp_with_password("wrong");
    let error = witness::raw_amqp(&url, &[]).unwrap_err().to_string();
    assert!(error.contains("403 ACCESS_REFUSED"), "{error}");
}

/// pika cannot tell integers of different width apart, nor text from a byte array; what it can
/// tell must be what the raw client wrote.
#[test]
fn pika_sees_what_the_raw_client_published() {
    let queue = Queue::new("witness");
    on_broker(json!({
        "op": "publish",
        "routing_key": queue.name(),
        "properties": {
            "content_type": "text/plain",
            "message_id": "m-1",
            "timestamp": 1_700_000_000,
            "headers": [
                ["flag", "t", true],
                ["list", "A", [["I", 1], ["S", "two"]]],
                ["money", "D", [2, 314]],
                ["nothing", "V", null],
                ["number", "l", -5],
                ["table", "F", [["inner", "S", "x"]]],
                ["text", "S", "naïve"],
                ["when", "T", 1_700_000_000]
            ],
        },
        "body": "hello",
    }));
    let output = witness::run("pika_client.py", &[&services::amqp(), queue.name(), "get"], "");
    let seen: Value = serde_json::from_str(&output.unwrap()).unwrap();
    let expected = json!([{
        "routing_key": queue.name(),
        "body": "hello",
        "properties": {
            "content_type": "text/plain",
            "message_id": "m-1",
            "timestamp": 1_700_000_000,
            "headers": {
                "flag": ["bool", "True"],
                "list": ["list", [["int", "1"], ["str", "two"]]],
                "money": ["Decimal", "3.14"],
                "nothing": ["NoneType", "None"],
                "number": ["long", "-5"],
                "table": ["dict", { "inner": ["str", "x"] }],
                "text": ["str", "naïve"],
                "when": ["timestamp", "1700000000"]
            },
        },
    }]);
    assert_eq!(seen, expected);
}

#[test]
fn the_raw_client_sees_what_pika_published() {
    let queue = Queue::new("witness");
    let messages = json!([{
        "properties": {
            "content_type": "text/plain",
            "delivery_mode": 2,
            "headers": { "flag": true, "number": 5, "text": "naïve" },
        },
        "body": "hello",
    }]);
    let args = [&services::amqp(), queue.name(), "publish"];
    witness::run("pika_client.py", &args, &messages.to_string()).unwrap();
    let seen = queue.take(2);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["body"], "hello");
    assert_eq!(
        seen[0]["properties"],
        json!({
            "content_type": "text/plain",
            "delivery_mode": 2,
            "headers": [["flag", "t", true], ["number", "I", 5], ["text", "S", "naïve"]],
        })
    );
}
