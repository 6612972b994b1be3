//! What is damaged, missing or false is named, and nothing is deleted that it touches.

use super::*;

#[tokio::test]
async fn a_damaged_input_stops_its_stream_and_is_named() {
    let store = archive(8).await;
    let damaged = keys(&store, "segments/").await.remove(3);
    let mut bytes = store.get(&damaged, ByteRange::Full).await.unwrap().to_vec();
    bytes[100] ^= 1;
    store.replace(&damaged, bytes.into()).await.unwrap();
    append(&store, "other", vec![event("a", "x", 0)]).await;
    let report = run(&store, noon).await;
    let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
    assert_eq!((problem.key.as_str(), report.streams.len()), (damaged.as_str(), 2));
    // Up to it the stream is compacted, and what was merged goes.
    assert_eq!((report.streams[1].merged, report.streams[1].outputs), (3, 1), "{report:?}");
    let report = run(&store, later).await;
    assert_eq!((report.problems.len(), report.streams[1].deleted), (1, 3), "{report:?}");
    assert_eq!(report.streams[1].outputs, 0);
}

#[tokio::test]
async fn what_is_wrong_with_one_stream_is_named_and_the_others_are_compacted() {
    let check = async |prefix: &str, damage: Damage, found: &str, merged: [u64; 2]| {
        let store = archive(8).await;
        for n in 0..4 {
            append(&store, "zoo", vec![event(&format!("z-{n}"), "x", n)]).await;
        }
        let listed = keys(&store, prefix).await;
        let key = listed.get(4).unwrap_or(&listed[0]);
        match damage {
            Damage::Removed => store.delete(key).await.unwrap(),
            Damage::Cut => change(&store, key, |bytes| bytes.truncate(bytes.len() / 2)).await,
        }
        let report = run(&store, noon).await;
        let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
        let problem = format!("{}: {}", problem.key, problem.problem);
        assert!(problem.contains(found), "{problem}");
        let of = |name: &str| {
            let stream = report.streams.iter().find(|stream| stream.stream.as_str() == name);
            stream.map_or(0, |stream| stream.merged)
        };
        assert_eq!([of("shop"), of("zoo")], merged, "{report:?}");
    };
    let (segment, entry) = ("00000000000000000013.parquet", "chain/shop/00000000000000000013.json");
    check("segments/stream=shop/", Damage::Removed, &format!("{segment}: it is missing"), [4, 3])
        .await;
    check("segments/stream=shop/", Damage::Cut, segment, [4, 3]).await;
    check("chain/shop/", Damage::Removed, "16.json: sequences 13 to 15 before it are", [4, 3])
        .await;
    check("chain/shop/", Damage::Cut, &format!("{entry}: EOF"), [4, 3]).await;
    check("heads/shop", Damage::Removed, "heads/shop.json: is gone", [0, 3]).await;
    check("heads/shop", Damage::Cut, "heads/shop.json: EOF", [0, 3]).await;
}

enum Damage {
    Removed,
    Cut,
}

/// The segment cannot be read now, but nothing is wrong with it.
#[tokio::test]
async fn a_segment_in_cold_storage_holds_up_its_stream_alone() {
    let inner = archive(8).await;
    append(&inner, "zoo", vec![event("a", "x", 0)]).await;
    append(&inner, "zoo", vec![event("b", "x", 0)]).await;
    append(&inner, "zoo", vec![event("c", "x", 0)]).await;
    let cold = keys(&inner, "segments/stream=shop/").await.remove(4);
    let store = Scripted::freezing(&inner, cold.clone());
    let report = compact(store, &options(noon), |_| {}).await.unwrap();
    named_in(&report, &cold, "it is in cold storage (GLACIER)");
    let merged: Vec<u64> = report.streams.iter().map(|stream| stream.merged).collect();
    assert_eq!(merged, [4, 2], "{report:?}");
}

/// An output that differs from its inputs in one event, or drops one that is no repeat; its entry,
/// digest and list of inputs are sound.
async fn false_output(store: &Arc<dyn Store>, drops: bool) {
    let (events, _) = archived(store).await;
    let mut inputs = Vec::new();
    let mut first_key = None;
    for first in [1, 4] {
        let entry = chain::entry(&**store, &shop(), first).await.unwrap().unwrap();
        inputs.push(compaction::Input::of(&entry));
        first_key = first_key.or(Some(entry.segment));
    }
    let mut builder = SegmentBuilder::new(shop(), 1);
    for mut event in events.into_iter().take(6) {
        match (event.sequence, drops) {
            (5, true) => builder.drop_repeat(1),
            (5, false) => {
                event.message.body = "changed".into();
                builder.push(event).unwrap();
            }
            _ => builder.push(event).unwrap(),
        }
    }
    let sealed = builder.seal_compacted(None, &first_key.unwrap(), inputs, None).unwrap();
    store.put_new(&sealed.summary.key, sealed.bytes.clone()).await.unwrap();
    let output = ChainEntry::of(&sealed.summary);
    let entry = compaction::CompactionEntry { output, compacted_at: noon() };
    store.put_new(&layout::compaction_entry(&shop(), 1), entry.to_bytes()).await.unwrap();
}

#[tokio::test]
async fn inputs_of_an_output_that_differs_from_them_are_never_deleted() {
    for drops in [false, true] {
        let store = archive(4).await;
        false_output(&store, drops).await;
        let report = run(&store, later).await;
        let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
        assert!(problem.problem.contains("its event 5 is not that"), "{problem:?}");
        assert_eq!(keys(&store, "segments/").await.len(), 4);
    }
}

#[tokio::test]
async fn damage_to_outputs_and_their_entries_is_found_and_named() {
    let compacted = async || {
        let store = archive(16).await;
        for clock in [noon as Clock, later] {
            let small = Options { output_bytes: 17_000, ..options(clock) };
            compact(Arc::clone(&store), &small, |_| {}).await.unwrap();
        }
        let (outputs, entries) =
            (keys(&store, "compacted/").await, keys(&store, "compactions/").await);
        assert!(outputs.len() > 2, "{outputs:?}");
        (store, outputs, entries)
    };
    let (store, outputs, _) = compacted().await;
    change(&store, &outputs[1], |bytes| bytes[100] ^= 1).await;
    named(&problems(&store).await, &outputs[1], "digest differs");

    let (store, outputs, _) = compacted().await;
    store.delete(&outputs[0]).await.unwrap();
    let found = problems(&store).await;
    named(&found, &outputs[0], "is missing");
    // And what it stood for is lost with it.
    let first = chain::entry(&*store, &shop(), 1).await.unwrap().unwrap().segment;
    named(&found, &first, "is missing");

    let (store, _, entries) = compacted().await;
    store.delete(&entries[1]).await.unwrap();
    named(&problems(&store).await, &entries[1], "is missing");

    let (store, _, entries) = compacted().await;
    change(&store, &entries[1], |bytes| bytes.truncate(30)).await;
    named(&problems(&store).await, &entries[1], "EOF");

    let (store, outputs, entries) = compacted().await;
    let a = store.get(&outputs[0], ByteRange::Full).await.unwrap();
    store.replace(&outputs[1], a).await.unwrap();
    named(&problems(&store).await, &outputs[1], "");
    let entry = store.get(&entries[0], ByteRange::Full).await.unwrap();
    store.replace(&entries[1], entry).await.unwrap();
    named(&problems(&store).await, &entries[1], "is the entry of sequences");
}

#[tokio::test]
async fn an_output_that_was_made_of_other_segments_than_the_chain_names_is_named() {
    let store = archive(8).await;
    run(&store, noon).await;
    let entry = layout::chain_entry(&shop(), 4);
    let bytes = store.get(&entry, ByteRange::Full).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let digest = chain::entry(&*store, &shop(), 4).await.unwrap().unwrap().digest.to_string();
    let other = Digest::of(b"another").to_string();
    store.replace(&entry, text.replace(&digest, &other).into()).await.unwrap();
    let output = keys(&store, "compacted/").await.remove(0);
    named(&problems(&store).await, &output, "was made of another segment at sequence 4");
    // Nor is anything deleted then.
    let report = run(&store, later).await;
    assert!(report.problems[0].problem.contains("which the chain does not"), "{report:?}");
    assert_eq!(keys(&store, "segments/").await.len(), 8);
}

#[tokio::test]
async fn an_output_is_refused_by_whoever_does_not_know_of_repeats() {
    let store = archive(4).await;
    run(&store, noon).await;
    let output = keys(&store, "compacted/").await.remove(0);
    let bytes = store.get(&output, ByteRange::Full).await.unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("\"sequence\":3,\"repeat_of\":1"));
    let at = bytes.windows(13).rposition(|window| window == b"dacapo.format").unwrap() + 13 + 2;
    assert_eq!(bytes[at], b'2');
    let made: Compaction = all_inputs(&store, &output).await;
    assert_eq!(made.inputs.len(), 3);
}

async fn all_inputs(store: &Arc<dyn Store>, key: &ObjectKey) -> Compaction {
    let segment = Segment::open(Arc::clone(store), key, None).await.unwrap();
    segment.compaction().unwrap().clone()
}

#[tokio::test]
async fn every_changed_byte_cut_or_removal_of_what_stands_for_deleted_segments_is_found() {
    let store = archive(5).await;
    run(&store, noon).await;
    run(&store, later).await;
    sound(&store).await;
    let (output, entry) =
        (keys(&store, "compacted/").await.remove(0), keys(&store, "compactions/").await.remove(0));
    for (key, step) in [(output, 23), (entry, 1)] {
        let bytes = store.get(&key, ByteRange::Full).await.unwrap();
        let flips = (0..bytes.len()).step_by(step).flat_map(|at| [(at, 1), (at, 0x20)]);
        let flipped = flips.map(|(at, bits)| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= bits;
            bytes
        });
        let cut = bytes[..bytes.len() - 1].to_vec();
        let longer = [&bytes, b"\n".as_slice()].concat();
        for changed in flipped.chain([cut, longer]) {
            store.replace(&key, changed.into()).await.unwrap();
            named(&problems(&store).await, &key, "");
        }
        store.delete(&key).await.unwrap();
        // Without its entry the output is nobody's, and what it stood for is missing.
        assert!(!problems(&store).await.is_empty(), "{key}");
        store.replace(&key, bytes).await.unwrap();
        sound(&store).await;
    }
}
