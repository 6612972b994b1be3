//! One order over all streams, whatever is read when, and wherever reading begins again.

use dacapo_event::Sequence;
use dacapo_filter::SelectionSpec;
use proptest::prelude::*;

use super::*;

const MEMORY: MemoryBudget = MemoryBudget::DEFAULT;

use crate::survey::Depth;
use crate::testing::{Archive, any_selection, any_streams, at, block_on, event, everything};

/// Reads everything after the positions.
async fn merged(
    archive: &Archive,
    spec: &SelectionSpec,
    positions: &Positions,
) -> (Vec<(StreamName, Sequence)>, u64) {
    let plan = archive.plan(spec.clone(), Depth::Index).await;
    let selection = Arc::new(Selection::compile(spec.clone()).unwrap());
    let store = Arc::clone(&archive.store);
    let mut merge = Merge::new(store, selection, plan.streams(positions), MEMORY);
    let (mut order, mut skipped) = (Vec::new(), 0);
    while let Some(batch) = merge.next().await.unwrap() {
        assert!(!batch.is_empty() && batch.len() <= MERGED_EVENTS_MAX);
        skipped += batch.iter().map(|selected| selected.skipped).sum::<u64>();
        order.extend(batch.into_iter().map(|selected| (selected.stream, selected.event.sequence)));
    }
    assert!(skipped <= merge.where_skipped());
    (order, merge.where_skipped())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_order_is_that_of_sorting_and_holds_wherever_it_is_taken_up(
        (streams, segment_events) in any_streams(5, 16),
        spec in any_selection(),
        starts in proptest::collection::vec(any::<prop::sample::Index>(), 4),
    ) {
        block_on(async {
            let archive = Archive::of(streams, segment_events).await;
            for spec in [&everything(), &spec] {
                let expected = archive.in_order(spec);
                let (order, skipped) = merged(&archive, spec, &Positions::new()).await;
                assert_eq!(order, expected, "{spec:?}");
                assert_eq!(skipped, archive.selected(spec).1, "{spec:?}");
                for start in &starts {
                    let start = start.index(expected.len() + 1);
                    let positions: Positions = expected[..start].iter().cloned().collect();
                    let (rest, _) = merged(&archive, spec, &positions).await;
                    assert_eq!(rest, expected[start..], "from {start}: {spec:?}");
                }
            }
        });
    }
}

#[tokio::test]
async fn history_comes_before_what_is_live_and_ties_go_by_name() {
    let of = |times: &[u64]| times.iter().map(|time| event(*time, at(*time))).collect::<Vec<_>>();
    // s0 is live, s1 was imported later, s2 has an event out of order.
    let archive =
        Archive::of(vec![of(&[100, 101, 103]), of(&[1, 2, 3]), of(&[2, 101, 5, 102])], 2).await;
    let (order, _) = merged(&archive, &everything(), &Positions::new()).await;
    let order: Vec<String> =
        order.iter().map(|(stream, sequence)| format!("{stream}:{sequence}")).collect();
    let expected = ["s1:1", "s1:2", "s2:1", "s1:3", "s0:1", "s0:2", "s2:2", "s2:3", "s2:4", "s0:3"];
    assert_eq!(order, expected);
}

#[tokio::test]
async fn a_stream_is_opened_only_when_it_is_reached() {
    let mut archive = Archive::new();
    archive.append("s0", vec![event(0, at(0)), event(1, at(1))]).await;
    let late = archive.append("s1", vec![event(2, at(100))]).await;
    let plan = archive.plan(everything(), Depth::Index).await;
    let selection = Arc::new(Selection::compile(everything()).unwrap());
    archive.store.delete(&late).await.unwrap();
    let mut merge =
        Merge::new(Arc::clone(&archive.store), selection, plan.streams(&Positions::new()), MEMORY);
    assert_eq!(merge.next().await.unwrap().map(|batch| batch.len()), Some(2));
    let error = merge.next().await.unwrap_err();
    assert!(matches!(error, EngineError::ArchiveChanged { .. }), "{error}");
}

#[tokio::test]
async fn many_streams_share_one_budget() {
    const STREAMS: u64 = 200;
    let mut archive = Archive::new();
    for stream in 0..STREAMS {
        let heavy = |n| {
            let mut event = event(n, at(n));
            event.message.body = vec![b'x'; 8 * 1024].into();
            event
        };
        archive.append(&format!("s{stream:03}"), (0..60).map(heavy).collect()).await;
    }
    let plan = archive.plan(everything(), Depth::Index).await;
    let selection = Arc::new(Selection::compile(everything()).unwrap());
    let mut merge =
        Merge::new(Arc::clone(&archive.store), selection, plan.streams(&Positions::new()), MEMORY);
    let (mut events, mut heaviest) = (0, 0);
    while let Some(batch) = merge.next().await.unwrap() {
        events += batch.len() as u64;
        let held = merge.cursors.iter().flat_map(|cursor| &cursor.batch);
        heaviest = heaviest.max(held.map(|found| found.event.weight() as u64).sum());
    }
    assert_eq!(events, STREAMS * 60);
    assert!(heaviest > 0 && heaviest <= 2 * MEMORY.reading(), "{heaviest}");
}
