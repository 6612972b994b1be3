//! The stores that are here against the suite, and what lasts.

use proptest::prelude::{Strategy, any, proptest};

use super::MemoryStore;
#[cfg(feature = "sled")]
use super::ProcessedStore;
use super::conformance::{Step, check_steps, check_store, retention};

/// Records of few ids and keys, so that they meet.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = proptest::option::of(("[k-n]", any::<i64>()));
    proptest::collection::vec(("[a-f]", place), 1..40)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

#[test]
fn the_store_in_memory_keeps_its_promises() {
    block_on(check_store(async |retention| MemoryStore::new(retention)));
}

proptest! {
    #[test]
    fn the_store_in_memory_knows_what_it_must(steps in steps(), ids in 1..6_usize, keys in 1..4_usize) {
        let retention = retention(ids, keys);
        block_on(check_steps(&MemoryStore::new(retention), retention, &steps));
    }
}

#[cfg(feature = "sled")]
mod sled {
    use std::path::Path;

    use proptest::prelude::ProptestConfig;
    use tempfile::TempDir;

    use super::{ProcessedStore, block_on, check_steps, check_store, proptest, retention, steps};
    use crate::order::{Known, Position};
    use crate::store::SledStore;

    async fn open(folder: &Path, ids: usize, keys: usize) -> SledStore {
        SledStore::open(folder.to_owned(), retention(ids, keys)).await.unwrap()
    }

    #[test]
    fn the_store_in_sled_keeps_its_promises() {
        let folder = TempDir::new().unwrap();
        block_on(check_store(async |retention| {
            let fresh =
                folder.path().join(format!("{}", std::fs::read_dir(&folder).unwrap().count()));
            SledStore::open(fresh, retention).await.unwrap()
        }));
    }

    proptest! {
        // Each step is flushed to the disk.
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_store_in_sled_knows_what_it_must(steps in steps(), ids in 1..6_usize, keys in 1..4_usize) {
            let folder = TempDir::new().unwrap();
            block_on(async {
                check_steps(&open(folder.path(), ids, keys).await, retention(ids, keys), &steps).await;
            });
        }
    }

    /// Everything that was recorded is there when it is opened again, and ages go on.
    #[test]
    fn what_was_recorded_lasts_and_a_smaller_retention_is_reached() {
        let folder = TempDir::new().unwrap();
        let known = |handled, newest: Option<i64>| Known { handled, newest: newest.map(Position) };
        block_on(async {
            let store = open(folder.path(), 9, 9).await;
            for (n, id) in ["e-1", "e-2", "e-3"].into_iter().enumerate() {
                store.record(id, Some(("k", Position(n as i64)))).await.unwrap();
            }
            drop(store);
            let store = open(folder.path(), 2, 9).await;
            assert_eq!(store.recall("e-1", Some("k")).await.unwrap(), known(true, Some(2)));
            store.record("e-4", None).await.unwrap();
            assert_eq!(store.recall("e-2", None).await.unwrap(), known(false, None));
            assert_eq!(store.recall("e-3", None).await.unwrap(), known(true, None));
        });
    }

    #[test]
    fn what_another_has_open_is_refused_by_its_name() {
        let folder = TempDir::new().unwrap();
        block_on(async {
            tokio::time::pause();
            let _held = open(folder.path(), 1, 1).await;
            let refused = SledStore::open(folder.path().to_owned(), retention(1, 1)).await;
            let told = refused.map(drop).unwrap_err().to_string();
            let expected =
                format!("failed to open the processed events in `{}`", folder.path().display());
            assert_eq!(told, expected);
        });
    }
}
