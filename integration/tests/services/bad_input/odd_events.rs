//! Events at the edges: bodies of nothing and of 16 MiB, no attributes at all, long and foreign
//! routing keys, one id twice. None is refused, and all come back as they were.

use std::fs;

use dacapo_integration::campaign::schedule::Dice;
use dacapo_integration::dacapo::Dacapo;
use serde_json::{Value, json};

use super::super::fixtures::{import, ndjson, raw};

/// The largest body that is promised.
const LARGE: usize = 16 * 1024 * 1024;

/// Returns bytes that do not compress and are not text.
fn noise(size: usize) -> Vec<u8> {
    let mut dice = Dice::new(0);
    let mut bytes: Vec<u8> =
        (0..size.div_ceil(8)).flat_map(|_| dice.roll().to_le_bytes()).collect();
    bytes.truncate(size);
    bytes
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Returns the one event with this id, as `events --json` shows it.
#[track_caller]
fn shown(dacapo: &Dacapo, id: &str) -> Value {
    let output = dacapo.run(["events", "--json", "--id", id]);
    output.check(0);
    let mut events = output.ndjson();
    assert_eq!(events.len(), 1, "{events:?}");
    events.swap_remove(0)
}

#[test]
fn bodies_of_nothing_and_of_16_mib_come_back_as_they_were() {
    let dacapo = Dacapo::new();
    let large = noise(LARGE);
    let events = [
        json!({ "id": "none", "time": "2026-03-01T00:00:00Z" }),
        json!({ "id": "empty", "time": "2026-03-01T00:00:00Z", "body": "" }),
        json!({ "id": "large", "time": "2026-03-01T00:00:00Z", "body_base64": base64(&large) }),
        json!({ "id": "after", "time": "2026-03-01T00:00:00Z", "body": "small" }),
    ];
    let imported = import(&dacapo, "bodies", &ndjson(events), &[]);
    assert_eq!(imported["events"], 4);
    assert_eq!(raw(&dacapo, "none"), b"");
    assert_eq!(raw(&dacapo, "empty"), b"");
    assert!(raw(&dacapo, "large") == large, "the large body changed");
    assert_eq!(raw(&dacapo, "after"), b"small");
    dacapo.run(["archive", "verify"]).check(0);

    let receipt = dacapo.json(["replay", "--to-file", "out.ndjson", "--json"]);
    assert_eq!(receipt["confirmed"], 4);
    let written = fs::read_to_string(dacapo.folder().join("out.ndjson")).unwrap();
    let bodies: Vec<Value> =
        written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(bodies[1]["body"], "");
    assert_eq!(bodies[2]["body_base64"], base64(&large));
}

#[test]
fn an_event_of_nothing_gets_an_id_of_its_own() {
    let dacapo = Dacapo::new();
    let events =
        [json!({}), json!({ "id": null, "type": "", "key": null }), json!({ "body": "x" })];
    import(&dacapo, "bare", &ndjson(events), &[]);
    for (sequence, body) in [(1, ""), (2, ""), (3, "x")] {
        let id = format!("bare:{sequence}");
        let event = shown(&dacapo, &id);
        assert_eq!(event["type"], "", "{event}");
        assert_eq!(event["key"], Value::Null, "{event}");
        assert_eq!(event["time"], event["archived_at"], "{event}");
        assert_eq!(raw(&dacapo, &id), body.as_bytes());
    }
}

#[test]
fn routing_keys_of_255_bytes_and_of_any_alphabet_are_kept_and_selected_by() {
    let dacapo = Dacapo::new();
    let longest = format!("{}é", "k".repeat(253));
    assert_eq!(longest.len(), 255);
    let keys =
        [longest.as_str(), "заказы.создан", "注文.作成", "a b.c", "", "..", "orders.naïve.💶"];
    let events = keys.iter().enumerate().map(|(n, key)| {
        json!({ "id": format!("e-{n}"), "time": "2026-03-01T00:00:00Z", "routing_key": key, "exchange": key })
    });
    import(&dacapo, "keys", &ndjson(events), &[]);
    for (n, key) in keys.iter().enumerate() {
        let output = dacapo.run(["events", "--json", "--routing-key", key]);
        output.check(0);
        let events = output.ndjson();
        assert_eq!(events.len(), 1, "{key}: {events:?}");
        assert_eq!(
            (&events[0]["id"], &events[0]["routing_key"]),
            (&json!(format!("e-{n}")), &json!(key))
        );
        let by_exchange = dacapo.run(["events", "--json", "--exchange", key]);
        assert_eq!(by_exchange.ndjson(), events, "{key}");
    }
    let wild = dacapo.run(["events", "--json", "--routing-key", "*.*.*"]);
    let wild: Vec<Value> = wild.ndjson().iter().map(|event| event["id"].clone()).collect();
    assert_eq!(wild, [json!("e-5"), json!("e-6")]);
    // A type that nobody gave is the routing key.
    assert_eq!(shown(&dacapo, "e-1")["type"], "заказы.создан");
}

#[test]
fn two_events_with_one_id_are_two_events() {
    let dacapo = Dacapo::new();
    let one = json!({ "id": "twin", "time": "2026-03-01T00:00:00Z", "body": "first" });
    let other = json!({ "id": "twin", "time": "2026-03-01T00:00:00Z", "body": "second" });
    import(&dacapo, "twins", &ndjson([one, other]), &[]);
    let output = dacapo.run(["events", "--json", "--id", "twin"]);
    let bodies: Vec<Value> = output.ndjson().iter().map(|event| event["body"].clone()).collect();
    assert_eq!(bodies, [json!("first"), json!("second")]);
    let receipt = dacapo.json(["replay", "--to-file", "out.ndjson", "--json", "--id", "twin"]);
    assert_eq!((&receipt["selected"], &receipt["confirmed"]), (&json!(2), &json!(2)));
}

#[test]
fn headers_of_every_json_kind_are_kept() {
    let dacapo = Dacapo::new();
    let headers = json!({
        "text": "naïve", "whole": -3, "large": 9_007_199_254_740_993_i64, "part": 1.5, "yes": true,
        "nothing": null, "list": [1, "two", [3]], "table": { "deep": { "deeper": "still" } },
    });
    let event = json!({ "id": "h", "time": "2026-03-01T00:00:00Z", "headers": headers });
    import(&dacapo, "headers", &ndjson([event]), &[]);
    assert_eq!(shown(&dacapo, "h")["headers"], headers);
    for (header, found) in [("text=naïve", 1), ("whole=-3", 1), ("text=naive", 0), ("none=x", 0)] {
        let output = dacapo.run(["events", "--json", "--header", header]);
        assert_eq!(output.ndjson().len(), found, "{header}");
    }
}
