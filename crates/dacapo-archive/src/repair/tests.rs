//! What can be proven is rebuilt as it was, what cannot is left, and nothing is ever worse.

use std::sync::LazyLock;

use super::*;
use crate::store::ByteRange;
use crate::testing::{Objects, block_on, clock, extend, objects, store_of, written};
use crate::verify::verify;

mod compacted;
mod properties;

const STREAMS: [(&str, u64); 2] = [("audit", 3), ("shop", 5)];

static SOUND: LazyLock<Objects> = LazyLock::new(|| written(&STREAMS, "now"));
static OTHER: LazyLock<Objects> = LazyLock::new(|| written(&STREAMS, "other"));

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn entry(stream: &str, first: Sequence) -> ObjectKey {
    layout::chain_entry(&stream.parse().unwrap(), first)
}

fn head(stream: &str) -> ObjectKey {
    layout::head(&stream.parse().unwrap())
}

fn segment(stream: &str, first: Sequence) -> ObjectKey {
    layout::segment(&stream.parse().unwrap(), clock(), first)
}

/// Repairs a copy of the archive; returns what is there then, without the copies of what was
/// replaced, and the report.
fn repaired(damaged: &Objects) -> (Objects, Report) {
    block_on(async {
        let store = store_of(damaged).await;
        let report = repair(Arc::clone(&store), clock, |_| {}).await.unwrap();
        let mut all = objects(&store).await;
        for mended in &report.mended {
            let kept = mended.kept.as_ref().map(|kept| &all[kept]);
            assert_eq!(kept, damaged.get(&mended.key), "the bytes before are kept");
        }
        all.retain(|key, _| !key.as_str().starts_with(layout::DAMAGED));
        (all, report)
    })
}

fn remaining(objects: &Objects) -> Vec<String> {
    let report = block_on(async { verify(store_of(objects).await, &[], |_| {}).await.unwrap() });
    report.problems.into_iter().map(|found| found.key).collect()
}

/// Checks that an archive damaged so becomes what it was, and that a second repair does nothing.
#[track_caller]
fn check_restored(damage: impl FnOnce(&mut Objects)) {
    let mut damaged = SOUND.clone();
    damage(&mut damaged);
    let (result, report) = repaired(&damaged);
    assert_eq!(result, *SOUND, "{report:#?}");
    assert!(repaired(&result).1.mended.is_empty());
}

/// Checks which objects are mended, and of which `verify` still complains.
#[track_caller]
fn check(damage: impl FnOnce(&mut Objects), mended: &[ObjectKey], remains: &[ObjectKey]) {
    let mut damaged = SOUND.clone();
    damage(&mut damaged);
    let (result, report) = repaired(&damaged);
    let keys: Vec<_> = report.mended.iter().map(|mended| mended.key.clone()).collect();
    assert_eq!(keys, mended);
    let remains: Vec<_> = remains.iter().map(ToString::to_string).collect();
    assert_eq!(remaining(&result), remains, "{report:#?}");
}

fn flip(objects: &mut Objects, key: &ObjectKey, text: &str, with: &str) {
    let before = String::from_utf8(objects[key].to_vec()).unwrap();
    assert!(before.contains(text), "{before}");
    objects.insert(key.clone(), before.replacen(text, with, 1).into());
}

#[test]
fn a_sound_archive_is_left_as_it_is() {
    check_restored(|_| {});
}

#[test]
fn entries_that_are_missing_or_damaged_are_rebuilt_from_their_segments() {
    check_restored(|all| drop(all.remove(&entry("shop", 1))));
    check_restored(|all| drop(all.remove(&entry("shop", 5))));
    check_restored(|all| drop(all.remove(&entry("shop", 9))));
    check_restored(|all| drop(all.insert(entry("shop", 9), Bytes::from_static(b"{"))));
    check_restored(|all| {
        flip(all, &entry("shop", 5), "\"last_sequence\": 6", "\"last_sequence\": 7");
    });
    check_restored(|all| flip(all, &entry("shop", 5), "hour=", "hour=0"));
    check_restored(|all| flip(all, &entry("shop", 5), "\"format\"", " \"format\""));
    check_restored(|all| flip(all, &entry("shop", 5), "\"format\": 1", "\"format\":11"));
    check_restored(|all| drop(all.insert(entry("shop", 3), SOUND[&entry("shop", 7)].clone())));
}

#[test]
fn the_whole_chain_and_all_heads_are_rebuilt_from_the_segments() {
    check_restored(|all| all.retain(|key, _| key.as_str().starts_with(layout::SEGMENTS)));
}

#[test]
fn heads_that_are_missing_damaged_or_behind_are_moved_to_the_end_of_the_chain() {
    check_restored(|all| drop(all.remove(&head("shop"))));
    check_restored(|all| drop(all.insert(head("shop"), SOUND[&head("audit")].clone())));
    check_restored(|all| flip(all, &head("shop"), "10", "11"));
    check_restored(|all| drop(all.insert(head("shop"), Bytes::new())));
    let behind = written(&[("shop", 2)], "now");
    check_restored(|all| drop(all.insert(head("shop"), behind[&head("shop")].clone())));
}

#[test]
fn a_lost_segment_stays_lost_and_its_entry_and_head_stay_its_proof() {
    check(|all| drop(all.remove(&segment("shop", 5))), &[], &[segment("shop", 5)]);
    check(|all| drop(all.remove(&segment("shop", 9))), &[], &[segment("shop", 9)]);
    let other = |all: &mut Objects| {
        all.insert(segment("shop", 5), OTHER[&segment("shop", 5)].clone());
    };
    check(other, &[], &[segment("shop", 5)]);
}

#[test]
fn a_hole_of_entry_and_segment_is_not_closed_with_anything_else() {
    let without = |segment_is: Option<Bytes>| {
        move |all: &mut Objects| {
            all.remove(&entry("shop", 5));
            all.remove(&segment("shop", 5));
            all.extend(segment_is.map(|bytes| (segment("shop", 5), bytes)));
        }
    };
    check(without(None), &[], &[entry("shop", 5)]);
    check(without(Some(OTHER[&segment("shop", 5)].clone())), &[], &[entry("shop", 5)]);
}

#[test]
fn the_tail_that_a_head_tells_of_is_not_forgotten() {
    let lost = |all: &mut Objects| {
        all.remove(&entry("shop", 9));
        all.remove(&segment("shop", 9));
    };
    check(lost, &[], &[head("shop")]);
    // Not even if the head itself was damaged where it does not matter.
    let and_flipped = |all: &mut Objects| {
        lost(all);
        flip(all, &head("shop"), "moved_at\": \"2", "moved_at\": \"1");
    };
    check(and_flipped, &[], &[head("shop")]);
}

/// Two objects of another archive that agree with each other prove nothing against one of this
/// archive that stands before them.
#[test]
fn a_head_and_a_segment_of_another_archive_do_not_outweigh_the_chain_before_them() {
    let foreign = |all: &mut Objects, keys: &[ObjectKey]| {
        let others = keys.iter().map(|key| (key.clone(), OTHER[key].clone()));
        all.extend(others);
    };
    let tail = [head("shop"), segment("shop", 9)];
    check_restored_to_itself(|all| foreign(all, &tail));
    // Nor if one of the two objects before them is gone, or if they are more.
    for lost in [entry("shop", 7), segment("shop", 7), entry("shop", 9)] {
        check_restored_to_itself(|all| {
            foreign(all, &tail);
            all.remove(&lost);
        });
    }
    check_restored_to_itself(|all| {
        foreign(all, &tail);
        foreign(all, &[segment("shop", 7), segment("shop", 5), segment("shop", 3)]);
    });
    // An entry and its segment, and the segment before them.
    check_restored_to_itself(|all| {
        foreign(all, &[entry("shop", 9), segment("shop", 9), segment("shop", 7)]);
    });
    // A pair of an entry and its segment before them that itself contradicts what is before it.
    check_restored_to_itself(|all| {
        foreign(all, &tail);
        foreign(all, &[entry("shop", 7), segment("shop", 7)]);
    });
    check_restored_to_itself(|all| {
        foreign(all, &tail);
        foreign(all, &[entry("shop", 7), segment("shop", 7), entry("shop", 5)]);
    });
    // They lead to the first segment, through an entry that its segment contradicts.
    check_restored_to_itself(|all| {
        foreign(all, &[head("audit"), segment("audit", 5), segment("audit", 3)]);
        foreign(all, &[entry("audit", 1)]);
    });
}

#[test]
fn a_stream_with_an_object_of_a_newer_format_is_left_and_the_others_are_mended() {
    let mut damaged = SOUND.clone();
    flip(&mut damaged, &entry("shop", 1), "\"format\": 1", "\"format\": 2,\n  \"more\": 0");
    damaged.remove(&entry("shop", 3));
    damaged.remove(&entry("audit", 1));
    let (result, report) = repaired(&damaged);
    let mended: Vec<_> = report.mended.iter().map(|mended| &mended.key).collect();
    assert_eq!(mended, [&entry("audit", 1)]);
    assert!(remaining(&result).contains(&entry("shop", 1).to_string()));
}

#[test]
fn a_segment_that_was_never_committed_is_left_to_the_next_writer() {
    check_restored_to_itself(|all| {
        all.remove(&entry("shop", 9));
        all.insert(head("shop"), written(&[("shop", 4)], "now")[&head("shop")].clone());
    });
}

#[track_caller]
fn check_restored_to_itself(damage: impl FnOnce(&mut Objects)) {
    let mut damaged = SOUND.clone();
    damage(&mut damaged);
    assert_eq!(repaired(&damaged).0, damaged);
}

#[test]
fn of_two_segments_for_one_place_the_one_that_the_next_names_is_taken() {
    // The other one was put by a writer that was overtaken, an hour later.
    let later = Timestamp::from_secs(clock().as_micros().cast_unsigned() / 1_000_000 + 3_600);
    let overtaken = layout::segment(&"shop".parse().unwrap(), later, 1);
    let mut damaged = SOUND.clone();
    damaged.insert(overtaken.clone(), OTHER[&segment("shop", 1)].clone());
    damaged.remove(&entry("shop", 1));
    let (mut result, _) = repaired(&damaged);
    result.remove(&overtaken);
    assert_eq!(result, *SOUND);
}

#[test]
fn times_around_a_hole_are_those_of_its_neighbours() {
    let mut damaged = SOUND.clone();
    damaged.remove(&segment("shop", 5));
    let (_, report) = repaired(&damaged);
    let stream = "shop".parse().unwrap();
    assert_eq!(report.times_around(&stream, (5, 6)), (Some(clock()), Some(clock())));
    assert_eq!(report.times_around(&stream, (1, 4)), (None, Some(clock())));
    assert_eq!(report.times_around(&stream, (9, 20)), (Some(clock()), None));
}

#[tokio::test]
async fn an_object_that_changed_after_it_was_judged_is_left_alone() {
    let store = store_of(&SOUND).await;
    let judged = Bytes::from_static(b"as it was");
    let put = put_instead(&*store, &head("shop"), Some(&judged), Bytes::new()).await.unwrap();
    assert_eq!(put, None);
    let there = store.get(&head("shop"), ByteRange::Full).await.unwrap();
    assert_eq!(there, SOUND[&head("shop")]);
}

#[tokio::test]
async fn every_damaged_version_is_kept_once() {
    let store = store_of(&Objects::new()).await;
    let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
    for (bytes, kept) in [(&a, "damaged/x.1"), (&b, "damaged/x.2"), (&a, "damaged/x.1")] {
        assert_eq!(keep(&*store, &key("x"), bytes).await.unwrap(), key(kept));
    }
}

#[test]
fn a_repair_says_how_far_it_has_come_be_the_archive_sound_or_without_its_chain() {
    for lacking in ["nothing", layout::CHAIN] {
        let mut damaged = SOUND.clone();
        damaged.retain(|key, _| !key.as_str().starts_with(lacking));
        let of_kind =
            |prefix| damaged.keys().filter(|key| key.as_str().starts_with(prefix)).count();
        let all = (of_kind(layout::CHAIN) + of_kind(layout::SEGMENTS)) as u64;
        let mut told = Vec::new();
        block_on(async {
            let store = store_of(&damaged).await;
            let progress = |at: Progress| told.push((at.objects, at.objects_all));
            repair(store, clock, progress).await
        })
        .unwrap();
        assert_eq!(told, (1..=all).map(|objects| (objects, all)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_its_repair() {
    let mut damaged = SOUND.clone();
    damaged.remove(&entry("shop", 9));
    flip(&mut damaged, &head("shop"), "10", "11");
    let store = store_of(&damaged).await;
    repair(Arc::clone(&store), clock, |_| {}).await.unwrap();
    extend(&store, "shop", 2, "later").await;
    let report = verify(store, &[], |_| {}).await.unwrap();
    assert_eq!((report.problems, report.events), (vec![], 20));
}
