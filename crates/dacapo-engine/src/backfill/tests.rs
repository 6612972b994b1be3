//! The decisions of a backfill, against a model of a broker and an archive in which it is killed at
//! every step; its journal; its description.

use std::num::NonZeroU32;
use std::time::Duration;

use dacapo_event::attributes::AttributeRules;
use dacapo_event::marking::Priority;
use dacapo_filter::{Binding, SelectionSpec};
use dacapo_republish::Pace;
use tempfile::tempdir;

use super::*;
use crate::EngineError;
use crate::preflight::{Check, Wishes};
use crate::request::{Request, Target, WINDOW_DEFAULT};
use crate::state::ReplayId;
use crate::testing::{at, name};

mod forwarding;
mod model;

pub(super) fn description() -> Description {
    let binding = Binding { exchange: "shop".to_owned(), pattern: "order.#".to_owned() };
    Description {
        request: Request {
            selection: SelectionSpec {
                from: Some(at(5)),
                bindings: vec![binding],
                ..SelectionSpec::default()
            },
            target: Target::Queue { queue: "loyalty".to_owned() },
            pace: Pace { rate: NonZeroU32::new(700), ..Pace::default() },
            window: WINDOW_DEFAULT,
            priority: Priority::Neutralise,
        },
        bindings: vec![Bound { exchange: "shop".to_owned(), key: "order.#".to_owned() }],
        archiver_queues: vec!["dacapo.archive".to_owned()],
        behind_max: Duration::from_secs(60),
        margin: Duration::from_secs(7),
        accept_gaps: true,
        rules: AttributeRules::default(),
        wishes: Wishes { require_consumer: true, overrides: [Check::QueueTtl].into() },
        archive: "s3://events/production".to_owned(),
        vhost: Some("shop".to_owned()),
        cluster: Some("rabbit@one".to_owned()),
        unchecked: vec!["nobody looked".to_owned()],
        made_at: at(9),
    }
}

pub(super) fn id() -> BackfillId {
    BackfillId::new(at(1), "loyalty", 7)
}

#[test]
fn what_was_asked_is_found_again_and_one_process_works_on_it() {
    let dir = tempdir().unwrap();
    let backfills = Backfills::new(dir.path());
    assert_eq!(backfills.list().unwrap(), []);
    let locked = backfills.create(id(), &description()).unwrap();
    assert_eq!(backfills.description(&id()).unwrap(), description());
    assert_eq!(backfills.list().unwrap(), [id()]);
    assert_eq!(backfills.find(&id().as_str()[..9]).unwrap(), id());
    assert!(matches!(backfills.find("x"), Err(EngineError::NoSuchBackfill { .. })));
    assert!(matches!(backfills.lock(id()), Err(EngineError::BackfillLocked { .. })));
    assert!(backfills.holder(&id()).unwrap().is_some());
    let changed = Description { accept_gaps: false, ..description() };
    backfills.write_description(&locked, &changed).unwrap();
    assert_eq!(backfills.description(&id()).unwrap(), changed);
    drop(locked);
    assert!(backfills.holder(&id()).unwrap().is_none());
}

#[test]
fn a_description_of_a_newer_format_is_left_to_a_newer_dacapo() {
    let mut json = description::to_json(&description());
    json["format"] = 2.into();
    let error = description::from_json("b.json", json.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("use a newer dacapo"), "{error}");
    for broken in ["", "{}", r#"{"format": 1}"#] {
        assert!(description::from_json("b.json", broken.as_bytes()).is_err(), "{broken}");
    }
}

fn positions(pairs: &[(&str, u64)]) -> crate::merge::Positions {
    pairs.iter().map(|(stream, at)| (name(stream), *at)).collect()
}

/// A standing in which everything says something.
fn full(stage: Stage) -> Standing {
    let round = Round {
        number: 3,
        replay: ReplayId::new(at(3), &Digest::of(b"x"), 1),
        surveyed_at: at(4),
        until: positions(&[("a", 9), ("b", 2)]),
        is_last: true,
    };
    let history = Played { events: 1, bytes: 2, possible_repeats: 3, reordered: 4 };
    Standing {
        stage,
        began_at: Some(at(1)),
        runs: 2,
        positions: positions(&[("a", 7)]),
        played_to: Some(at(2)),
        rounds: 3,
        round: Some(round),
        attempt: 1,
        asked_at: Some(at(5)),
        low: positions(&[("a", 8)]),
        high: positions(&[("a", 9)]),
        ends: Some(positions(&[("a", 8), ("b", 2)])),
        may_expire: true,
        past: Past::Opened,
        counts: Counts {
            history,
            forwarded: 5,
            forwarded_bytes: 6,
            dropped: 7,
            replays: 8,
            between_barriers: 9,
            not_remembered: 10,
            passed_again: 11,
            live_as_well: 12,
            reordered: 13,
            came_live: 14,
        },
    }
}

#[tokio::test]
async fn the_last_whole_line_of_a_journal_says_how_it_stands() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("journal");
    assert_eq!(Journal::read(&path).unwrap(), Standing::default());
    let (mut journal, _) = Journal::open(&path).unwrap();
    for stage in Stage::ALL {
        journal.write(&full(stage)).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), full(stage));
    }
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let (mut journal, standing) = Journal::open(&path).unwrap();
    assert_eq!(standing, full(Stage::Completed));
    journal.checkpoint(&full(Stage::Held)).unwrap();
    assert_eq!(Journal::read(&path).unwrap(), full(Stage::Held));
}

#[test]
fn an_archiver_that_answers_late_does_not_begin_the_holding() {
    let facts = |seconds| Facts { now: at(seconds), ends: positions(&[("a", 5)]), salt: 0 };
    let mut standing = Standing::default();
    standing.apply(Happened::Prepared);
    standing.apply(Happened::Near(at(0), positions(&[("a", 5)])));
    standing.apply(Happened::FirstAnswered(positions(&[("a", 6)])));
    let step =
        |standing: &Standing, seconds| next(&id(), &description(), standing, &facts(seconds));
    assert_eq!(step(&standing, 120), Step::Bind);
    assert_eq!(step(&standing, 121), Step::Release);
    standing.apply(Happened::Stale);
    let Step::Note(Happened::RoundPlanned(round)) = step(&standing, 121) else {
        panic!("a round is planned")
    };
    assert!(!round.is_last);
}

#[test]
fn the_last_round_waits_for_an_index_that_is_behind_the_archivers() {
    let mut standing = Standing { stage: Stage::Closing, ..Standing::default() };
    standing.high = positions(&[("a", 6)]);
    let facts = |a, b| Facts { now: at(1), ends: positions(&[("a", a), ("b", b)]), salt: 0 };
    let step = |a, b| next(&id(), &description(), &standing, &facts(a, b));
    assert_eq!(step(5, 3), Step::AwaitArchive);
    let Step::Note(Happened::RoundPlanned(round)) = step(9, 3) else {
        panic!("a round is planned")
    };
    assert_eq!((round.is_last, round.until), (true, positions(&[("a", 6), ("b", 3)])));
}

/// What is archived after the mark is held after it.
#[test]
fn the_last_round_has_nothing_that_came_after_the_mark() {
    let mut standing = Standing { stage: Stage::SecondBarrier, ..Standing::default() };
    let facts = |b| Facts { now: at(1), ends: positions(&[("a", 9), ("b", b)]), salt: 0 };
    let step = |standing: &Standing, b| next(&id(), &description(), standing, &facts(b));
    standing.apply(Happened::SecondAnswered(positions(&[("a", 6)])));
    assert_eq!(step(&standing, 3), Step::Ask(Barrier::Parked));
    standing.apply(Happened::ParkedAnswered(positions(&[("a", 8)])));
    assert!(standing.needs_ends());
    let Step::Note(surveyed) = step(&standing, 3) else { panic!("it is noted") };
    standing.apply(surveyed);
    assert_eq!(step(&standing, 4), Step::Mark);
    standing.apply(Happened::Marked);
    let Step::Note(Happened::RoundPlanned(round)) = step(&standing, 5) else {
        panic!("a round is planned")
    };
    assert_eq!((round.is_last, round.until), (true, positions(&[("a", 8), ("b", 3)])));
}

#[test]
fn ids_and_names_are_what_a_broker_and_a_store_take() {
    let id = id();
    let barrier = id.barrier(12, Barrier::Second, 3).to_string();
    assert!(barrier.starts_with("backfill-2023") && barrier.ends_with("-12.2-3"), "{barrier}");
    assert!(id.holding_queue("loyalty").starts_with("loyalty.holding."));
    assert!(id.exchange().starts_with("dacapo.replay."));
}
