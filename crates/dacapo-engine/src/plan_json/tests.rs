//! A saved plan is read back as it was, or refused with its path.

use std::num::{NonZeroU32, NonZeroU64};

use dacapo_event::{Digest, Timestamp};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::blast::{Approval, ApprovedBy, BlastRadius, Reached, ReachedQueue};
use crate::preflight::{Check, Finding, Preflight, Severity, Unchecked, Wishes};
use crate::survey::Depth;
use crate::testing::{Archive, any_selection, at, clock, event, everything};
use dacapo_bus::broker::Consumer;

const PATH: &str = "plans/plan.json";

fn any_target() -> impl Strategy<Value = Target> {
    let text = "[a-zé. ]{0,12}";
    prop_oneof![
        text.prop_map(|queue| Target::Queue { queue }),
        text.prop_map(|queue| Target::QueueViaDefaultExchange { queue }),
        (text, option::of(text))
            .prop_map(|(exchange, routing_key)| Target::Exchange { exchange, routing_key }),
        Just(Target::Original),
        vec(1_u8.., 1..20).prop_map(|path| Target::File { path: OsString::from_vec(path).into() }),
    ]
}

prop_compose! {
    fn any_pace()(
        rate in option::of(1_u32..),
        byte_rate in option::of(1_u64..),
        speed in option::of(Speed::MIN..Speed::MAX),
        ramp in option::of(0_u64..86_400_000_000_000),
        queue_depth_max in option::of(1_u64..),
    ) -> Pace {
        Pace {
            rate: rate.and_then(NonZeroU32::new),
            byte_rate: byte_rate.and_then(NonZeroU64::new),
            speed: speed.map(|factor| Speed::new(factor).unwrap()),
            ramp: ramp.map(Duration::from_nanos),
            queue_depth_max: queue_depth_max.and_then(NonZeroU64::new),
        }
    }
}

prop_compose! {
    fn any_request()(
        selection in any_selection(),
        where_stop in any::<bool>(),
        descriptor_set in option::of(vec(any::<u8>(), 0..40)),
        message_type in option::of("[a-z.]{1,10}"),
        target in any_target(),
        pace in any_pace(),
        window in 1_u32..,
        keep_priority in any::<bool>(),
    ) -> Request {
        Request {
            selection: SelectionSpec {
                where_errors: if where_stop { WhereErrors::Stop } else { WhereErrors::Skip },
                descriptor_set: descriptor_set.map(Into::into),
                message_type,
                ..selection
            },
            target,
            pace,
            window: NonZeroU32::new(window).unwrap(),
            priority: if keep_priority { Priority::Keep } else { Priority::Neutralise },
        }
    }
}

fn preflight(n: u64) -> Preflight {
    let finding = |check| Finding {
        check,
        severity: if n.is_multiple_of(2) { Severity::Refusal } else { Severity::Warning },
        what: "queue `é` drops".to_owned(),
        next_step: "take it away".to_owned(),
        overridden: n.is_multiple_of(3),
    };
    let why = "nobody asked".to_owned();
    Preflight {
        wishes: Wishes {
            require_consumer: n.is_multiple_of(2),
            overrides: Check::ALL.into_iter().take((n % 12) as usize).collect(),
        },
        findings: Check::ALL.into_iter().skip((n % 12) as usize).map(finding).collect(),
        unchecked: vec![Unchecked { checks: Check::ALL.to_vec(), why }],
    }
}

fn blast_radius(n: u64) -> Option<BlastRadius> {
    let consumer = Consumer {
        queue: "é".to_owned(),
        tag: "ctag".to_owned(),
        connection: n.is_multiple_of(2).then(|| "10.0.0.1:5000".to_owned()),
    };
    let queue = ReachedQueue {
        events: u64::MAX - n,
        certain: n,
        consumers: Some(1),
        consumed_by: vec![consumer],
    };
    let reached = Reached {
        queues: [("é".to_owned(), queue), (String::new(), ReachedQueue::default())].into(),
        events: u64::MAX,
        unrouted: n,
        undecided: [String::new()].into(),
        consumers_unknown: n.is_multiple_of(5).then(|| "no answer".to_owned()),
    };
    let by = if n.is_multiple_of(4) { ApprovedBy::Hash } else { ApprovedBy::Terminal };
    let blast = BlastRadius {
        asked_for: ["é".to_owned()].into(),
        reached: if n % 3 == 1 { Err("nobody asked".to_owned()) } else { Ok(reached) },
        approval: n.is_multiple_of(2).then(|| Approval { hash: Digest::of(b"x"), by }),
    };
    (!n.is_multiple_of(3)).then_some(blast)
}

/// A plan of a request with every other field filled in, without an archive.
fn plan_of(request: Request, n: u64) -> Plan {
    let segment = |n: u64| PlannedSegment {
        stream: "shop.v1".parse().unwrap(),
        key: format!("segments/{n}.parquet").parse().unwrap(),
        size: n,
        digest: Digest::of(&n.to_le_bytes()),
        first: 10 * n + 1,
        last: 10 * n + 10,
        time_min: at(n),
    };
    Plan {
        request,
        archive: "s3://bucket/é".to_owned(),
        segments: (0..n % 4).map(segment).collect(),
        events: n,
        exact: n.is_multiple_of(2),
        by_type: [("order.placed".to_owned(), n), (String::new(), 1)].into(),
        by_type_exact: n.is_multiple_of(3),
        bytes: u64::MAX - n,
        bytes_read: n,
        bytes_full_scan: n,
        requests: n,
        seconds: n as f64 / 7.0,
        first_time: (n > 0).then(|| at(n)),
        last_time: (n > 0).then_some(Timestamp::MAX),
        times_exact: n.is_multiple_of(2),
        gaps: vec![Gap { stream: "shop".parse().unwrap(), first: 1, last: n }],
        target: TargetFacts {
            exists: Some(true),
            depth: Some(n),
            consumers: None,
            warnings: vec!["an alternate exchange hides unroutable messages".to_owned()],
        },
        exchanges: ["shop".to_owned(), String::new()].into(),
        exchanges_exact: true,
        preflight: preflight(n),
        blast_radius: blast_radius(n),
        made_at: clock(),
    }
}

fn read(json: &Value) -> Result<Plan, String> {
    from_json(PATH, json.to_string().as_bytes()).map_err(|error| error.to_string())
}

proptest! {
    #[test]
    fn what_is_saved_is_read_back(request in any_request(), n in 0_u64..1_000_000) {
        let plan = plan_of(request, n);
        let json = to_json(&plan);
        prop_assert_eq!(&read(&json).unwrap(), &plan);
        let pretty = serde_json::to_vec_pretty(&json).unwrap();
        prop_assert_eq!(&from_json(PATH, &pretty).unwrap(), &plan);
        prop_assert_eq!(json["plan"].as_str(), Some(&*plan.hash().to_string()));
    }

    #[test]
    fn garbage_is_refused_with_its_path(bytes in vec(any::<u8>(), 0..200)) {
        let error = from_json(PATH, &bytes).unwrap_err().to_string();
        prop_assert!(error.starts_with("`plans/plan.json` is not readable: "), "{error}");
    }

    #[test]
    fn a_plan_with_a_piece_missing_never_panics(
        cut in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let plan = plan_of(crate::testing::request(everything()), 3);
        let text = to_json(&plan).to_string().into_bytes();
        let at = cut.index(text.len());
        prop_assert!(from_json(PATH, &text[..at]).is_err());
        let mut flipped = text;
        flipped[at] = byte;
        if let Ok(read) = from_json(PATH, &flipped) {
            // Only what is printed can differ, not what is done.
            prop_assert_eq!(read.hash(), plan.hash());
            prop_assert_eq!(read.segments, plan.segments);
            prop_assert_eq!(read.request, plan.request);
        }
    }
}

#[tokio::test]
async fn a_plan_of_an_archive_has_what_scripts_rely_on() {
    let events = (0..10).map(|n| event(n, at(n))).collect();
    let archive = Archive::of(vec![events], 4).await;
    let plan = archive.plan(everything(), Depth::Index).await;
    let json = to_json(&plan);
    let shown = json!({
        "events": json["events"],
        "exact": json["exact"],
        "by_type": json["by_type"],
        "segments": json["segments"],
        "first_time": json["first_time"],
        "last_time": json["last_time"],
    });
    let expected = json!({
        "events": 10,
        "exact": true,
        "by_type": {"mail.sent": 3, "order.paid": 3, "order.placed": 4},
        "segments": 3,
        "first_time": "2023-11-14T22:13:20Z",
        "last_time": "2023-11-14T22:13:29Z",
    });
    assert_eq!(shown, expected);
    for number in ["bytes", "requests", "seconds"] {
        assert!(json[number].is_number(), "{number}");
    }
    assert_eq!(read(&json), Ok(plan));
}

#[test]
fn a_newer_format_is_refused_whatever_else_it_has() {
    let mut json = to_json(&plan_of(crate::testing::request(everything()), 3));
    json["format"] = json!(2);
    let newer = "`plans/plan.json` is not readable: plan format 2 is newer than this dacapo knows \
                 (1); use a newer dacapo";
    assert_eq!(read(&json), Err(newer.to_owned()));
    assert_eq!(read(&json!({"format": 2, "steps": []})), Err(newer.to_owned()));
}

#[test]
fn an_edited_plan_is_refused() {
    let json = to_json(&plan_of(crate::testing::request(everything()), 3));
    let edited = "`plans/plan.json` is not readable: it was changed after it was saved (its hash \
                  differs); make a new plan";
    for (pointer, value) in [
        ("/request/target/queue", json!("r")),
        ("/request/window", json!(2)),
        ("/request/selection/types", json!(["other"])),
        ("/request/pace/rate", json!(5)),
        ("/reads/1/last_sequence", json!(1)),
        ("/reads/1/first_sequence", json!(9)),
        ("/reads/1/bytes", json!(9)),
        ("/reads/1/stream", json!("other")),
        ("/reads/1/segment", json!("segments/other.parquet")),
        ("/reads/1/time_min", json!("2020-01-01T00:00:00Z")),
        ("/reads/1/digest", json!(Digest::of(b"other").to_string())),
        ("/plan", json!(Digest::of(b"other").to_string())),
    ] {
        let mut changed = json.clone();
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[member] = value;
        assert_eq!(read(&changed), Err(edited.to_owned()), "{pointer}");
    }
    let mut fewer = json.clone();
    fewer["reads"].as_array_mut().unwrap().pop();
    assert_eq!(read(&fewer), Err(edited.to_owned()));
}

/// Whoever can compute a hash can write any numbers into a plan.
#[test]
fn sequences_that_cannot_be_are_refused() {
    let sound = plan_of(crate::testing::request(everything()), 3);
    let refused = |change: fn(&mut Vec<PlannedSegment>)| {
        let mut plan = sound.clone();
        change(&mut plan.segments);
        let error = read(&to_json(&plan)).unwrap_err();
        assert!(error.contains("cannot hold the sequences"), "{error}");
    };
    refused(|segments| segments[0].first = 0);
    refused(|segments| segments[0].first = segments[0].last + 1);
    refused(|segments| segments[1].first = segments[0].last);
    refused(|segments| segments.swap(0, 1));
    refused(|segments| segments[2] = segments[1].clone());
    let mut apart = sound.clone();
    apart.segments[0].stream = "other".parse().unwrap();
    apart.segments[0].last = u64::MAX;
    assert_eq!(read(&to_json(&apart)), Ok(apart));
}

#[test]
fn what_cannot_be_meant_is_named() {
    let json = to_json(&plan_of(crate::testing::request(everything()), 3));
    for (pointer, value, problem) in [
        ("/reads/0/segment", json!("../x"), "`../x`"),
        ("/made_at", json!("soon"), "`soon`"),
        ("/request/pace/ramp_seconds", json!(-1.0), "its ramp"),
        ("/request/pace/speed", json!(0.0), "speed"),
        ("/request/window", json!(0), "nonzero"),
        ("/request/selection/typos", json!([]), "typos"),
        ("/request/selection/descriptor_set_base64", json!("?"), "not base64"),
    ] {
        let mut changed = json.clone();
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[member] = value;
        let error = read(&changed).unwrap_err();
        assert!(error.starts_with("`plans/plan.json`") && error.contains(problem), "{error}");
    }
}
