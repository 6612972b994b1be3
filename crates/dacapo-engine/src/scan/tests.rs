//! A scan finds what looking at every event finds, and reads little of what it does not need.

use bytes::Bytes;
use dacapo_archive::store::metered::Metered;
use dacapo_event::StreamName;
use dacapo_filter::SelectionSpec;
use proptest::prelude::*;

use super::*;
use crate::testing::{Archive, any_selection, any_streams, at, block_on, event, everything, name};

/// Several batches in most segments.
const BATCH_BYTES: u64 = 4 * 1024;

fn wanted(summary: &dacapo_archive::SegmentSummary) -> SegmentToRead {
    SegmentToRead { key: summary.key.clone(), size: summary.size, digest: summary.digest }
}

fn compiled(spec: &SelectionSpec) -> Arc<Selection> {
    Arc::new(Selection::compile(spec.clone()).unwrap())
}

/// Scans all segments of a stream after a sequence; returns the events and how many were left out.
async fn scanned(
    archive: &Archive,
    stream: &StreamName,
    spec: &SelectionSpec,
    after: Sequence,
) -> Result<(Vec<Event>, u64), EngineError> {
    let (mut events, mut skipped) = (Vec::new(), 0);
    for summary in archive.summaries.iter().filter(|summary| summary.stream == *stream) {
        let store = Arc::clone(&archive.store);
        let mut scan =
            Scan::open(store, &wanted(summary), compiled(spec), after, BATCH_BYTES).await?;
        while let Some(found) = scan.next().await? {
            assert!(!found.is_empty());
            skipped += found.iter().map(|found| found.skipped).sum::<u64>();
            events.extend(found.into_iter().map(|found| found.event));
        }
        skipped += scan.skipped();
    }
    Ok((events, skipped))
}

async fn check_scan(archive: &Archive, spec: &SelectionSpec, after: Sequence) {
    let (expected, failed) = archive.selected(spec);
    let mut skipped_of_all = 0;
    for (stream, expected) in expected {
        let (events, skipped) = scanned(archive, &stream, spec, 0).await.unwrap();
        assert_eq!(events, expected, "{spec:?}");
        skipped_of_all += skipped;

        let (rest, _) = scanned(archive, &stream, spec, after).await.unwrap();
        let later: Vec<_> =
            expected.iter().filter(|event| event.sequence > after).cloned().collect();
        assert_eq!(rest, later, "after {after}: {spec:?}");

        let mut counted = 0;
        for summary in archive.summaries.iter().filter(|summary| summary.stream == stream) {
            let store = Arc::clone(&archive.store);
            let scan = Scan::open(store, &wanted(summary), compiled(spec), 0, BATCH_BYTES).await;
            counted += scan.unwrap().count(ColumnSet::NONE, |_| {}).await.unwrap();
        }
        assert_eq!(counted, expected.len() as u64, "{spec:?}");
    }
    assert_eq!(skipped_of_all, failed, "{spec:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_scan_equals_looking_at_every_event(
        (streams, segment_events) in any_streams(2, 40),
        specs in proptest::collection::vec(any_selection(), 4),
        after in 0_u64..45,
    ) {
        block_on(async {
            let archive = Archive::of(streams, segment_events).await;
            for spec in &specs {
                check_scan(&archive, spec, after).await;
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Outputs lack the repeats that were dropped, so rows and sequences differ there; segments
    /// that a plan names and that are gone are read from them.
    #[test]
    fn so_it_does_when_the_archive_was_compacted(
        (mut streams, segment_events) in any_streams(2, 40),
        repeats in proptest::collection::vec((0_usize..40, 0_usize..40), 0..30),
        specs in proptest::collection::vec(any_selection(), 4),
        after in 0_u64..45,
        output_bytes in prop_oneof![Just(9_000_u64), Just(1 << 20)],
    ) {
        for events in &mut streams {
            for (from, to) in &repeats {
                if let (Some(from), true) = (events.get(*from).cloned(), *to < events.len()) {
                    events[*to] = from;
                }
            }
        }
        block_on(async {
            let mut archive = Archive::of(streams, segment_events).await;
            let planned = archive.summaries.clone();
            archive.compact(output_bytes, true).await;
            for spec in &specs {
                check_scan(&archive, spec, after).await;
                let current = std::mem::replace(&mut archive.summaries, planned.clone());
                check_scan(&archive, spec, after).await;
                archive.summaries = current;
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Bodies are made so large that a row group holds two or three events.
    #[test]
    fn so_it_does_over_many_row_groups(
        (streams, _) in any_streams(1, 10),
        specs in proptest::collection::vec(any_selection(), 4),
        after in 0_u64..12,
    ) {
        block_on(async {
            let mut streams = streams;
            for event in streams.iter_mut().flatten() {
                let mut body = event.message.body.to_vec();
                // Blanks do not change what JSON means.
                body.resize(body.len() + 3 * 1024 * 1024, b' ');
                event.message.body = body.into();
            }
            let archive = Archive::of(streams, usize::MAX).await;
            for spec in &specs {
                check_scan(&archive, spec, after).await;
            }
        });
    }
}

/// An archive of one segment of 20,000 events, each with a key of its own.
async fn large() -> Archive {
    let one = |n: u64| {
        // What does not compress, so that bytes read are bytes.
        let noise: String =
            (0..12).map(|part| Digest::of(format!("{n} {part}").as_bytes()).to_string()).collect();
        let mut event = event(n, at(n));
        event.key = Some(format!("order-{n:05}"));
        event.message.body = format!(r#"{{"n":{n},"noise":"{noise}"}}"#).into();
        event
    };
    let mut archive = Archive::new();
    archive.append("s0", (0..20_000).map(one).collect()).await;
    archive
}

#[tokio::test]
async fn one_key_of_many_reads_a_small_part() {
    let archive = large().await;
    for spec in [
        SelectionSpec { keys: vec!["order-07777".to_owned()], ..everything() },
        SelectionSpec { ids: vec!["e-7777".to_owned()], ..everything() },
        SelectionSpec { ids: vec!["s0:7778".to_owned()], ..everything() },
        SelectionSpec { from: Some(at(7_777)), to: Some(at(7_778)), ..everything() },
    ] {
        let metered = Arc::new(Metered::new(Arc::clone(&archive.store)));
        let store = Arc::clone(&metered) as Arc<dyn Store>;
        let summary = &archive.summaries[0];
        let mut scan =
            Scan::open(store, &wanted(summary), compiled(&spec), 0, 1 << 20).await.unwrap();
        let found = scan.next().await.unwrap().unwrap();
        assert_eq!(found.iter().map(|found| &*found.event.id).collect::<Vec<_>>(), ["e-7777"]);
        assert_eq!(scan.next().await.unwrap(), None);
        let read = metered.totals().bytes;
        assert!(read * 100 < summary.size * 15, "{spec:?} read {read} of {}", summary.size);
    }
}

/// Each batch asked for its piece of every column, and a server took longer for the requests than a
/// processor for decoding.
#[tokio::test]
async fn batches_are_fetched_together_where_what_is_stored_fits_in_half_of_one() {
    let one = |n: u64| {
        let noise: String =
            (0..12).map(|part| Digest::of(format!("{n} {part}").as_bytes()).to_string()).collect();
        let mut event = event(n, at(n));
        event.message.body = format!("{noise}{:3000}", "").into();
        event
    };
    let mut archive = Archive::new();
    archive.append("s0", (0..1_500).map(one).collect()).await;
    let summary = &archive.summaries[0];
    // Batches, requests after the one for the footer, and bytes.
    let reads = async |batch_bytes: u64| {
        let metered = Arc::new(Metered::new(Arc::clone(&archive.store)));
        let store = Arc::clone(&metered) as Arc<dyn Store>;
        let selection = compiled(&everything());
        let mut scan =
            Scan::open(store, &wanted(summary), selection, 0, batch_bytes).await.unwrap();
        let opened = metered.totals();
        let (mut batches, mut events) = (0, 0);
        while let Some(found) = scan.next().await.unwrap() {
            batches += 1;
            events += found.len();
        }
        assert_eq!(events, 1_500);
        let read = metered.totals();
        (batches, read.requests - opened.requests, read.bytes)
    };
    let fits = 2 * summary.size;
    let (batches, requests, bytes) = reads(fits).await;
    assert!(batches > 2 && requests == 1, "{requests} requests for {batches} batches");
    assert!(bytes < summary.size + summary.size / 50, "{bytes} of {}", summary.size);
    let (batches, requests, _) = reads(fits / 2).await;
    assert!(requests >= batches, "{requests} requests for {batches} batches");
}

#[tokio::test]
async fn a_batch_is_within_its_budget_whatever_the_size_of_bodies() {
    const BUDGET: u64 = 64 * 1024;
    for body in [0, 100, 4_000, 200_000] {
        let padded = |n| {
            let mut event = event(n, at(n));
            event.message.body = vec![b'x'; body].into();
            event
        };
        let mut archive = Archive::new();
        archive.append("s0", (0..600).map(padded).collect()).await;
        let store = Arc::clone(&archive.store);
        let wanted = wanted(&archive.summaries[0]);
        let mut scan =
            Scan::open(store, &wanted, compiled(&everything()), 0, BUDGET).await.unwrap();
        let mut total = 0;
        while let Some(found) = scan.next().await.unwrap() {
            total += found.len();
            let weight: usize = found.iter().map(|found| found.event.weight()).sum();
            // A part may be twice the budget before a page is split; one event is never split.
            assert!(
                weight as u64 <= 2 * BUDGET || found.len() <= 2,
                "{weight} of bodies of {body}"
            );
        }
        assert_eq!(total, 600);
    }
}

#[tokio::test]
async fn an_expression_that_fails_names_the_event_or_is_counted() {
    let mut events: Vec<Event> = (0..10).map(|n| event(n, at(n))).collect();
    events[6].message.body = Bytes::from_static(b"{}");
    let archive = Archive::of(vec![events], 4).await;
    for expression in ["body.n >= 0", "sequence < 7 || headers.nothing == 'x' || body.n > 8"] {
        let stop = SelectionSpec {
            where_: Some(expression.to_owned()),
            where_errors: WhereErrors::Stop,
            ..everything()
        };
        let error = scanned(&archive, &name("s0"), &stop, 0).await.unwrap_err().to_string();
        assert!(error.starts_with("where expression failed on event `e-6`: "), "{error}");
        let hint = "or leave such events out and count them with `--where-errors skip`";
        assert!(error.ends_with(hint), "{error}");
    }
    let skip = SelectionSpec { where_: Some("body.n >= 0".to_owned()), ..everything() };
    let (events, skipped) = scanned(&archive, &name("s0"), &skip, 0).await.unwrap();
    assert_eq!((events.len(), skipped), (9, 1));
}

async fn open_error(archive: &Archive, summary: &dacapo_archive::SegmentSummary) -> String {
    let store = Arc::clone(&archive.store);
    open_expected(store, &wanted(summary)).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_segment_that_is_gone_or_another_is_not_read() {
    let events = |count: u64| (0..count).map(|n| event(n, at(n))).collect::<Vec<_>>();
    let archive = Archive::of(vec![events(10)], 10).await;
    let summary = archive.summaries[0].clone();
    let changed = |how: &str| {
        format!(
            "the archive is not what the plan or the index says: `{}` {how}; run `dacapo archive \
             verify`, and if it was meant to change, `dacapo index rebuild` and make a new plan",
            summary.key
        )
    };
    for count in [9, 11, 3_000] {
        let other = Archive::of(vec![events(count)], usize::MAX).await;
        let bytes = other.store.get(&summary.key, dacapo_archive::store::ByteRange::Full).await;
        archive.store.replace(&summary.key, bytes.unwrap()).await.unwrap();
        let how = match other.summaries[0].size == summary.size {
            true => "is another than before (its digest differs)",
            false => "is another than before (its size differs)",
        };
        // A footer that lies where it should can still be read, and then tells by its digest.
        let error = open_error(&archive, &summary).await;
        let by_digest = changed("is another than before (its digest differs)");
        assert!(error == changed(how) || error == by_digest, "{error}");
    }
    archive.store.delete(&summary.key).await.unwrap();
    assert_eq!(open_error(&archive, &summary).await, changed("is gone"));
}

#[tokio::test]
async fn damage_of_a_segment_of_the_right_size_is_called_damage() {
    let archive = Archive::of(vec![vec![event(0, at(0))]], 1).await;
    let summary = archive.summaries[0].clone();
    let size = usize::try_from(summary.size).unwrap();
    archive.store.replace(&summary.key, vec![0; size].into()).await.unwrap();
    let error = open_error(&archive, &summary).await;
    assert!(error.contains("is damaged"), "{error}");
}

#[tokio::test]
async fn an_output_that_was_not_made_of_the_planned_segment_does_not_stand_for_it() {
    let events = |from: u64| (from..from + 3).map(|n| event(n, at(n))).collect::<Vec<_>>();
    let mut archive = Archive::new();
    for from in [0, 3, 6] {
        archive.append("s0", events(from)).await;
    }
    let planned = archive.summaries[1].clone();
    archive.compact(1 << 20, true).await;
    let opened = open_expected(Arc::clone(&archive.store), &wanted(&planned)).await.unwrap();
    assert_eq!((opened.from, opened.until), (4, 6));
    assert_eq!(opened.segment.summary(), &archive.summaries[0]);
    let other = dacapo_archive::SegmentSummary { digest: Digest::of(b"another"), ..planned };
    assert!(open_error(&archive, &other).await.contains("is gone"));
}
