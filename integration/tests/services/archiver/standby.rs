//! Two archivers on one queue, one active and one standing by, killed in turn: nothing is lost and
//! the stream stays one chain.

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::wait;
use serde_json::json;

use super::super::platform::Archiver;
use super::hold::{Hold, HoldingProxy};
use super::{DEADLINE, Platform, Traffic, check_kept, ids, messages};
use crate::services;

/// How often one of the two is killed while publishing goes on.
const KILLS: usize = 9;

const FAST: [&str; 2] = ["--roll-age", "50ms"];

/// Returns which of the two has had a delivery since it connected.
fn active(pair: &[Archiver; 2]) -> usize {
    let is_active = |archiver: &Archiver| archiver.metric("active") == Some(1.0);
    let one = || Ok(pair.iter().position(is_active));
    wait::until("one of two archivers is active", DEADLINE, one).unwrap()
}

/// Kills one of two archivers again and again, each time in another state, and replaces it.
#[track_caller]
fn check_killed_in_turn(dacapo: Dacapo) {
    let platform = Platform::on(&services::amqp(), dacapo);
    let mut pair = [platform.start_archiver(&FAST), platform.start_archiver(&FAST)];
    let traffic = Traffic::start(&platform);
    for kill in 0..KILLS {
        let now = active(&pair);
        match kill % 3 {
            0 => pair[now].await_metric("unacked", 1),
            1 => drop(pair[now].running.wait_for_line("a segment is durable", DEADLINE)),
            _ => pair[now].await_metric("segments_total", 3),
        }
        // Now and then it is the one that stands by; the other must not mind.
        let killed = if kill % 4 == 3 { 1 - now } else { now };
        let fresh = platform.start_archiver(&FAST);
        std::mem::replace(&mut pair[killed], fresh).kill();
    }
    let published = traffic.stop();
    let [one, other] = &pair;
    let durable = || {
        let idle = |archiver: &Archiver| archiver.metric("lag_seconds") == Some(0.0);
        Ok((idle(one) && idle(other)).then_some(()))
    };
    wait::until("nothing is left to archive", DEADLINE, durable).unwrap();
    for archiver in pair {
        archiver.stop();
    }
    check_kept(&platform, &published);
}

#[test]
fn two_archivers_killed_in_turn_lose_nothing_in_a_directory() {
    check_killed_in_turn(Dacapo::new());
}

#[test]
fn two_archivers_killed_in_turn_lose_nothing_on_s3() {
    check_killed_in_turn(Dacapo::on_s3());
}

/// Kills the active archiver while a request of its hangs; the one that stands by, which reaches
/// the store, goes on with the stream.
#[track_caller]
fn check_taken_over(hold: Hold, repeats: usize) {
    const EVENTS: usize = 25;
    let s3 = services::s3();
    let proxy = HoldingProxy::start(&s3.endpoint, hold);
    let mut platform = Platform::on(&services::amqp(), Dacapo::on_s3());
    platform.dacapo.set("AWS_ENDPOINT_URL", &proxy.endpoint());
    // The 25th delivery is half the prefetch, and finishes the segment.
    let flags = ["--roll-age", "9m", "--prefetch", "50"];
    let first = platform.start_archiver(&flags);
    platform.dacapo.set("AWS_ENDPOINT_URL", &s3.endpoint);
    let standby = platform.start_archiver(&flags);
    platform.publish(&messages(EVENTS));
    proxy.await_held(DEADLINE);
    assert_eq!(standby.metric("active"), Some(0.0));
    first.kill();
    // The held request is neither answered nor refused; the standby does not wait for it.
    standby.await_metric("events_total", EVENTS);
    drop(proxy);
    standby.stop();
    let archived = check_kept(&platform, &ids(EVENTS));
    assert!(archived.values().all(|times| *times == 1 + repeats), "{hold:?}: {archived:?}");
    let heads = platform.dacapo.json(["archive", "ls", "--json"])["streams"].take();
    assert_eq!(heads[0]["last_sequence"], json!(EVENTS * (1 + repeats)));
}

#[test]
fn a_standby_takes_over_from_one_killed_before_its_put() {
    check_taken_over(Hold::Request("/segments/"), 0);
}

#[test]
fn a_standby_takes_over_from_one_killed_after_its_put() {
    check_taken_over(Hold::Answer("/segments/"), 1);
}

#[test]
fn a_standby_takes_over_from_one_killed_after_its_commit() {
    check_taken_over(Hold::Answer("/chain/"), 1);
}
