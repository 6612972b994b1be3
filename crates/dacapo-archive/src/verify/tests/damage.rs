//! Random damage: whatever happens to whichever object, it is found, and the object is named.

use std::sync::LazyLock;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::testing::{Objects, block_on, clock, store_of, written};

/// Hundreds of damages a run; each is applied to a fresh archive of nineteen objects.
const DAMAGES: u32 = 600;

/// Segments of each of the streams, two events each.
const STREAMS: [(&str, u64); 2] = [("audit", 3), ("shop", 5)];

/// The archive that is damaged.
static SOUND: LazyLock<Objects> = LazyLock::new(|| written(&STREAMS, "now"));
/// One with the same keys and other events: what an older version of each object may have been.
static OLDER: LazyLock<Objects> = LazyLock::new(|| written(&STREAMS, "before"));

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
fn apply(damage: &Damage, objects: &mut Objects) -> Vec<ObjectKey> {
    let mut change = |key: &ObjectKey, bytes: Vec<u8>| {
        let before = objects.insert(key.clone(), bytes.clone().into());
        if before == Some(bytes.into()) { vec![] } else { vec![key.clone()] }
    };
    match damage {
        Damage::Flip { object, place, bits } => {
            let (key, bytes) = pick(&SOUND, object);
            let mut bytes = bytes.to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= bits;
            change(key, bytes)
        }
        Damage::Truncate { object, length } => {
            let (key, bytes) = pick(&SOUND, object);
            change(key, bytes[..length.index(bytes.len())].to_vec())
        }
        Damage::Append { object, bytes: more } => {
            let (key, bytes) = pick(&SOUND, object);
            change(key, [bytes, more.as_slice()].concat())
        }
        Damage::Remove { object } => {
            let (key, _) = pick(&SOUND, object);
            objects.remove(key);
            vec![key.clone()]
        }
        Damage::Swap { one, other } => {
            let (one, other) = (pick(&SOUND, one), pick(&SOUND, other));
            let mut named = change(one.0, other.1.to_vec());
            named.extend(change(other.0, one.1.to_vec()));
            named
        }
        Damage::RollBack { object } => {
            let (key, bytes) = pick(&OLDER, object);
            change(key, bytes.to_vec())
        }
        Damage::RollBackTail { stream, segments } => {
            let (stream, all) = STREAMS[stream.index(STREAMS.len())];
            let kept = 1 + segments.index(usize::try_from(all).unwrap() - 1) as u64;
            let rolled_back = written(&[(stream, kept)], "now");
            let head = layout::head(&stream.parse().unwrap());
            let of_stream = |key: &ObjectKey| {
                layout::parse_segment(key).or(layout::parse_chain_entry(key)).map(|(name, _)| name)
            };
            objects.retain(|key, _| {
                rolled_back.contains_key(key)
                    || of_stream(key).is_none_or(|name| name.as_str() != stream)
            });
            objects.insert(head.clone(), rolled_back[&head].clone());
            vec![head]
        }
        Damage::Duplicate { object, to } => {
            let (key, bytes) = pick(&SOUND, object);
            let copy = match (layout::parse_segment(key), layout::parse_chain_entry(key)) {
                (Some((stream, _)), _) => layout::segment(&stream, clock(), *to),
                (None, Some((stream, _))) => layout::chain_entry(&stream, *to),
                (None, None) => layout::head(&format!("copy-{to}").parse().unwrap()),
            };
            change(&copy, bytes.to_vec())
        }
    }
}

/// Returns whether a finding is about the object: it is named, or its sequences are.
fn is_about(finding: &Finding, key: &ObjectKey) -> bool {
    let place = layout::parse_segment(key).or(layout::parse_chain_entry(key));
    let stream = |(name, _): &(StreamName, Sequence)| finding.key.contains(name.as_str());
    let within = |(_, first): &(StreamName, Sequence)| {
        finding.sequences.is_some_and(|(from, to)| (from..=to).contains(first))
    };
    finding.key == key.as_str()
        || finding.problem.contains(key.as_str())
        || place.is_some_and(|place| stream(&place) && within(&place))
}

#[track_caller]
fn check_found(damage: &Damage) {
    let mut damaged = SOUND.clone();
    let named = apply(damage, &mut damaged);
    let report = block_on(async {
        let sound = verify(store_of(&SOUND).await, &[], |_| {}).await.unwrap();
        assert_eq!((&sound.problems, &sound.notes), (&vec![], &vec![]));
        verify(store_of(&damaged).await, &sound.heads, |_| {}).await.unwrap()
    });
    for key in named {
        let about: Vec<_> = report.problems.iter().filter(|found| is_about(found, &key)).collect();
        assert!(!about.is_empty(), "{key} is not in {:#?}", report.problems);
        if damaged.contains_key(&key)
            && SOUND.contains_key(&key)
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
        check_found(&damage);
    }
}

/// Every byte of the small objects, because only some of them change what the object means.
#[test]
fn every_changed_byte_of_a_chain_entry_or_head_is_found() {
    for (at, (key, bytes)) in SOUND.iter().enumerate() {
        let is_small = ["chain/audit/00000000000000000003.json", "heads/shop.json"];
        if !is_small.contains(&key.as_str()) {
            continue;
        }
        for (place, bits) in (0..bytes.len()).flat_map(|place| [(place, 1), (place, 0x20)]) {
            let mut objects = SOUND.clone();
            let mut changed = bytes.to_vec();
            changed[place] ^= bits;
            objects.insert(key.clone(), changed.into());
            let report = block_on(async { verify(store_of(&objects).await, &[], |_| {}).await });
            let problems = report.unwrap().problems;
            let found = problems.iter().any(|found| is_about(found, key));
            assert!(found, "object {at}, byte {place} of {key}: {problems:#?}");
        }
    }
}
