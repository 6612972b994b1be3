//! Whatever lies where a saved plan or a journal should be: no panic, bounded memory, and a plan
//! that is taken is the one that was saved.

#![cfg(test)]

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use dacapo_bus::broker::{Node, Queue, Setting, Topology};
use dacapo_engine::backfill::{self, Happened};
use dacapo_engine::blast::{Approval, ApprovedBy, BlastRadius, Reached, ReachedQueue};
use dacapo_engine::journal::{Counts, Journal, Phase};
use dacapo_engine::merge::Positions;
use dacapo_engine::plan::{Plan, PlannedSegment};
use dacapo_engine::plan_json;
use dacapo_engine::preflight::{
    Check, Facts, Finding, Load, Preflight, Severity, Unchecked, Wishes, check,
};
use dacapo_engine::rejects;
use dacapo_engine::request::{Request, Target, WINDOW_DEFAULT};
use dacapo_engine::survey::TargetFacts;
use dacapo_event::marking::Priority;
use dacapo_event::{Digest, Timestamp};
use dacapo_filter::{Binding, Selection, SelectionSpec, SequenceRange};
use dacapo_fuzz::Attack;
use dacapo_republish::{NackRetries, OnReject, Pace};
use serde_json::Value;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A plan of some kilobytes, and what serde holds of it on the way.
const MEMORY: usize = 8 * 1024 * 1024;

fn plan() -> Plan {
    let text = |text: &str| text.to_owned();
    Plan {
        request: Request {
            selection: SelectionSpec {
                from: Some(Timestamp::from_secs(1_700_000_000)),
                types: vec![text("order.placed")],
                ranges: vec![SequenceRange { stream: "shop".parse().unwrap(), after: 0, until: 3 }],
                bindings: vec![Binding { exchange: text("shop"), pattern: text("order.#") }],
                headers: vec![(text("tenant"), text("acme"))],
                where_: Some(text("body.total > 99")),
                ..SelectionSpec::default()
            },
            target: Target::Queue { queue: text("billing") },
            pace: Pace::default(),
            window: WINDOW_DEFAULT,
            priority: Priority::Keep,
        },
        archive: text("s3://bucket/shop"),
        segments: (1..=3)
            .map(|n| PlannedSegment {
                stream: "shop".parse().unwrap(),
                key: format!("segments/{n}.parquet").parse().unwrap(),
                size: n,
                digest: Digest::of(&n.to_le_bytes()),
                first: n,
                last: n,
                time_min: Timestamp::EPOCH,
            })
            .collect(),
        events: 3,
        exact: false,
        by_type: [(text("order.placed"), 3)].into(),
        by_type_exact: true,
        bytes: 100,
        bytes_read: 200,
        bytes_full_scan: 300,
        requests: 4,
        seconds: 0.25,
        first_time: Some(Timestamp::EPOCH),
        last_time: Some(Timestamp::EPOCH),
        times_exact: true,
        gaps: Vec::new(),
        exchanges: [text("shop")].into(),
        exchanges_exact: true,
        target: TargetFacts::default(),
        preflight: Preflight {
            wishes: Wishes { require_consumer: true, overrides: [Check::QueueTtl].into() },
            findings: vec![Finding {
                check: Check::QueueTtl,
                severity: Severity::Refusal,
                what: text("it drops"),
                next_step: text("take it away"),
                overridden: true,
            }],
            unchecked: vec![Unchecked { checks: Check::ALL.to_vec(), why: text("nobody asked") }],
        },
        blast_radius: Some(BlastRadius {
            asked_for: [text("billing")].into(),
            reached: Ok(Reached {
                queues: [(text("billing"), ReachedQueue::default())].into(),
                events: 3,
                ..Reached::default()
            }),
            approval: Some(Approval { hash: Digest::of(b"approved"), by: ApprovedBy::Hash }),
        }),
        made_at: Timestamp::EPOCH,
    }
}

/// A journal of one run, with a checkpoint.
fn journal() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (mut journal, _) = Journal::open(&path).unwrap();
    let positions = [("shop".parse().unwrap(), 17)].into();
    journal.began(Timestamp::EPOCH, OnReject::Stop, NackRetries::new(3).unwrap()).unwrap();
    journal.checkpoint(&Counts::default(), &positions).unwrap();
    journal.ended(Timestamp::EPOCH, Phase::Interrupted, &Counts::default(), &positions).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn plans_are_refused_or_are_what_was_saved() {
    let seed = plan_json::to_json(&plan()).to_string().into_bytes();
    assert_eq!(plan_json::from_json("plan.json", &seed).unwrap().hash(), plan().hash());
    Attack::new(HERE, "plan", MEMORY).seeds([seed]).run(|bytes| {
        if let Ok(plan) = plan_json::from_json("plan.json", bytes) {
            let again = plan_json::to_json(&plan).to_string();
            let again = plan_json::from_json("again", again.as_bytes()).unwrap();
            assert_eq!(again.hash(), plan.hash());
            use_it(&plan);
        }
    });
}

/// What a command does with a plan that it was given, as far as it needs no archive and no broker.
fn use_it(plan: &Plan) {
    let unknown = || Err("nobody asked".to_owned());
    let node = Node {
        runs: true,
        disk_free: Some(u64::MAX),
        disk_limit: Some(0),
        disk_alarm: Some(false),
        memory_alarm: Some(false),
        ..Node::default()
    };
    let queue = Queue {
        length_max: Some(Setting { value: 1, by: "a test".to_owned() }),
        bytes: Some(u64::MAX),
        ..Queue::default()
    };
    let queues = [("billing".to_owned(), queue)].into();
    let facts = Facts {
        exists: Some(true),
        depth: Some(u64::MAX),
        consumers: Some(0),
        denied: unknown(),
        missing: plan.exchanges.clone(),
        unasked: plan.exchanges.clone(),
        nodes: Ok(vec![node]),
        topology: Ok(Topology { queues, ..Topology::default() }),
    };
    for confirmed in [0, 1, u64::MAX] {
        let load = Load::of(plan, confirmed);
        assert!(load.events <= Load::of(plan, 0).events);
        drop(check(&load, &facts, plan.preflight.wishes.clone()));
    }
    drop(plan.streams(&[("shop".parse().unwrap(), u64::MAX)].into()));
    drop(Selection::compile(plan.request.selection.clone()));
}

#[test]
fn reject_files_are_refused_or_name_events() {
    /// Gives each line that is an object the checksum that it should have.
    fn mend(file: &mut Vec<u8>) {
        let lines = file.split(|byte| *byte == b'\n').map(|line| {
            let Ok(Value::Object(mut members)) = serde_json::from_slice(line) else {
                return line.to_vec();
            };
            members.remove("check");
            let unchecked = Value::Object(members.clone()).to_string();
            let check = format!("{:08x}", crc32fast::hash(unchecked.as_bytes()));
            members.insert("check".to_owned(), check.into());
            Value::Object(members).to_string().into_bytes()
        });
        *file = lines.collect::<Vec<_>>().join(&b'\n');
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rejects.jsonl");
    let read = AtomicU64::new(0);
    Attack::new(HERE, "rejects", MEMORY).mend(mend).slow(4).run(|bytes| {
        fs::write(&path, bytes).unwrap();
        if let Ok(again) = rejects::read(&path) {
            assert!(!again.places().is_empty());
            read.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(read.into_inner() > 20, "mutations come past the checksum");
}

/// Gives each line the checksum that it should have, where it has one.
fn mend(journal: &mut Vec<u8>) {
    let lines = journal.split(|byte| *byte == b'\n').map(|line| match line.get(9..) {
        Some(json) => [format!("{:08x} ", crc32fast::hash(json)).as_bytes(), json].concat(),
        None => line.to_vec(),
    });
    *journal = lines.collect::<Vec<_>>().join(&b'\n');
}

#[test]
fn journals_are_believed_up_to_what_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    Attack::new(HERE, "journal", MEMORY).seeds([journal()]).mend(mend).slow(4).run(|bytes| {
        fs::write(&path, bytes).unwrap();
        let seen = Journal::read(&path);
        if let (Ok(seen), Ok((_, standing))) = (seen, Journal::open(&path)) {
            // Compared as text: a count may be a number that is not one.
            assert_eq!(format!("{seen:?}"), format!("{standing:?}"));
            let left = fs::read(&path).unwrap();
            assert!(bytes.starts_with(&left), "only the torn end is cut off");
        }
    });
}

#[test]
fn journals_of_backfills_are_believed_up_to_what_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (mut journal, mut standing) = backfill::Journal::open(&path).unwrap();
    let at = Timestamp::from_secs(1_700_000_000);
    let ends: Positions = [("shop".parse().unwrap(), 7)].into();
    for happened in [
        Happened::Began(at),
        Happened::Prepared,
        Happened::Near(at, ends.clone()),
        Happened::FirstAnswered(ends.clone()),
        Happened::Bound,
        Happened::SecondAnswered(ends),
        Happened::Marked,
    ] {
        standing.apply(happened);
        journal.write(&standing).unwrap();
    }
    let seed = fs::read(&path).unwrap();
    Attack::new(HERE, "backfill", MEMORY).seeds([seed]).mend(mend).slow(4).run(|bytes| {
        fs::write(&path, bytes).unwrap();
        let seen = backfill::Journal::read(&path);
        if let (Ok(seen), Ok((_, standing))) = (seen, backfill::Journal::open(&path)) {
            assert_eq!(seen, standing);
            let left = fs::read(&path).unwrap();
            assert!(bytes.starts_with(&left), "only the torn end is cut off");
        }
    });
}
