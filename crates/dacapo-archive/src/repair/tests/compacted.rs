//! Where outputs of compaction took the place of segments, they prove what these proved.

use super::*;
use crate::testing::{Inputs, compacted};

/// An archive whose merged segments are still there, and another one of the same shape.
pub(super) static KEPT: LazyLock<[Objects; 2]> =
    LazyLock::new(|| ["now", "old"].map(|word| compacted(word, Inputs::Kept)));
/// An archive whose merged segments are deleted, and another one of the same shape.
pub(super) static DELETED: LazyLock<[Objects; 2]> =
    LazyLock::new(|| ["now", "old"].map(|word| compacted(word, Inputs::Deleted)));

fn compaction(stream: &str, first: Sequence) -> ObjectKey {
    layout::compaction_entry(&stream.parse().unwrap(), first)
}

/// Returns the key of the output that begins with this sequence.
fn output(stream: &str, first: Sequence) -> ObjectKey {
    let place = Some((stream.parse().unwrap(), first));
    DELETED[0].keys().find(|key| layout::parse_compacted(key) == place).unwrap().clone()
}

/// Checks that both archives, damaged so, become what they were, and that a second repair does
/// nothing.
#[track_caller]
fn check_restored(damage: impl Fn(&mut Objects)) {
    for sound in [&KEPT[0], &DELETED[0]] {
        check_one_restored(sound, &damage);
    }
}

#[track_caller]
fn check_one_restored(sound: &Objects, damage: impl Fn(&mut Objects)) {
    let mut damaged = sound.clone();
    damage(&mut damaged);
    let (result, report) = repaired(&damaged);
    let keys = |all: &Objects| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&result), keys(sound), "{report:#?}");
    assert_eq!(&result, sound, "{report:#?}");
    assert!(repaired(&result).1.mended.is_empty());
    assert_eq!(remaining(&result), Vec::<String>::new());
}

/// Checks which objects are mended where segments are deleted, and of which `verify` complains then.
#[track_caller]
fn check(damage: impl Fn(&mut Objects), mended: &[ObjectKey], remains: &[ObjectKey]) {
    let mut damaged = DELETED[0].clone();
    damage(&mut damaged);
    let (result, report) = repaired(&damaged);
    let keys: Vec<_> = report.mended.iter().map(|mended| mended.key.clone()).collect();
    assert_eq!(keys, mended);
    let remains: Vec<_> = remains.iter().map(ToString::to_string).collect();
    assert_eq!(remaining(&result), remains, "{report:#?}");
}

#[test]
fn a_sound_compacted_archive_is_left_as_it_is() {
    check_restored(|_| {});
}

#[test]
fn entries_of_segments_that_are_deleted_are_rebuilt_from_their_outputs() {
    for first in [1, 3, 5, 7, 9, 11, 13, 15, 17] {
        check_restored(|all| drop(all.remove(&entry("shop", first))));
        check_restored(|all| drop(all.insert(entry("shop", first), Bytes::from_static(b"{"))));
        check_restored(|all| flip(all, &entry("shop", first), "hour=", "hour=1"));
        check_restored(|all| flip(all, &entry("shop", first), "\"bytes\": ", "\"bytes\": 1"));
    }
    check_restored(|all| flip(all, &entry("shop", 3), "\"previous\": \"", "\"previous\": \"0"));
    check_restored(|all| all.retain(|key, _| !key.as_str().starts_with(layout::CHAIN)));
}

#[test]
fn compaction_entries_are_rebuilt_where_what_follows_or_what_is_deleted_proves_them() {
    for first in [1, 5, 7, 9] {
        check_restored(|all| drop(all.remove(&compaction("shop", first))));
    }
    for first in [1, 5, 7, 9, 13] {
        let key = compaction("shop", first);
        check_restored(|all| flip(all, &key, "compacted_at", "compacted_by"));
        check_restored(|all| flip(all, &key, "\"bytes\": ", "\"bytes\": 1"));
    }
    for first in [1, 9, 13] {
        let key = compaction("shop", first);
        check_restored(|all| drop(all.insert(key.clone(), Bytes::new())));
        check_restored(|all| {
            drop(all.insert(key.clone(), KEPT[0][&compaction("audit", 1)].clone()));
        });
    }
    // Nothing follows; that its inputs are deleted says enough.
    check_one_restored(&DELETED[0], |all| drop(all.remove(&compaction("shop", 13))));
    check_one_restored(&DELETED[0], |all| drop(all.remove(&compaction("audit", 1))));
    let other = &DELETED[1];
    let put_other = |first| {
        move |all: &mut Objects| {
            let key = compaction("shop", first);
            all.insert(key.clone(), other[&key].clone());
        }
    };
    for first in [1, 5, 7, 9, 13] {
        check_one_restored(&DELETED[0], put_other(first));
    }
}

/// An entry and its segment agree with each other, and with a compaction entry behind them; but not
/// with the chain on either side.
#[test]
fn a_segment_of_another_archive_is_not_taken_for_its_own_output() {
    let [sound, other] = &*KEPT;
    let mut damaged = sound.clone();
    for key in [entry("shop", 7), segment_at("shop", 7), compaction("shop", 9)] {
        damaged.insert(key.clone(), other[&key].clone());
    }
    let (result, report) = repaired(&damaged);
    assert_eq!(result, damaged, "{report:#?}");
}

/// An output may be sound and yet not be made of this stream's segments.
#[test]
fn an_output_of_another_archive_is_not_taken_though_its_entry_is_damaged() {
    let [sound, other] = &*DELETED;
    let mut damaged = sound.clone();
    damaged.remove(&output("audit", 1));
    damaged.insert(compaction("audit", 1), Bytes::new());
    let place = layout::parse_compacted(&output("audit", 1));
    let foreign = other.iter().find(|(key, _)| layout::parse_compacted(key) == place);
    damaged.extend(foreign.map(|(key, bytes)| (key.clone(), bytes.clone())));
    let (result, report) = repaired(&damaged);
    assert_eq!(result, damaged, "{report:#?}");
}

/// A compaction that was killed before it put the entry leaves the same; the next one goes on.
#[test]
fn an_output_without_an_entry_whose_segments_are_there_is_left() {
    let mut damaged = KEPT[0].clone();
    damaged.remove(&compaction("shop", 13));
    let (result, report) = repaired(&damaged);
    assert_eq!((report.mended, &result), (vec![], &damaged));
    assert_eq!(remaining(&result), Vec::<String>::new());
}

#[test]
fn chain_and_compaction_entries_and_heads_are_all_rebuilt_from_segments_and_outputs() {
    let entries = [layout::CHAIN, layout::COMPACTIONS, layout::HEADS];
    let is_entry = |key: &ObjectKey| entries.iter().any(|prefix| key.as_str().starts_with(prefix));
    let without = |all: &mut Objects, stream: &str| {
        let of_stream =
            |key: &ObjectKey| layout::stream_of(key).is_some_and(|s| s.as_str() == stream);
        all.retain(|key, _| !is_entry(key) || !of_stream(key));
    };
    check_one_restored(&DELETED[0], |all| without(all, "audit"));
    // Of segments that are their own output one after the other nothing tells where they begin.
    let mut damaged = DELETED[0].clone();
    without(&mut damaged, "shop");
    let (result, _) = repaired(&damaged);
    let lost = [compaction("shop", 5), compaction("shop", 7)];
    let expected = DELETED[0].iter().filter(|(key, _)| !lost.contains(key));
    assert!(result.iter().eq(expected), "{:#?}", result.keys());
    // The heads and the chain alone.
    check_restored(|all| {
        all.retain(|key, _| !is_entry(key) || layout::parse_compaction_entry(key).is_some());
    });
}

#[test]
fn a_lost_output_stays_lost_and_what_names_it_stays_its_proof() {
    let inputs = [segment_at("shop", 9), segment_at("shop", 11)];
    let lost = [&[output("shop", 9)][..], &inputs].concat();
    check(|all| drop(all.remove(&output("shop", 9))), &[], &lost);
    let flipped = |all: &mut Objects| {
        let mut bytes = all[&output("shop", 9)].to_vec();
        bytes[100] ^= 1;
        all.insert(output("shop", 9), bytes.into());
    };
    check(flipped, &[], &lost);
    // What its footer says of its inputs is not believed.
    let and_an_entry = |all: &mut Objects| {
        flipped(all);
        all.remove(&entry("shop", 11));
    };
    check(and_an_entry, &[], &[output("shop", 9), entry("shop", 11), inputs[0].clone()]);
}

/// Returns the key that the chain names at this sequence.
fn segment_at(stream: &str, first: Sequence) -> ObjectKey {
    let bytes = &DELETED[0][&entry(stream, first)];
    ChainEntry::from_exact_bytes(&entry(stream, first), bytes).unwrap().segment
}

#[test]
fn times_around_a_hole_are_those_of_the_outputs_around_it() {
    let mut damaged = DELETED[0].clone();
    damaged.remove(&output("shop", 9));
    let (_, report) = repaired(&damaged);
    let stream = "shop".parse().unwrap();
    assert_eq!(report.times_around(&stream, (9, 12)), (Some(clock()), Some(clock())));
    assert_eq!(report.times_around(&stream, (1, 4)), (None, Some(clock())));
}

#[test]
fn a_compacted_stream_goes_on_after_its_repair() {
    let mut damaged = DELETED[0].clone();
    damaged.retain(|key, _| layout::parse_chain_entry(key).is_none());
    damaged.remove(&head("shop"));
    let report = block_on(async {
        let store = store_of(&damaged).await;
        repair(Arc::clone(&store), clock, |_| {}).await.unwrap();
        extend(&store, "shop", 2, "later").await;
        verify(store, &[], |_| {}).await.unwrap()
    });
    assert_eq!((report.problems, report.segments, report.compacted), (vec![], 14, 8));
}
