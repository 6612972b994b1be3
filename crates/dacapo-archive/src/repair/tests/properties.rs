//! Random damage, and a kill at any call, to archives as they were written and to compacted ones.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::compacted::{DELETED, KEPT};
use super::*;
use crate::store::overlay::Overlay;
use crate::store::{ListPage, StoreError};

/// An archive, and another one of the same shape.
#[derive(Clone, Copy)]
struct Subject {
    sound: &'static Objects,
    other: &'static Objects,
}

/// As it was written; merged, with what was merged still there; and with that deleted.
fn subjects() -> [Subject; 3] {
    let [kept, deleted] = [&*KEPT, &*DELETED].map(|[sound, other]| Subject { sound, other });
    [Subject { sound: &SOUND, other: &OTHER }, kept, deleted]
}

/// Answers so many calls, and is then gone: what a killed repair leaves.
#[derive(Debug)]
struct Dying {
    store: Arc<dyn Store>,
    calls_left: AtomicUsize,
}

impl Dying {
    fn call(&self) -> Result<(), StoreError> {
        let less = |left: usize| left.checked_sub(1);
        match self.calls_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Unavailable {
                key: String::new(),
                location: self.location(),
                reason: "killed".to_owned(),
            }),
        }
    }
}

#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
#[async_trait]
impl Store for Dying {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        self.call()?;
        self.store.put_new(key, bytes).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.call()?;
        self.store.replace(key, bytes).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        self.call()?;
        self.store.get(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        self.call()?;
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        panic!("{key} was deleted")
    }

    fn location(&self) -> String {
        self.store.location()
    }
}

/// Checks that an archive damaged so becomes what it was, wherever a first repair was killed.
#[track_caller]
fn check_killed(subject: Subject, damaged: &Objects, copies: usize) {
    block_on(async {
        for calls in 0.. {
            let store = store_of(damaged).await;
            let dying = Dying { store: Arc::clone(&store), calls_left: AtomicUsize::new(calls) };
            let ended = repair(Arc::new(dying), clock, |_| {}).await.is_ok();
            repair(Arc::clone(&store), clock, |_| {}).await.unwrap();
            let mut all = objects(&store).await;
            let kept = all.keys().filter(|key| key.as_str().starts_with(layout::DAMAGED)).count();
            assert_eq!(kept, copies, "killed at call {calls}: {:#?}", all.keys());
            all.retain(|key, _| !key.as_str().starts_with(layout::DAMAGED));
            assert_eq!(&all, subject.sound, "killed at call {calls}");
            if ended {
                return;
            }
        }
    });
}

#[test]
fn killed_at_any_store_call_and_run_again_the_archive_is_as_it_was() {
    let [written, kept, deleted] = subjects();
    for subject in [written, kept, deleted] {
        let mut damaged = subject.sound.clone();
        damaged.remove(&entry("audit", 1));
        damaged.insert(entry("shop", 5), Bytes::from_static(b"{}"));
        flip(&mut damaged, &entry("shop", 9), "\"bytes\": ", "\"bytes\": 1");
        flip(&mut damaged, &head("shop"), "last_sequence\": 1", "last_sequence\": 2");
        damaged.remove(&head("audit"));
        check_killed(subject, &damaged, 3);
    }
    for subject in [kept, deleted] {
        let mut damaged = subject.sound.clone();
        damaged.remove(&entry("shop", 1));
        damaged.remove(&entry("shop", 11));
        let compaction = |first| layout::compaction_entry(&"shop".parse().unwrap(), first);
        damaged.remove(&compaction(1));
        flip(&mut damaged, &compaction(7), "compacted_at\": \"2", "compacted_at\": \"1");
        damaged.insert(compaction(13), Bytes::new());
        damaged.remove(&head("shop"));
        check_killed(subject, &damaged, 2);
    }
}

/// What happens to one object of those there are.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, Index, u8),
    Truncate(Index, Index),
    Remove(Index),
    /// It becomes that of another archive of the same shape.
    Replace(Index),
    /// It comes from another archive, whose outputs have other keys.
    Add(Index),
}

fn damages(most: usize) -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<Index>;
    let one = prop_oneof![
        (index(), index(), 1..=u8::MAX).prop_map(|(key, at, bits)| Damage::Flip(key, at, bits)),
        (index(), index()).prop_map(|(key, length)| Damage::Truncate(key, length)),
        index().prop_map(Damage::Remove),
        index().prop_map(Damage::Replace),
        index().prop_map(Damage::Add),
    ];
    vec(one, 1..=most)
}

/// Objects of one stream: how many are of another archive, how many are damaged otherwise, and
/// whether one of another archive is where the stream begins.
#[derive(Default)]
struct Tally {
    foreign: BTreeSet<ObjectKey>,
    damaged: BTreeSet<ObjectKey>,
}

impl Tally {
    /// Two objects of another archive may agree with each other, and prove nothing as long as
    /// something of this one stands before them; where it does not, this is the other archive.
    fn is_of_this_archive(&self) -> bool {
        let begins = |key: &ObjectKey| {
            let of_entry =
                || layout::parse_chain_entry(key).or(layout::parse_compaction_entry(key));
            let place = layout::parse_any_segment(key).or_else(of_entry);
            place.is_some_and(|(_, first)| first == 1)
        };
        let (foreign, damaged) = (self.foreign.len(), self.damaged.len());
        foreign < 2 || damaged < 2 && !self.foreign.iter().any(begins)
    }
}

/// Returns what a damaged archive has; nothing if it is rather another archive than this one.
fn apply(
    subject: Subject,
    damages: &[Damage],
    may_be: impl Fn(&ObjectKey) -> bool,
) -> Option<Objects> {
    let Subject { sound, other } = subject;
    let keys: Vec<&ObjectKey> = sound.keys().filter(|key| may_be(key)).collect();
    let others: Vec<&ObjectKey> = other.keys().filter(|key| may_be(key)).collect();
    let mut objects = sound.clone();
    for damage in damages {
        match damage {
            Damage::Flip(key, at, bits) => {
                let key = key.get(&keys);
                let mut bytes = sound[*key].to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
                objects.insert((*key).clone(), bytes.into());
            }
            Damage::Truncate(key, length) => {
                let key = key.get(&keys);
                let bytes = &sound[*key];
                objects.insert((*key).clone(), bytes.slice(..length.index(bytes.len())));
            }
            Damage::Remove(key) => drop(objects.remove(*key.get(&keys))),
            Damage::Replace(key) => {
                let key = *key.get(&keys);
                let output = layout::parse_compacted(key);
                let of_same_place = |other: &&&ObjectKey| {
                    **other == key || output.is_some() && layout::parse_compacted(other) == output
                };
                let bytes = &other[*others.iter().find(of_same_place).unwrap()];
                objects.insert(key.clone(), bytes.clone());
            }
            Damage::Add(key) => {
                let key = *key.get(&others);
                objects.insert(key.clone(), other[key].clone());
            }
        }
    }
    let mut tallies: BTreeMap<StreamName, Tally> = BTreeMap::new();
    for key in sound.keys().chain(objects.keys()) {
        let (before, after) = (sound.get(key), objects.get(key));
        if before == after {
            continue;
        }
        let tally = tallies.entry(layout::stream_of(key).unwrap()).or_default();
        match other.values().any(|bytes| after == Some(bytes)) {
            true => tally.foreign.insert(key.clone()),
            false => tally.damaged.insert(key.clone()),
        };
    }
    tallies.values().all(Tally::is_of_this_archive).then_some(objects)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_damage_to_entries_alone_is_undone(damages in damages(8), subject in 0..3_usize) {
        let subject = subjects()[subject];
        let chain = |key: &ObjectKey| key.as_str().starts_with(layout::CHAIN);
        let damaged = apply(subject, &damages, chain);
        prop_assume!(damaged.is_some());
        let (result, report) = repaired(&damaged.unwrap());
        prop_assert_eq!(&result, subject.sound, "{:#?}", report);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_is_damaged_nothing_is_invented_and_nothing_sound_is_touched(
        damages in damages(6),
        subject in 0..3_usize,
    ) {
        let subject = subjects()[subject];
        let damaged = apply(subject, &damages, |_| true);
        prop_assume!(damaged.is_some());
        let damaged = damaged.unwrap();
        let (result, _) = repaired(&damaged);
        for (key, bytes) in &result {
            let is_head = layout::parse_head(key).is_some();
            let was_sound = damaged.get(key) == subject.sound.get(key);
            let is_sound = Some(bytes) == subject.sound.get(key);
            let is_as_it_was = Some(bytes) == damaged.get(key);
            prop_assert!(is_sound || is_as_it_was || is_head && !was_sound, "{}", key);
            prop_assert!(!was_sound || is_sound, "{}", key);
        }
        let gone = damaged.keys().find(|key| !result.contains_key(*key));
        prop_assert_eq!(gone, None);
        // A dry run tells the same and changes nothing.
        block_on(async {
            let below = store_of(&damaged).await;
            let overlay: Arc<dyn Store> = Arc::new(Overlay::new(Arc::clone(&below)));
            repair(Arc::clone(&overlay), clock, |_| {}).await.unwrap();
            let mut told = objects(&overlay).await;
            told.retain(|key, _| !key.as_str().starts_with(layout::DAMAGED));
            assert_eq!(told, result);
            assert_eq!(objects(&below).await, damaged);
        });
    }
}
