//! The archiver as an operator runs it: what it keeps, what it tells, how it stops and is replaced.

mod crash;
pub(crate) mod hold;
mod standby;
mod watched;

use std::collections::BTreeMap;

use bytes::Bytes;
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform, Traffic, ids, message, messages};
use super::witness::{self, Queue};

/// Checks that everything published is in the archive, that the archive is sound and one stream,
/// and that nothing is left in the queue.
#[track_caller]
fn check_kept(platform: &Platform, published: &[String]) -> BTreeMap<String, usize> {
    let archived = platform.archived_ids();
    let lost: Vec<_> = published.iter().filter(|id| !archived.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), published.len());
    assert_eq!(archived.len(), published.len(), "there are others");
    assert_eq!(platform.verify()["streams"], 1);
    check_nothing_left(platform);
    archived
}

/// Checks that nothing waits in the archiver's queues; asked when no archiver runs.
#[track_caller]
fn check_nothing_left(platform: &Platform) {
    for queue in [platform.archive_queue.clone(), format!("{}.parked", platform.archive_queue)] {
        let asked = json!({ "op": "declare_queue", "queue": queue, "passive": true });
        // What an ended connection had not acked comes back a moment after it is gone.
        let empty = || {
            let answer = platform.ask(asked.clone());
            Ok((answer["consumers"] == 0).then_some(answer))
        };
        let answer = wait::until("nobody consumes", DEADLINE, empty).unwrap();
        assert_eq!(answer["messages"], 0, "{queue}");
    }
}

#[test]
fn a_termination_seals_what_was_taken_and_leaves_nothing_unacked() {
    let platform = Platform::new();
    // By itself it would not finish a segment.
    let archiver = platform.start_archiver(&["--roll-age", "9m"]);
    platform.publish(&messages(30));
    archiver.await_metric("unacked", 30);
    assert_eq!(archiver.metric("events_total"), Some(0.0), "nothing is durable yet");
    assert_eq!(platform.dacapo.segments().len(), 0);

    let totals = archiver.stop();
    assert_eq!((&totals["events"], &totals["segments"]), (&json!(30), &json!(1)));
    let archived = check_kept(&platform, &ids(30));
    assert!(archived.values().all(|times| *times == 1), "{archived:?}");
}

#[test]
fn segments_are_finished_by_age_by_size_and_before_the_prefetch_is_used_up() {
    let platform = Platform::new();
    for (more, least) in
        [(["--roll-age", "100ms"], 1), (["--prefetch", "10"], 4), (["--roll-bytes", "1"], 1)]
    {
        let before = platform.dacapo.segments().len();
        let archiver = platform.start_archiver(&more);
        platform.publish(&messages(20));
        archiver.await_metric("events_total", 20);
        assert!(platform.dacapo.segments().len() >= before + least, "{more:?}");
        archiver.stop();
    }
    assert_eq!(platform.verify()["events"], 60);
}

#[test]
fn a_hot_standby_takes_over_from_a_killed_archiver_and_continues_its_stream() {
    let platform = Platform::new();
    let active = platform.start_archiver(&["--roll-age", "200ms"]);
    let standby = platform.start_archiver(&["--roll-age", "200ms"]);
    let traffic = Traffic::start(&platform);
    active.await_metric("events_total", 50);
    assert_eq!(standby.metric("events_total"), Some(0.0), "only one archives at a time");
    assert_eq!(standby.metric("active"), Some(0.0));
    assert_eq!(standby.health(), (200, "ok\n".to_owned()), "a standby is healthy");
    active.kill();
    standby.await_metric("events_total", 50);
    let published = traffic.stop();
    standby.await_metric("lag_seconds", 0);
    let empty = || Ok((standby.metric("lag_seconds") == Some(0.0)).then_some(()));
    wait::until("nothing is left to archive", DEADLINE, empty).unwrap();
    standby.stop();
    check_kept(&platform, &published);
}

/// Publishes what nobody consumes, so that the broker sets it aside, then archives it.
#[test]
fn an_event_that_expires_before_it_is_archived_is_kept_as_it_was() {
    let platform = Platform::new();
    platform.start_archiver(&[]).stop();
    let expiring = |id: &str| {
        let mut message = message(id);
        message["properties"]["expiration"] = "1".into();
        message["properties"]["headers"] = json!([["tenant", "S", "acme"], ["count", "I", 3]]);
        message["routing_key"] = "order.expiring".into();
        message
    };
    platform.publish(&[expiring("e-000000"), message("e-000001"), expiring("e-000002")]);
    let parked = format!("{}.parked", platform.archive_queue);
    let asked = json!({ "op": "declare_queue", "queue": parked, "passive": true });
    // Only what is at the head of a quorum queue expires: one is parked, the other waits.
    let expired = || Ok((platform.ask(asked.clone())["messages"] != 0).then_some(()));
    wait::until("a message has expired", DEADLINE, expired).unwrap();

    let archiver = platform.start_archiver(&[]);
    archiver.await_metric("unacked", 3);
    assert!(archiver.metric("parked_total{reason=\"expired\"}").unwrap_or(0.0) >= 1.0);
    let totals = archiver.stop();
    assert_eq!(totals["events"], 3);
    assert!(totals["parked"].as_u64().unwrap() >= 1, "{totals}");
    check_kept(&platform, &ids(3));
    for event in platform.events().iter().filter(|event| event["id"] != "e-000001") {
        assert_eq!(event["exchange"], *platform.exchange);
        assert_eq!(event["routing_key"], "order.expiring");
        assert_eq!(event["properties"]["expiration"], "1");
        assert_eq!(event["headers"], json!({ "tenant": "acme", "count": 3 }));
    }
}

/// Returns the messages of the archive's only segment as the lossless column has them.
fn lossless(platform: &Platform) -> Vec<dacapo_event::Message> {
    let segments = platform.dacapo.segments();
    let [segment] = segments.as_slice() else { panic!("{segments:?}") };
    let rows = witness::read_segment(segment).unwrap()["duckdb"]["rows"].take();
    let bytes = |value: &Value| -> Vec<u8> {
        let hex = value["hex"].as_str().expect("bytes are told in hex");
        let octet = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
        (0..hex.len()).step_by(2).map(octet).collect()
    };
    let message = |row: &Value| {
        let text = |name: &str| row[name].as_str().expect("text");
        let (column, body) = (bytes(&row["properties"]), Bytes::from(bytes(&row["body"])));
        let short = |name| dacapo_event::ShortStr::try_from(text(name)).unwrap();
        dacapo_event::wire::decode_message(short("exchange"), short("routing_key"), &column, body)
    };
    rows.as_array().unwrap().iter().map(|row| message(row).unwrap()).collect()
}

#[test]
fn events_that_are_not_text_are_kept_as_they_were_and_stop_neither_archive_nor_replay_of_others() {
    let platform = Platform::new();
    let archiver = platform.start_archiver(&[]);
    let bytes = json!({ "hex": "636166e9" });
    let mut in_key = message("e-000001");
    in_key["routing_key"] = bytes.clone();
    let mut in_header = message("e-000002");
    in_header["properties"]["headers"] = json!([[bytes, "S", bytes], ["plain", "I", 1]]);
    let mut in_property = message("e-000003");
    in_property["properties"]["app_id"] = bytes.clone();
    platform.publish(&[message("e-000000"), in_key, in_header, in_property, message("e-000004")]);
    archiver.await_metric("unacked", 5);
    assert_eq!(archiver.metric("parked_total{reason=\"unreadable\"}"), Some(3.0));
    assert_eq!(archiver.stop()["events"], 5);
    check_kept(&platform, &ids(5));

    let cafe = &b"caf\xe9"[..];
    let messages = lossless(&platform);
    assert_eq!(messages[1].routing_key.as_bytes(), cafe);
    let headers: Vec<_> = messages[2].properties.headers.as_ref().unwrap().iter().collect();
    assert_eq!(headers[0].0.as_bytes(), cafe);
    let text = dacapo_event::FieldValue::LongString(Bytes::from_static(b"caf\xe9"));
    assert_eq!(*headers[0].1, text);
    assert_eq!(messages[3].properties.app_id.as_ref().unwrap().as_bytes(), cafe);

    // They are replayed as they were, too.
    let queue = Queue::new("text");
    let to_queue = ["replay", "--json", "--to-queue", queue.name()];
    assert_eq!(platform.dacapo.json(to_queue)["confirmed"], 5);
    let replayed = queue.take(5);
    assert_eq!(replayed[1]["routing_key"], bytes);
    let headers = replayed[2]["properties"]["headers"].as_array().unwrap();
    assert!(headers.contains(&json!([bytes, "S", bytes])), "{headers:?}");
    assert_eq!(replayed[3]["properties"]["app_id"], bytes);
}

#[test]
fn what_the_archiver_cannot_see_is_said_at_its_start() {
    let platform = Platform::new();
    let direct = super::services::unique("direct");
    let declare = json!({ "op": "declare_exchange", "exchange": direct, "type": "direct" });
    platform.ask(declare);
    let archiver = platform.start_archiver(&["--bind", &direct]);
    let (_, talk) = archiver.running.written();
    assert!(talk.contains("default exchange"), "{talk}");
    assert!(talk.lines().any(|line| line.contains("not seen") && line.contains(&direct)), "{talk}");
    archiver.stop();
    platform.ask(json!({ "op": "delete_exchange", "exchange": direct }));
}

#[test]
fn an_archiver_of_an_exchange_that_is_not_there_ends_and_names_it() {
    let platform = Platform::new();
    let missing = super::services::unique("nowhere");
    let run = ["archive", "run", "--bind", &missing, "--queue", &platform.archive_queue];
    let output = platform.dacapo.run(run);
    output.check(5);
    assert!(output.stderr.contains(&format!("exchange `{missing}` does not exist")), "{output:?}");
    let asked = json!({ "op": "declare_queue", "queue": platform.archive_queue, "passive": true });
    let answer = witness::raw_amqp(&super::services::amqp(), &[asked]).unwrap();
    assert!(answer[0]["error"].as_str().unwrap().starts_with("404"), "it left a queue behind");
}
