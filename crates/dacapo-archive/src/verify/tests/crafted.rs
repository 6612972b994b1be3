//! Objects that no accident makes, and some that only a file store can have.

use std::os::unix::fs::symlink;

use super::*;
use crate::chain::ChainEntry;
use crate::compaction;
use crate::store::file::FileStore;
use crate::testing::{Inputs, Objects, block_on, compacted, objects, store_of};

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn shop() -> StreamName {
    "shop".parse().unwrap()
}

async fn chain_entry(store: &Arc<dyn Store>, first: Sequence) -> ChainEntry {
    chain::entry(&**store, &shop(), first).await.unwrap().unwrap()
}

async fn put_chain_entry(store: &Arc<dyn Store>, first: Sequence, entry: &ChainEntry) {
    store.replace(&layout::chain_entry(&shop(), first), entry.to_bytes()).await.unwrap();
}

/// The outputs of the stream, in order.
fn outputs(objects: &Objects) -> Vec<ObjectKey> {
    let is_ours =
        |key: &&ObjectKey| layout::parse_compacted(key).is_some_and(|(stream, _)| stream == shop());
    objects.keys().filter(is_ours).cloned().collect()
}

#[test]
fn a_chain_entry_that_names_an_output_is_found() {
    let whole = compacted("word", Inputs::Kept);
    block_on(async {
        let store = store_of(&whole).await;
        let output = compaction::entry(&*store, &shop(), 1).await.unwrap().unwrap().output;
        put_chain_entry(&store, 1, &output).await;
        let entry = layout::chain_entry(&shop(), 1);
        check(&problems(&store, &[]).await, &entry, "where nothing of its place can be");
    });
}

#[test]
fn a_compaction_entry_that_names_an_output_by_another_digest_is_found() {
    let whole = compacted("word", Inputs::Deleted);
    block_on(async {
        let store = store_of(&whole).await;
        let mut entry = compaction::entry(&*store, &shop(), 1).await.unwrap().unwrap();
        let bytes = store.get(&entry.output.segment, ByteRange::Full).await.unwrap();
        let first_input = layout::first_input_of(&entry.output.segment).unwrap();
        let renamed = layout::compacted(&first_input, &dacapo_event::Digest::of(b"x")).unwrap();
        store.replace(&renamed, bytes).await.unwrap();
        entry.output.segment = renamed.clone();
        store.replace(&layout::compaction_entry(&shop(), 1), entry.to_bytes()).await.unwrap();
        check(&problems(&store, &[]).await, &renamed, "where nothing of its place can be");
    });
}

/// Each is what the other's output was made of, and the only copy of it.
#[test]
fn outputs_whose_entries_are_swapped_are_problems() {
    let mut objects = compacted("word", Inputs::Deleted);
    let outputs = outputs(&objects);
    let [one, other] = [&outputs[0], &outputs[1]].map(|output| {
        let (_, first) = layout::parse_compacted(output).unwrap();
        layout::compaction_entry(&shop(), first)
    });
    let before = objects.insert(one.clone(), objects[&other].clone()).unwrap();
    objects.insert(other, before);
    block_on(async {
        let found = problems(&store_of(&objects).await, &[]).await;
        check(&found, &outputs[0], "is named by nothing now");
        check(&found, &outputs[1], "is named by nothing now");
    });
}

/// Both streams have one that begins with their first event.
#[test]
fn outputs_of_two_streams_whose_entries_are_swapped_are_problems() {
    let mut objects = compacted("word", Inputs::Deleted);
    let one = layout::compaction_entry(&shop(), 1);
    let other = layout::compaction_entry(&"audit".parse().unwrap(), 1);
    let before = objects.insert(one.clone(), objects[&other].clone()).unwrap();
    objects.insert(other.clone(), before);
    block_on(async {
        let found = problems(&store_of(&objects).await, &[]).await;
        check(&found, &one, "where nothing of its place can be");
        check(&found, &other, "where nothing of its place can be");
        check(&found, &outputs(&objects)[0], "is named by nothing now");
    });
}

/// The output before it still stands for all that it was made of.
#[test]
fn an_entry_within_an_output_is_the_only_problem() {
    let whole = compacted("word", Inputs::Deleted);
    for stray in [b"garbage".to_vec(), whole[&layout::compaction_entry(&shop(), 1)].to_vec()] {
        let mut objects = whole.clone();
        let key = layout::compaction_entry(&shop(), 3);
        assert!(objects.insert(key.clone(), stray.into()).is_none(), "{key} is free");
        block_on(async {
            let found = problems(&store_of(&objects).await, &[]).await;
            let [only] = found.as_slice() else { panic!("{found:#?}") };
            assert!(only.starts_with(key.as_str()), "{only}");
        });
    }
}

#[test]
fn a_damaged_last_entry_is_told_once() {
    block_on(async {
        let store = archive(3).await;
        let entry = layout::chain_entry(&shop(), 5);
        change(&store, &entry, |bytes| bytes.truncate(20)).await;
        let found = problems(&store, &[]).await;
        let about = found.iter().filter(|line| line.starts_with(entry.as_str())).count();
        assert_eq!(about, 1, "{found:#?}");
    });
}

/// Segments are missing with it, so that later outputs are looked for.
#[test]
fn a_damaged_last_compaction_entry_is_told_once() {
    let mut objects = compacted("word", Inputs::Deleted);
    let (_, first) = layout::parse_compacted(outputs(&objects).last().unwrap()).unwrap();
    let entry = layout::compaction_entry(&shop(), first);
    objects.retain(|key, _| *key <= entry || !key.as_str().starts_with("compactions/shop/"));
    objects.insert(entry.clone(), b"garbage".to_vec().into());
    block_on(async {
        let found = problems(&store_of(&objects).await, &[]).await;
        assert!(found.iter().any(|line| line.contains("is missing")), "{found:#?}");
        let about = found.iter().filter(|line| line.starts_with(entry.as_str())).count();
        assert_eq!(about, 1, "{found:#?}");
    });
}

/// What an entry claims is not what is read.
#[test]
fn an_entry_that_claims_all_bytes_there_are_is_found() {
    block_on(async {
        let store = archive(3).await;
        let mut entry = chain_entry(&store, 3).await;
        entry.size = u64::MAX;
        put_chain_entry(&store, 3, &entry).await;
        check(&problems(&store, &[]).await, &entry.segment, "was written with");
    });
}

/// The chain cannot be followed to where the segments are.
#[test]
fn segments_past_an_entry_of_another_place_are_not_passed_over() {
    block_on(async {
        let store = archive(6).await;
        let mut entry = chain_entry(&store, 7).await;
        entry.first = 3;
        put_chain_entry(&store, 7, &entry).await;
        for first in [9, 11] {
            store.delete(&layout::chain_entry(&shop(), first)).await.unwrap();
        }
        let last = keys(&store, "segments/").await.pop().unwrap();
        let found = problems(&store, &[]).await;
        check(&found, &layout::chain_entry(&shop(), 7), "is the entry of sequences 3 to 8");
        check(&found, &last, "chain entries are gone");
    });
}

#[test]
fn an_entry_of_no_bytes_whose_segment_is_gone_says_that_it_is_missing() {
    block_on(async {
        let store = archive(2).await;
        let mut entry = chain_entry(&store, 3).await;
        entry.size = 0;
        put_chain_entry(&store, 3, &entry).await;
        check(&problems(&store, &[]).await, &entry.segment, "has ");
        store.delete(&entry.segment).await.unwrap();
        check(&problems(&store, &[]).await, &entry.segment, "is missing");
    });
}

/// An archive in a folder, as it was written and as it was compacted.
async fn in_a_folder(objects: &Objects) -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(FileStore::open(folder.path()).await.unwrap());
    for (key, bytes) in objects {
        store.replace(key, bytes.clone()).await.unwrap();
    }
    (folder, store)
}

/// Every kind of object, one at a time.
#[test]
fn a_link_or_a_folder_in_the_place_of_an_object_is_found() {
    let whole = compacted("word", Inputs::Deleted);
    block_on(async {
        for prefix in layout::OF_STREAMS {
            let key = whole.keys().find(|key| key.as_str().starts_with(prefix)).unwrap();
            let (folder, store) = in_a_folder(&whole).await;
            let path = folder.path().join(key.as_str());
            let elsewhere = folder.path().join("elsewhere");
            std::fs::rename(&path, &elsewhere).unwrap();
            symlink(&elsewhere, &path).unwrap();
            let found = problems(&store, &[]).await;
            assert!(!found.is_empty(), "a link at {key}");
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            let found = problems(&store, &[]).await;
            assert!(!found.is_empty(), "a folder at {key}");
        }
    });
}

/// No file can have such a name, and nobody may read that folder.
#[test]
fn an_entry_that_names_an_impossible_file_is_found() {
    block_on(async {
        let long = "x".repeat(300);
        for named in [
            format!(
                "segments/stream=shop/date=2026-11-23/hour={long}/00000000000000000003.parquet"
            ),
            format!("segments/stream=shop/{long}.parquet"),
            "lost+found/x".to_owned(),
            ".dacapo-tmp/x".to_owned(),
            "heads/shop.json".to_owned(),
        ] {
            let (_folder, store) = in_a_folder(&objects(&archive(3).await).await).await;
            let mut entry = chain_entry(&store, 3).await;
            entry.segment = key(&named);
            put_chain_entry(&store, 3, &entry).await;
            let problem = "where nothing of its place can be";
            check(&problems(&store, &[]).await, &entry.segment, problem);
        }
    });
}

#[test]
fn a_compaction_entry_that_is_a_link_does_not_end_a_verification() {
    let whole = compacted("word", Inputs::Deleted);
    block_on(async {
        let (folder, store) = in_a_folder(&whole).await;
        let entry = layout::compaction_entry(&shop(), 1);
        std::fs::remove_file(folder.path().join(entry.as_str())).unwrap();
        symlink("/nowhere", folder.path().join(entry.as_str())).unwrap();
        let found = problems(&store, &[]).await;
        check(&found, &outputs(&whole)[0], "symbolic link");
    });
}
