//! What a line becomes, and why another is none.

use dacapo_event::{FieldValue, StreamName};

use super::*;
use crate::testing::{noon, stream};

fn event(line: &str) -> Event {
    let stream: StreamName = stream();
    parse(line.as_bytes(), &FieldMap::default()).unwrap().into_event(&stream, 7, noon())
}

#[track_caller]
fn check_body(line: &str, expected: &str) {
    assert_eq!(event(line).message.body, expected.as_bytes());
}

#[track_caller]
fn check_time(time: &str, expected: &str) {
    let at = event(&format!(r#"{{"time":{time}}}"#)).time;
    assert_eq!(at.to_string(), expected, "{time}");
}

#[track_caller]
fn check_problem(line: impl AsRef<[u8]>, expected: &str) {
    assert_eq!(parse(line.as_ref(), &FieldMap::default()).unwrap_err(), expected);
}

#[test]
fn bodies_are_what_the_line_says_to_the_digit() {
    check_body(r#"{"body": {"z": 1e400, "a": [0.10, 1.0]}}"#, r#"{"z":1e400,"a":[0.10,1.0]}"#);
    check_body(r#"{"body":123456789012345678901234567890}"#, "123456789012345678901234567890");
    check_body(r#"{"body":"plain \"text\" \u00e9\n"}"#, "plain \"text\" é\n");
    check_body(r#"{"body":""}"#, "");
    check_body(r#"{"body":null}"#, "null");
    check_body(r#"{"body":false}"#, "false");
    check_body(r#"{}"#, "");
    check_body(r#"{"body_base64":"eyJhIjoxfQ=="}"#, r#"{"a":1}"#);
    check_body(r#"{"body":null,"body_base64":"eyJhIjoxfQ=="}"#, r#"{"a":1}"#);
    check_body(r#"{"body":"é","body_base64":null}"#, "é");
}

#[test]
fn attributes_are_taken_or_made_up() {
    let full = event(
        r#"{"id":17,"time":"2021-10-05T09:00:01.370Z","type":"a.b","key":"k","exchange":"x","routing_key":"r.k","headers":{"n":1,"t":"é"}}"#,
    );
    assert_eq!((full.id.as_str(), full.kind.as_str()), ("17", "a.b"));
    assert_eq!(full.key.as_deref(), Some("k"));
    assert_eq!(full.time.to_string(), "2021-10-05T09:00:01.37Z");
    assert_eq!(full.message.exchange.as_str(), Some("x"));
    let properties = &full.message.properties;
    assert_eq!(properties.header("n"), Some(&FieldValue::LongLongInt(1)));
    assert_eq!(properties.message_id, Some(ShortStr::from_static("17")));
    assert_eq!(properties.kind, Some(ShortStr::from_static("a.b")));
    assert_eq!(properties.timestamp, Some(1_633_424_401));
    assert_eq!(properties.content_type, None);

    let bare = event(r#"{"routing_key":"r.k","id":null,"key":""}"#);
    assert_eq!((bare.id.as_str(), bare.kind.as_str()), ("shop:7", "r.k"));
    assert_eq!((bare.time, bare.archived_at, bare.sequence), (noon(), noon(), 7));
    assert_eq!(bare.key, None);
    assert_eq!(bare.message.properties, Properties::default(), "nothing is made up");
}

#[test]
fn properties_that_are_given_are_exactly_those_and_fill_in_attributes() {
    let given = event(
        r#"{"time":"2021-10-05T09:00:01Z","type":"t","properties":{"message_id":"m","priority":3}}"#,
    );
    assert_eq!(given.id, "m");
    assert_eq!(given.message.properties.kind, None);
    assert_eq!(given.message.properties.timestamp, None);
    assert_eq!(given.message.properties.priority, Some(3));
    let filled = event(r#"{"properties":{"timestamp":1700000000,"type":"p"}}"#);
    assert_eq!(filled.time.to_string(), "2023-11-14T22:13:20Z");
    assert_eq!(filled.kind, "p");
}

#[test]
fn what_dacapo_prints_is_read_back() {
    let mut original = event(
        r#"{"id":"e","time":"2021-10-05T09:00:01Z","type":"t","key":"k","exchange":"x","routing_key":"r","headers":{"a":[1,"b",null]},"properties":{"content_type":"text/plain","delivery_mode":2},"body":"text"}"#,
    );
    let printed = ndjson::event_to_json(&stream(), &original).to_string();
    assert_eq!(event(&printed), original);
    original.message.body = Bytes::from_static(b"\xff\x00");
    let printed = ndjson::event_to_json(&stream(), &original).to_string();
    assert_eq!(event(&printed), original);
}

#[test]
fn times_are_read_in_every_form() {
    check_time(r#""2021-10-05T11:00:01.5+02:00""#, "2021-10-05T09:00:01.5Z");
    check_time("1700000000", "2023-11-14T22:13:20Z");
    check_time("1700000000123", "2023-11-14T22:13:20.123Z");
    check_time("1700000000123456", "2023-11-14T22:13:20.123456Z");
    check_time("1700000000.25", "2023-11-14T22:13:20.25Z");
    check_time("1.7e12", "2023-11-14T22:13:20Z");
    check_time(r#""1700000000""#, "2023-11-14T22:13:20Z");
    check_time("-1", "1969-12-31T23:59:59Z");
}

#[test]
fn a_time_before_1970_and_an_id_too_long_for_amqp_do_not_stop_an_event() {
    let id = "i".repeat(300);
    let event = event(&format!(r#"{{"id":"{id}","time":"1931-01-01T00:00:00Z"}}"#));
    assert_eq!(event.id, id);
    assert_eq!(event.message.properties.message_id, None);
    assert_eq!(event.message.properties.timestamp, None);
}

#[test]
fn fields_are_found_by_name_and_by_pointer() {
    let fields = FieldMap {
        id: "/meta/ids/1".parse().unwrap(),
        body: "/data".parse().unwrap(),
        key: "customer id".parse().unwrap(),
        ..FieldMap::default()
    };
    let line = r#"{"meta":{"ids":["a","b"]},"data":{"x": 1},"customer id":4,"id":"no"}"#;
    let event = parse(line.as_bytes(), &fields).unwrap().into_event(&stream(), 1, noon());
    assert_eq!((event.id.as_str(), event.key.as_deref()), ("b", Some("4")));
    assert_eq!(event.message.body, r#"{"x":1}"#);
}

#[test]
fn the_last_of_two_members_of_one_name_counts() {
    assert_eq!(event(r#"{"id":"a","id":"b"}"#).id, "b");
    assert_eq!(event(r#"{"id":"a","\u0069d":"b"}"#).id, "b", "names are compared unescaped");
}

#[test]
fn every_problem_says_what_is_wrong_and_where() {
    check_problem("{\"a\":1", "EOF while parsing an object at column 6");
    check_problem("hello", "expected value at column 1");
    check_problem("[1]", "invalid type: sequence, expected a JSON object at column 0");
    check_problem("{} {}", "trailing characters at column 4");
    check_problem(b"{\"a\":\"\xff\"}", "it is not UTF-8 from byte 7");
    check_problem(r#"{"id":[1]}"#, "`id` is an object or array, not a string or number");
    check_problem(r#"{"headers":[]}"#, "`headers` is not an object");
    check_problem(r#"{"properties":{"colour":1}}"#, "`colour` is not an AMQP property");
    check_problem(r#"{"body":1,"body_base64":""}"#, "it has both `body` and `body_base64`");
    check_problem(r#"{"body_base64":7}"#, "`body_base64` is not a string");
    check_problem(
        r#"{"time":"yesterday"}"#,
        "`time` is `yesterday`, not a time (RFC 3339, or seconds, milliseconds or microseconds since 1970)",
    );
    let long = "x".repeat(64 * 1024 + 1);
    for field in ["id", "type", "key"] {
        let line = format!(r#"{{"{field}":"{long}"}}"#);
        check_problem(line, &format!("`{field}` has 65537 bytes, more than 65536"));
    }
    let numbers = vec!["1"; 1_500_000].join(",");
    check_problem(
        format!(r#"{{"headers":{{"all":[{numbers}]}}}}"#),
        "`headers` takes more than 32 MiB in memory",
    );
    let key = "k".repeat(256);
    check_problem(
        format!(r#"{{"routing_key":"{key}"}}"#),
        &format!(
            "`routing_key`: `{}…` has 256 bytes; AMQP allows 255 in a short string",
            &key[..40]
        ),
    );
}
