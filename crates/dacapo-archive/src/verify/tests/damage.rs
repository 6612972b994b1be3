//! Random damage: whatever happens to whichever object, it is found, and the object is named.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::store::ObjectKey;
use crate::testing::{
    COMPACTED, Inputs, Objects, PagesOfOne, block_on, clock, compacted, store_of, written,
};

/// Hundreds of damages a run; each is applied to a fresh archive of some twenty or forty objects.
const DAMAGES: u32 = 600;

/// Segments of each of the streams that are not compacted, two events each.
const STREAMS: [(&str, u64); 2] = [("audit", 3), ("shop", 5)];

/// An archive that is damaged.
struct Subject {
    sound: Objects,
    /// Of the same shape and with other events: what an older version of each object may have been.
    older: Objects,
    streams: [(&'static str, u64); 2],
}

impl Subject {
    fn compacted(inputs: Inputs) -> Self {
        let [sound, older] = ["now", "old"].map(|word| compacted(word, inputs));
        Subject { sound, older, streams: COMPACTED }
    }
}

/// As it was written; merged, with what was merged still there; and with that deleted.
static SUBJECTS: LazyLock<[Subject; 3]> = LazyLock::new(|| {
    let [sound, older] = ["now", "before"].map(|word| written(&STREAMS, word));
    [
        Subject { sound, older, streams: STREAMS },
        Subject::compacted(Inputs::Kept),
        Subject::compacted(Inputs::Deleted),
    ]
});

/// What happens to an archive. An index chooses one of all objects, or a place in one.
#[derive(Debug, Clone)]
enum Damage {
    Flip { object: Index, place: Index, bits: u8 },
    Truncate { object: Index, length: Index },
    Append { object: Index, bytes: Vec<u8> },
    Remove { object: Index },
    Swap { one: Index, other: Index },
    RollBack { object: Index },
    RollBackTail { stream: Index, segments: Index },
    Duplicate { object: Index, to: u64 },
}

fn damages() -> impl Strategy<Value = Damage> {
    let object = any::<Index>;
    prop_oneof![
        6 => (object(), any::<Index>(), 1..=u8::MAX)
            .prop_map(|(object, place, bits)| Damage::Flip { object, place, bits }),
        // One bit is what a disk or a cable flips; a letter's case is one bit.
        4 => (object(), any::<Index>(), 0..8u32)
            .prop_map(|(object, place, bit)| Damage::Flip { object, place, bits: 1 << bit }),
        2 => (object(), any::<Index>())
            .prop_map(|(object, length)| Damage::Truncate { object, length }),
        2 => (object(), vec(any::<u8>(), 1..100))
            .prop_map(|(object, bytes)| Damage::Append { object, bytes }),
        1 => Just(()).prop_flat_map(move |()| object().prop_map(|object| Damage::Append { object, bytes: b"\n".to_vec() })),
        2 => object().prop_map(|object| Damage::Remove { object }),
        3 => (object(), object()).prop_map(|(one, other)| Damage::Swap { one, other }),
        2 => object().prop_map(|object| Damage::RollBack { object }),
        1 => (any::<Index>(), any::<Index>())
            .prop_map(|(stream, segments)| Damage::RollBackTail { stream, segments }),
        1 => (object(), 100..u64::MAX).prop_map(|(object, to)| Damage::Duplicate { object, to }),
    ]
}

fn pick<'a>(objects: &'a Objects, index: &Index) -> (&'a ObjectKey, &'a Bytes) {
    objects.iter().nth(index.index(objects.len())).unwrap()
}

/// Applies the damage; returns the objects that must be named, none if nothing was changed.
fn apply(damage: &Damage, subject: &Subject, objects: &mut Objects) -> Vec<ObjectKey> {
    let sound = &subject.sound;
    let mut change = |key: &ObjectKey, bytes: Vec<u8>| {
        let before = objects.insert(key.clone(), bytes.clone().into());
        if before == Some(bytes.into()) { vec![] } else { vec![key.clone()] }
    };
    match damage {
        Damage::Flip { object, place, bits } => {
            let (key, bytes) = pick(sound, object);
            let mut bytes = bytes.to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= bits;
            change(key, bytes)
        }
        Damage::Truncate { object, length } => {
            let (key, bytes) = pick(sound, object);
            change(key, bytes[..length.index(bytes.len())].to_vec())
        }
        Damage::Append { object, bytes: more } => {
            let (key, bytes) = pick(sound, object);
            change(key, [bytes, more.as_slice()].concat())
        }
        Damage::Remove { object } => {
            let (key, _) = pick(sound, object);
            objects.remove(key);
            vec![key.clone()]
        }
        Damage::Swap { one, other } => {
            let (one, other) = (pick(sound, one), pick(sound, other));
            let mut named = change(one.0, other.1.to_vec());
            named.extend(change(other.0, one.1.to_vec()));
            named
        }
        Damage::RollBack { object } => {
            let (key, _) = pick(sound, object);
            // The key of an output has its digest in it.
            let same_place = |older: &&ObjectKey| {
                *older == key
                    || layout::parse_compacted(key)
                        .is_some_and(|place| layout::parse_compacted(older) == Some(place))
            };
            let older = subject.older.keys().find(same_place).expect("it has the same shape");
            change(key, subject.older[older].to_vec())
        }
        Damage::RollBackTail { stream, segments } => {
            let (stream, all) = subject.streams[stream.index(subject.streams.len())];
            let kept = 1 + segments.index(usize::try_from(all).unwrap() - 1) as u64;
            let rolled_back = written(&[(stream, kept)], "now");
            objects
                .retain(|key, _| layout::stream_of(key).is_none_or(|name| name.as_str() != stream));
            objects.extend(rolled_back);
            vec![layout::head(&stream.parse().unwrap())]
        }
        Damage::Duplicate { object, to } => {
            let (key, bytes) = pick(sound, object);
            let stream = layout::stream_of(key).expect("all objects are those of a stream");
            let copy = match key.as_str().split_once('/').expect("all have a prefix").0 {
                "segments" => layout::segment(&stream, clock(), *to),
                "chain" => layout::chain_entry(&stream, *to),
                "heads" => layout::head(&format!("copy-{to}").parse().unwrap()),
                "compactions" => layout::compaction_entry(&stream, *to),
                // A second one stands for nothing, wherever it is.
                _ => return vec![],
            };
            change(&copy, bytes.to_vec())
        }
    }
}

/// Returns whether a finding is about the object: it is named, or its sequences are.
fn is_about(finding: &Finding, key: &ObjectKey) -> bool {
    let of_entry = || layout::parse_chain_entry(key).or(layout::parse_compaction_entry(key));
    let place = layout::parse_any_segment(key).or_else(of_entry);
    let stream = |(name, _): &(StreamName, Sequence)| finding.key.contains(name.as_str());
    let within = |(_, first): &(StreamName, Sequence)| {
        finding.sequences.is_some_and(|(from, to)| (from..=to).contains(first))
    };
    finding.key == key.as_str()
        || finding.problem.contains(key.as_str())
        || place.is_some_and(|place| stream(&place) && within(&place))
}

/// Returns whether an object is gone that compaction may not have put, or may have deleted: the
/// last entry of a stream whose inputs are all there, or an input whose output is.
fn is_as_compaction_may_leave_it(subject: &Subject, key: &ObjectKey, damaged: &Objects) -> bool {
    let there = |place: &(StreamName, Sequence)| {
        subject.sound.keys().any(|key| layout::parse_segment(key).as_ref() == Some(place))
    };
    let is_not_needed = match (layout::parse_compaction_entry(key), layout::parse_segment(key)) {
        (Some(place), _) => {
            let of_stream = |key: &&ObjectKey| {
                layout::parse_compaction_entry(key).is_some_and(|(stream, _)| stream == place.0)
            };
            subject.sound.keys().rfind(of_stream) == Some(key) && there(&place)
        }
        (None, Some((stream, first))) => {
            let covers = |(key, bytes): &(&ObjectKey, &Bytes)| {
                layout::parse_compaction_entry(key).is_some_and(|(name, _)| name == stream)
                    && is_between(first, bytes)
            };
            subject.sound.iter().any(|entry| covers(&entry))
        }
        (None, None) => false,
    };
    is_not_needed && !damaged.contains_key(key)
}

/// Returns whether this compaction entry names an output under `compacted/` with this sequence.
fn is_between(sequence: Sequence, entry: &Bytes) -> bool {
    let entry: serde_json::Value = serde_json::from_slice(entry).unwrap();
    let of = |name: &str| entry[name].as_u64().unwrap();
    (of("first_sequence")..=of("last_sequence")).contains(&sequence)
        && entry["segment"].as_str().unwrap().starts_with(layout::COMPACTED)
}

/// Returns a store with these objects, every listing of which has as many pages as it can have.
async fn paged(objects: &Objects) -> Arc<dyn Store> {
    Arc::new(PagesOfOne(store_of(objects).await))
}

#[track_caller]
fn check_found(subject: &Subject, damage: &Damage) {
    let mut damaged = subject.sound.clone();
    let named = apply(damage, subject, &mut damaged);
    let report = block_on(async {
        let sound = verify(paged(&subject.sound).await, &[], |_| {}).await.unwrap();
        assert_eq!((&sound.problems, &sound.notes), (&vec![], &vec![]));
        verify(paged(&damaged).await, &sound.heads, |_| {}).await.unwrap()
    });
    for key in named {
        if is_as_compaction_may_leave_it(subject, &key, &damaged) {
            continue;
        }
        let about: Vec<_> = report.problems.iter().filter(|found| is_about(found, &key)).collect();
        assert!(!about.is_empty(), "{key} is not in {:#?}", report.problems);
        if damaged.contains_key(&key)
            && subject.sound.contains_key(&key)
            && layout::parse_segment(&key).is_some()
        {
            assert!(about.iter().any(|found| found.sequences.is_some()), "{about:#?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(DAMAGES))]

    #[test]
    fn any_damage_to_any_object_is_found_and_the_object_named(damage in damages()) {
        check_found(&SUBJECTS[0], &damage);
    }

    #[test]
    fn any_damage_to_a_compacted_archive_is_found_and_the_object_named(
        damage in damages(),
        subject in 1..3_usize,
    ) {
        check_found(&SUBJECTS[subject], &damage);
    }
}

/// Every object of a compacted archive, not one of those that a random choice may leave out.
#[test]
fn every_removal_swap_and_rollback_in_a_compacted_archive_is_found() {
    for subject in &SUBJECTS[1..] {
        for key in subject.sound.keys() {
            let mut damaged = subject.sound.clone();
            damaged.remove(key);
            check_named(subject, key, &damaged);
            let next = subject.sound.keys().find(|next| *next > key);
            if let Some(next) = next {
                let mut damaged = subject.sound.clone();
                let one = damaged.insert(key.clone(), subject.sound[next].clone());
                damaged.extend(one.map(|one| (next.clone(), one)));
                check_named(subject, key, &damaged);
                check_named(subject, next, &damaged);
            }
        }
    }
}

#[track_caller]
fn check_named(subject: &Subject, key: &ObjectKey, damaged: &Objects) {
    let report = block_on(async { verify(store_of(damaged).await, &[], |_| {}).await.unwrap() });
    let found = report.problems.iter().any(|found| is_about(found, key));
    assert!(
        found || is_as_compaction_may_leave_it(subject, key, damaged),
        "{key} is not in {:#?}",
        report.problems
    );
}

/// Every byte of the small objects, because only some of them change what the object means.
#[test]
fn every_changed_byte_of_an_entry_or_head_is_found() {
    let small = [
        (0, "chain/audit/00000000000000000003.json"),
        (0, "heads/shop.json"),
        // Of a segment that is merged and there, of one that is gone, and of one that is its own
        // output; of an output, and of that segment.
        (1, "chain/shop/00000000000000000003.json"),
        (2, "chain/shop/00000000000000000003.json"),
        (2, "chain/shop/00000000000000000007.json"),
        (2, "compactions/shop/00000000000000000001.json"),
        (2, "compactions/shop/00000000000000000007.json"),
    ];
    for (subject, key) in small {
        let subject = &SUBJECTS[subject];
        let key: ObjectKey = key.parse().unwrap();
        let bytes = &subject.sound[&key];
        for (place, bits) in (0..bytes.len()).flat_map(|place| [(place, 1), (place, 0x20)]) {
            let mut objects = subject.sound.clone();
            let mut changed = bytes.to_vec();
            changed[place] ^= bits;
            objects.insert(key.clone(), changed.into());
            let report = block_on(async { verify(store_of(&objects).await, &[], |_| {}).await });
            let problems = report.unwrap().problems;
            let found = problems.iter().any(|found| is_about(found, &key));
            assert!(found, "byte {place} of {key}: {problems:#?}");
        }
    }
}

/// What the other tests rely on.
#[test]
fn a_compacted_archive_has_every_kind_of_object() {
    let kinds = |objects: &Objects| {
        let count = |prefix| objects.keys().filter(|key| key.as_str().starts_with(prefix)).count();
        [layout::SEGMENTS, layout::CHAIN, layout::COMPACTED, layout::COMPACTIONS].map(count)
    };
    let [_, kept, deleted] = &*SUBJECTS;
    assert_eq!(kinds(&kept.sound), [12, 12, 4, 6]);
    assert_eq!(kinds(&deleted.sound), [4, 12, 4, 6]);
    assert_eq!(kinds(&deleted.older), kinds(&deleted.sound));
    let hours: BTreeSet<_> = kept.sound.keys().filter_map(layout::hour_of).collect();
    assert!(hours.len() > 2, "{hours:?}");
}
