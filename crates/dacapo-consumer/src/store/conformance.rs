//! The suite that every [`ProcessedStore`] must pass.

use std::num::NonZeroUsize;

use super::{ProcessedStore, Retention};
use crate::order::{Known, Position};

/// One record: an id, and the key and position with it.
pub type Step = (String, Option<(String, i64)>);

/// Checks every promise of [`ProcessedStore`] but that it lasts. `open` returns a fresh, empty store
/// at each call.
///
/// # Panics
/// At the first promise that is not kept.
pub async fn check_store<S: ProcessedStore>(open: impl AsyncFn(Retention) -> S) {
    nothing_is_known_at_first(&open(retention(9, 9)).await).await;
    what_was_recorded_is_known(&open(retention(9, 9)).await).await;
    the_newest_of_a_key_never_goes_back(&open(retention(9, 9)).await).await;
    what_was_recorded_first_is_forgotten_first(&open(retention(2, 1)).await).await;
}

/// Checks that a store, fresh and empty, knows after each step what it must, and no more.
///
/// # Panics
/// At the first step after which it does not.
pub async fn check_steps<S: ProcessedStore>(store: &S, retention: Retention, steps: &[Step]) {
    // As simply as it can be said: everything in order of its last record.
    let (mut ids, mut keys): (Vec<&str>, Vec<(&str, i64)>) = (Vec::new(), Vec::new());
    for (id, place) in steps {
        let recorded = place.as_ref().map(|(key, position)| (key.as_str(), Position(*position)));
        store.record(id, recorded).await.expect("it records");
        ids.retain(|other| other != id);
        ids.push(id);
        if let Some((key, position)) = place {
            let before = keys.iter().find(|(other, _)| other == key).map(|(_, newest)| *newest);
            keys.retain(|(other, _)| other != key);
            keys.push((key, before.map_or(*position, |before| before.max(*position))));
        }
        ids.drain(..ids.len().saturating_sub(retention.ids.get()));
        keys.drain(..keys.len().saturating_sub(retention.keys.get()));
        for (id, place) in steps {
            let key = place.as_ref().map(|(key, _)| key.as_str());
            let newest = keys.iter().find(|(other, _)| Some(*other) == key);
            let newest = newest.map(|(_, newest)| Position(*newest));
            let expected = Known { handled: ids.contains(&id.as_str()), newest };
            let known = store.recall(id, key).await.expect("it recalls");
            assert_eq!(known, expected, "of {id} and {key:?}");
        }
    }
}

/// Returns a retention.
///
/// # Panics
/// One of them is 0.
pub fn retention(ids: usize, keys: usize) -> Retention {
    let at_least_one = |count| NonZeroUsize::new(count).expect("at least one is kept");
    Retention { ids: at_least_one(ids), keys: at_least_one(keys) }
}

fn known(handled: bool, newest: Option<i64>) -> Known {
    Known { handled, newest: newest.map(Position) }
}

async fn record(store: &impl ProcessedStore, id: &str, place: Option<(&str, i64)>) {
    let place = place.map(|(key, position)| (key, Position(position)));
    store.record(id, place).await.expect("it records");
}

async fn recall(store: &impl ProcessedStore, id: &str, key: Option<&str>) -> Known {
    store.recall(id, key).await.expect("it recalls")
}

async fn nothing_is_known_at_first(store: &impl ProcessedStore) {
    assert_eq!(recall(store, "e-1", None).await, known(false, None));
    assert_eq!(recall(store, "e-1", Some("k")).await, known(false, None));
}

async fn what_was_recorded_is_known(store: &impl ProcessedStore) {
    record(store, "e-1", Some(("k", 5))).await;
    record(store, "e-2", None).await;
    record(store, "", Some(("", -1))).await;
    assert_eq!(recall(store, "e-1", Some("k")).await, known(true, Some(5)));
    assert_eq!(recall(store, "e-1", None).await, known(true, None), "it was not asked for");
    assert_eq!(recall(store, "e-2", Some("k")).await, known(true, Some(5)));
    assert_eq!(recall(store, "e-3", Some("other")).await, known(false, None));
    assert_eq!(recall(store, "", Some("")).await, known(true, Some(-1)));
    assert_eq!(recall(store, "k", Some("e-1")).await, known(false, None), "a key is no id");
}

async fn the_newest_of_a_key_never_goes_back(store: &impl ProcessedStore) {
    for (id, position, newest) in [("e-1", 5, 5), ("e-2", 4, 5), ("e-3", 6, 6), ("e-3", -7, 6)] {
        record(store, id, Some(("k", position))).await;
        assert_eq!(recall(store, id, Some("k")).await, known(true, Some(newest)));
    }
}

async fn what_was_recorded_first_is_forgotten_first(store: &impl ProcessedStore) {
    for (id, key) in [("e-1", "a"), ("e-2", "b"), ("e-1", "b"), ("e-3", "c")] {
        record(store, id, Some((key, 1))).await;
    }
    assert_eq!(recall(store, "e-2", Some("b")).await, known(false, None));
    assert_eq!(recall(store, "e-1", Some("a")).await, known(true, None), "it came again");
    assert_eq!(recall(store, "e-3", Some("c")).await, known(true, Some(1)));
}
