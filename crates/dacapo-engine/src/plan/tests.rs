//! What a plan says follows from the facts and the request, and from nothing else.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use dacapo_archive::store::metered::Metered;
use dacapo_event::Event;
use dacapo_filter::SelectionSpec;
use dacapo_republish::{Pace, Speed};
use proptest::prelude::*;

use super::*;
use crate::merge::Positions;
use crate::request::Target;
use crate::survey::Depth;
use crate::testing::{
    Archive, any_selection, any_streams, at, block_on, clock, event, everything, name, request,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_called_exact_is_what_looking_at_every_event_finds(
        (streams, segment_events) in any_streams(3, 30),
        specs in proptest::collection::vec(any_selection(), 4),
    ) {
        block_on(async {
            let archive = Archive::of(streams, segment_events).await;
            for spec in specs {
                let selected: Vec<_> = archive.selected(&spec).0.into_values().flatten().collect();
                let events = selected.len() as u64;
                let mut by_type: BTreeMap<String, u64> = BTreeMap::new();
                for event in &selected {
                    *by_type.entry(event.kind.clone()).or_default() += 1;
                }
                let times = selected.iter().map(|event| event.time);
                let (first, last) = (times.clone().min(), times.max());
                for depth in [Depth::Index, Depth::Exact] {
                    let survey = archive.survey(spec.clone(), depth).await.unwrap();
                    let at_most: u64 = survey.segments.iter().map(|surveyed| surveyed.at_most).sum();
                    assert!(at_most >= events, "{spec:?}");
                    let plan = plan(request(spec.clone()), survey.clone());
                    assert_eq!(plan, super::plan(request(spec.clone()), survey));
                    assert!(plan.exact || depth == Depth::Index, "{spec:?}");
                    assert!(!plan.exact || plan.events == events, "{depth:?} {spec:?}");
                    assert!(plan.by_type_exact || depth == Depth::Index, "{spec:?}");
                    assert!(!plan.by_type_exact || plan.by_type == by_type, "{depth:?} {spec:?}");
                    let times_as_read = (plan.first_time, plan.last_time) == (first, last);
                    assert!(plan.times_exact || depth == Depth::Index, "{spec:?}");
                    assert!(!plan.times_exact || times_as_read, "{depth:?} {spec:?}");
                    if events > 0 {
                        assert!(plan.first_time <= first && plan.last_time >= last, "{spec:?}");
                    }
                }
            }
        });
    }
}

#[tokio::test]
async fn the_hash_says_what_is_done_and_not_when_it_was_planned() {
    let events = |times: std::ops::Range<u64>| times.map(|n| event(n, at(n))).collect::<Vec<_>>();
    let mut archive = Archive::of(vec![events(0..10), events(0..10)], 4).await;
    let survey = archive.survey(everything(), Depth::Index).await.unwrap();
    let plan_of = |request: Request, survey: &Survey| plan(request, survey.clone());
    let one = plan_of(request(everything()), &survey);

    let target = TargetFacts { depth: Some(7), ..TargetFacts::default() };
    let later = Survey { now: clock().plus(Duration::from_secs(60)), target, ..survey.clone() };
    assert_eq!(plan_of(request(everything()), &later).hash(), one.hash());

    let mut hashes = BTreeSet::from([one.hash()]);
    let mut check_new = |what: &str, plan: Plan| assert!(hashes.insert(plan.hash()), "{what}");
    let narrower = SelectionSpec { to: Some(at(1_000)), ..everything() };
    check_new("selection", plan_of(request(narrower), &survey));
    let elsewhere = Target::Queue { queue: "r".to_owned() };
    check_new("target", plan_of(Request { target: elsewhere, ..request(everything()) }, &survey));
    let window = NonZeroU32::new(1).unwrap();
    check_new("window", plan_of(Request { window, ..request(everything()) }, &survey));
    for change in [
        (|segment: &mut PlannedSegment| segment.last -= 1) as fn(&mut PlannedSegment),
        |segment| segment.first += 1,
        |segment| segment.size += 1,
        |segment| segment.stream = name("s9"),
        |segment| segment.digest = Digest::of(b"another"),
        |segment| segment.time_min = at(77),
        |segment| segment.key = "elsewhere".parse().unwrap(),
    ] {
        let mut changed = one.clone();
        change(&mut changed.segments[1]);
        check_new("segment", changed);
    }
    archive.append("s1", events(0..1)).await;
    let grown = archive.survey(everything(), Depth::Index).await.unwrap();
    check_new("segments", plan_of(request(everything()), &grown));
}

#[tokio::test]
async fn what_is_missing_up_to_a_streams_head_is_a_gap_of_a_plan_that_reads_the_stream() {
    let archive = Archive::of(vec![(0..6).map(|n| event(n, at(n))).collect()], 3).await;
    let mut plan = archive.plan(everything(), Depth::Index).await;
    let gap = |stream| Gap { stream: name(stream), first: 7, last: 9 };
    for _ in 0..2 {
        plan.add_gaps(&[gap("s0"), gap("s1")]);
    }
    assert_eq!(plan.gaps, [gap("s0")]);
}

#[tokio::test]
async fn gaps_are_those_of_streams_that_are_read() {
    let events = |kind: &str| {
        let of_kind = |n| Event { kind: kind.to_owned(), ..event(n, at(n)) };
        (0..9).map(of_kind).collect::<Vec<_>>()
    };
    let mut archive = Archive::of(vec![events("a"), events("b")], 3).await;
    // The second segment of both streams, and the first of s1 as well.
    archive.summaries.retain(|s| s.first != 4 && !(s.stream == name("s1") && s.first == 1));
    let gaps = async |types: &[&str]| {
        let types = types.iter().map(|kind| (*kind).to_owned()).collect();
        let plan = archive.plan(SelectionSpec { types, ..everything() }, Depth::Index).await;
        let text = |gap: &Gap| format!("{} {}-{}", gap.stream, gap.first, gap.last);
        plan.gaps.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(gaps(&["a"]).await, ["s0 4-6"]);
    assert_eq!(gaps(&["b"]).await, ["s1 1-6"]);
    assert_eq!(gaps(&["a", "b"]).await, ["s0 4-6", "s1 1-6"]);
    assert!(gaps(&["c"]).await.is_empty());
}

#[tokio::test]
async fn seconds_are_those_of_the_slowest_limit() {
    // 1,000 events of 100 bytes over 999 s.
    let sized = |n| {
        let mut event = event(n, at(n));
        event.message.body = vec![b'x'; 100].into();
        event
    };
    let archive = Archive::of(vec![(0..1_000).map(sized).collect()], 1_000).await;
    let survey = archive.survey(everything(), Depth::Index).await.unwrap();
    let check = |pace: Pace, expected: f64| {
        let plan = plan(Request { pace, ..request(everything()) }, survey.clone());
        assert!((plan.seconds - expected).abs() < 1e-6, "{pace:?}: {}", plan.seconds);
    };
    let free = Pace::default();
    let rate = |rate| NonZeroU32::new(rate);
    check(free, 0.1);
    check(Pace { rate: rate(50), ..free }, 20.0);
    check(Pace { byte_rate: NonZeroU64::new(1_000), ..free }, 100.0);
    check(Pace { speed: Some(Speed::new(9.0).unwrap()), ..free }, 111.0);
    check(Pace { rate: rate(50), byte_rate: NonZeroU64::new(1_000), ..free }, 100.0);
    check(Pace { rate: rate(5), speed: Some(Speed::new(9.0).unwrap()), ..free }, 200.0);
    let ramp = |seconds| Some(Duration::from_secs(seconds));
    // While it rises, half as many go as after it.
    check(Pace { rate: rate(50), ramp: ramp(10), ..free }, 25.0);
    check(Pace { byte_rate: NonZeroU64::new(1_000), ramp: ramp(10), ..free }, 105.0);
    // 20 s at the full rate; after 40 s of a ramp of 40 s half of it, which is all, is done.
    check(Pace { rate: rate(50), ramp: ramp(40), ..free }, 40.0);
    check(Pace { rate: rate(50), ramp: ramp(1_000), ..free }, 200.0);
    check(Pace { ramp: ramp(10), ..free }, 0.1);
}

#[tokio::test]
async fn first_and_last_lie_within_the_range_asked_for() {
    let archive = Archive::of(vec![(0..100).map(|n| event(n, at(n))).collect()], 50).await;
    let times = async |from, to| {
        let spec = SelectionSpec { from, to, ..everything() };
        let plan = archive.plan(spec, Depth::Index).await;
        (plan.first_time, plan.last_time)
    };
    assert_eq!(times(None, None).await, (Some(at(0)), Some(at(99))));
    assert_eq!(times(Some(at(10)), None).await, (Some(at(10)), Some(at(99))));
    assert_eq!(times(Some(at(10)), Some(at(20))).await, (Some(at(10)), Some(at(20))));
    assert_eq!(times(Some(at(60)), Some(at(2_000))).await, (Some(at(60)), Some(at(99))));
    assert_eq!(times(Some(at(500)), None).await, (None, None));
}

/// Every segment of a range was read for the times of its first and last event, although footers had
/// the counts.
#[tokio::test]
async fn of_a_range_and_a_type_only_the_ends_are_read_however_many_segments_lie_between() {
    let mut archive = Archive::of(vec![(0..1_000).map(|n| event(n, at(n))).collect()], 20).await;
    let metered = Arc::new(Metered::new(Arc::clone(&archive.store)));
    archive.store = Arc::<Metered>::clone(&metered);
    let kind = event(0, at(0)).kind;
    let spec =
        SelectionSpec { from: Some(at(110)), to: Some(at(890)), types: vec![kind], ..everything() };
    let plan = archive.plan(spec.clone(), Depth::Exact).await;
    assert!(plan.exact && plan.by_type_exact && plan.times_exact, "{plan:?}");
    let selected: Vec<_> = archive.selected(&spec).0.into_values().flatten().collect();
    assert_eq!(plan.events, selected.len() as u64);
    assert!(plan.segments.len() >= 40, "{}", plan.segments.len());
    // Small segments are read by one request each.
    assert_eq!(metered.totals().requests, 2);
}

#[tokio::test]
async fn a_full_scan_counts_what_the_selection_does_not_read() {
    let archive = Archive::of(vec![(0..100).map(|n| event(n, at(n))).collect()], 10).await;
    let size: u64 = archive.summaries.iter().map(|summary| summary.size).sum();
    let spec = SelectionSpec { from: Some(at(95)), ..everything() };
    let plan = archive.plan(spec, Depth::Index).await;
    assert_eq!((plan.segments.len(), plan.bytes_full_scan), (1, size));
    assert!(plan.bytes_read < size / 5, "{}", plan.bytes_read);
}

#[tokio::test]
async fn streams_begin_after_their_positions() {
    let events = || (0..9).map(|n| event(n, at(n))).collect::<Vec<_>>();
    let archive = Archive::of(vec![events(), events()], 3).await;
    let plan = archive.plan(everything(), Depth::Index).await;
    let positions: Positions = [(name("s0"), 3), (name("s1"), 9)].into();
    let streams = plan.streams(&positions);
    let [only] = streams.as_slice() else { panic!("{streams:?}") };
    assert_eq!((&only.name, only.after, only.segments.len()), (&name("s0"), 3, 2));
    assert_eq!(only.time_min, at(3));
}
