//! An archiver that is killed loses nothing, wherever it was.

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::wait;

use super::hold::{Hold, HoldingProxy};
use super::{DEADLINE, Platform, Traffic, check_kept, ids, messages, witness};
use crate::services;

/// How often the archiver is killed while publishing goes on.
const KILLS: usize = 12;

#[test]
fn nothing_is_lost_however_often_the_archiver_is_killed() {
    let platform = Platform::new();
    let fast = ["--roll-age", "50ms"];
    let mut archiver = platform.start_archiver(&fast);
    let traffic = Traffic::start(&platform);
    for kill in 0..KILLS {
        let before = platform.dacapo.segments().len();
        // Each time at another point of taking, encoding, putting, committing and acking.
        match kill % 4 {
            0 => archiver.await_metric("unacked", 1),
            1 => {
                let put = || Ok((platform.dacapo.segments().len() > before).then_some(()));
                wait::until("a segment is put", DEADLINE, put).unwrap();
            }
            2 => drop(archiver.running.wait_for_line("a segment is durable", DEADLINE)),
            _ => archiver.await_metric("segments_total", 3),
        }
        archiver.kill();
        archiver = platform.start_archiver(&fast);
    }
    let published = traffic.stop();
    let done = || Ok((archiver.metric("lag_seconds") == Some(0.0)).then_some(()));
    wait::until("nothing is left to archive", DEADLINE, done).unwrap();
    archiver.stop();
    check_kept(&platform, &published);
}

/// Kills the archiver while a request to the store hangs at `hold`, then lets another finish.
#[track_caller]
fn check(hold: Hold, repeats: usize) {
    const EVENTS: usize = 25;
    let s3 = services::s3();
    let proxy = HoldingProxy::start(&s3.endpoint, hold);
    let mut platform = Platform::on(&services::amqp(), Dacapo::on_s3());
    platform.dacapo.set("AWS_ENDPOINT_URL", &proxy.endpoint());
    let archiver = platform.start_archiver(&["--roll-age", "9m", "--prefetch", "50"]);
    // The 25th delivery is half the prefetch, and finishes the segment.
    platform.publish(&messages(EVENTS));
    proxy.await_held(DEADLINE);
    assert_eq!(archiver.metric("events_total"), Some(0.0), "it is not durable for the archiver");
    archiver.kill();
    drop(proxy);
    let asked = serde_json::json!({
        "op": "declare_queue", "queue": platform.archive_queue, "passive": true,
    });
    let back = || {
        let answer = witness::raw_amqp(&services::amqp(), std::slice::from_ref(&asked))?;
        Ok((answer[0]["messages"] == EVENTS).then_some(()))
    };
    wait::until("all deliveries are back in the queue", DEADLINE, back).unwrap();

    platform.dacapo.set("AWS_ENDPOINT_URL", &s3.endpoint);
    let archiver = platform.start_archiver(&[]);
    archiver.await_metric("unacked", EVENTS);
    archiver.stop();
    let archived = check_kept(&platform, &ids(EVENTS));
    assert!(archived.values().all(|times| *times == 1 + repeats), "{hold:?}: {archived:?}");
}

#[test]
fn killed_before_a_put_everything_is_archived_once() {
    check(Hold::Request("/segments/"), 0);
}

#[test]
fn killed_after_a_put_its_segment_is_adopted_and_its_events_come_again() {
    check(Hold::Answer("/segments/"), 1);
}

#[test]
fn killed_after_the_commit_its_events_come_again() {
    check(Hold::Answer("/chain/"), 1);
}

#[test]
fn killed_before_the_ack_its_events_come_again() {
    check(Hold::Answer("/heads/"), 1);
}
