//! What can be proven is rebuilt as it was, what cannot is left, and nothing is ever worse.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::store::ListPage;
use crate::store::overlay::Overlay;
use crate::testing::{Objects, block_on, clock, extend, objects, store_of, written};
use crate::verify::verify;

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

#[test]
fn killed_at_any_store_call_and_run_again_the_archive_is_as_it_was() {
    let mut damaged = SOUND.clone();
    damaged.remove(&entry("audit", 1));
    damaged.insert(entry("shop", 5), Bytes::from_static(b"{}"));
    flip(&mut damaged, &entry("shop", 9), "\"bytes\": ", "\"bytes\": 1");
    flip(&mut damaged, &head("shop"), "10", "11");
    damaged.remove(&head("audit"));
    block_on(async {
        for calls in 0.. {
            let store = store_of(&damaged).await;
            let dying = Dying { store: Arc::clone(&store), calls_left: AtomicUsize::new(calls) };
            let ended = repair(Arc::new(dying), clock, |_| {}).await.is_ok();
            repair(Arc::clone(&store), clock, |_| {}).await.unwrap();
            let mut all = objects(&store).await;
            let kept = all.keys().filter(|key| key.as_str().starts_with(layout::DAMAGED)).count();
            assert_eq!(kept, 3, "killed at call {calls}: {:#?}", all.keys());
            all.retain(|key, _| !key.as_str().starts_with(layout::DAMAGED));
            assert_eq!(all, *SOUND, "killed at call {calls}");
            if ended {
                return;
            }
        }
    });
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

/// What happens to one object of those there are.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, Index, u8),
    Truncate(Index, Index),
    Remove(Index),
    /// It becomes that of another archive with the same keys.
    Replace(Index),
}

fn damages(most: usize) -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<Index>;
    let one = prop_oneof![
        (index(), index(), 1..=u8::MAX).prop_map(|(key, at, bits)| Damage::Flip(key, at, bits)),
        (index(), index()).prop_map(|(key, length)| Damage::Truncate(key, length)),
        index().prop_map(Damage::Remove),
        index().prop_map(Damage::Replace),
    ];
    vec(one, 1..=most)
}

fn apply(damages: &[Damage], may_be: impl Fn(&ObjectKey) -> bool) -> Objects {
    let keys: Vec<&ObjectKey> = SOUND.keys().filter(|key| may_be(key)).collect();
    let mut objects = SOUND.clone();
    for damage in damages {
        match damage {
            Damage::Flip(key, at, bits) => {
                let key = key.get(&keys);
                let mut bytes = SOUND[*key].to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
                objects.insert((*key).clone(), bytes.into());
            }
            Damage::Truncate(key, length) => {
                let key = key.get(&keys);
                let bytes = &SOUND[*key];
                objects.insert((*key).clone(), bytes.slice(..length.index(bytes.len())));
            }
            Damage::Remove(key) => drop(objects.remove(*key.get(&keys))),
            Damage::Replace(key) => {
                let key = key.get(&keys);
                objects.insert((*key).clone(), OTHER[*key].clone());
            }
        }
    }
    objects
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_damage_to_entries_alone_is_undone(damages in damages(8)) {
        let damaged = apply(&damages, |key| key.as_str().starts_with(layout::CHAIN));
        let (result, report) = repaired(&damaged);
        prop_assert_eq!(&result, &*SOUND, "{:#?}", report);
    }

    #[test]
    fn whatever_is_damaged_nothing_is_invented_and_nothing_sound_is_touched(damages in damages(6)) {
        // Two objects of another archive that agree with each other prove that one.
        let foreign = |damage: &&Damage| matches!(damage, Damage::Replace(_));
        prop_assume!(damages.iter().filter(foreign).count() < 2);
        let damaged = apply(&damages, |_| true);
        let (result, _) = repaired(&damaged);
        for (key, bytes) in &result {
            let is_head = layout::parse_head(key).is_some();
            let was_sound = damaged.get(key) == SOUND.get(key);
            let is_sound = Some(bytes) == SOUND.get(key);
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
