//! The file store: the suite, and what only files can get wrong.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::store::conformance::check_store;

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

async fn store() -> (TempDir, FileStore) {
    let directory = TempDir::new().unwrap();
    let store = FileStore::create(directory.path()).await.unwrap();
    (directory, store)
}

async fn listed(store: &FileStore, prefix: &str) -> Vec<String> {
    let page = store.list(prefix, None).await.unwrap();
    page.objects.iter().map(|object| object.key.to_string()).collect()
}

fn temporaries(directory: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.path().join(TEMPORARY)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn conforms() {
    let (_directory, store) = store().await;
    check_store(Arc::new(store)).await;
}

#[tokio::test]
async fn two_stores_of_one_directory_are_one_store() {
    let (directory, first) = store().await;
    let second = FileStore::open(directory.path()).await.unwrap();
    let taken = key("chain/s/1");
    for round in 0..50 {
        let taken = key(&format!("{taken}-{round}"));
        let (a, b) = tokio::join!(
            first.put_new(&taken, Bytes::from_static(b"first")),
            second.put_new(&taken, Bytes::from_static(b"second")),
        );
        let winner = match (a.unwrap(), b.unwrap()) {
            (Put::Created, Put::Exists) => "first",
            (Put::Exists, Put::Created) => "second",
            both => panic!("exactly one must win, was {both:?}"),
        };
        assert_eq!(second.get(&taken, ByteRange::Full).await.unwrap(), winner);
    }
}

#[tokio::test]
async fn nothing_temporary_stays_or_shows() {
    let (directory, store) = store().await;
    store.put_new(&key("a"), Bytes::from_static(b"1")).await.unwrap();
    store.put_new(&key("a"), Bytes::from_static(b"2")).await.unwrap();
    store.replace(&key("a"), Bytes::from_static(b"3")).await.unwrap();
    assert_eq!(temporaries(&directory), Vec::<PathBuf>::new());

    fs::write(directory.path().join(TEMPORARY).join("left-by-a-kill"), "part").unwrap();
    assert_eq!(listed(&store, "").await, ["a"]);
    assert_eq!(listed(&store, ".").await, Vec::<String>::new());
    assert_eq!(listed(&store, ".dacapo-tmp/").await, Vec::<String>::new());
    let refused = store.put_new(&key(".dacapo-tmp/x"), Bytes::new()).await;
    assert!(matches!(refused, Err(StoreError::Permanent { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_failed_put_leaves_nothing() {
    let (directory, store) = store().await;
    store.put_new(&key("a"), Bytes::from_static(b"object")).await.unwrap();
    store.put_new(&key("d/x"), Bytes::from_static(b"object")).await.unwrap();
    for (taken, reason) in [
        ("a/b", "a part of its path is an object, or not a directory"),
        ("a/b/c", "a part of its path is an object, or not a directory"),
        ("d", "a directory has its name"),
    ] {
        let put = store.put_new(&key(taken), Bytes::from_static(b"other")).await.unwrap_err();
        let replace = store.replace(&key(taken), Bytes::from_static(b"other")).await.unwrap_err();
        let location = store.location();
        assert_eq!(put.to_string(), format!("`{taken}` in {location}: {reason}"));
        assert_eq!(replace.to_string(), put.to_string());
    }
    assert_eq!(temporaries(&directory), Vec::<PathBuf>::new());
    assert_eq!(listed(&store, "").await, ["a", "d/x"]);
}

#[tokio::test]
async fn only_old_remains_are_removed() {
    let (directory, store) = store().await;
    store.put_new(&key("a"), Bytes::new()).await.unwrap();
    let (old, young) = (
        directory.path().join(TEMPORARY).join("old"),
        directory.path().join(TEMPORARY).join("young"),
    );
    fs::write(&young, "a writer may be at it").unwrap();
    let file = File::create(&old).unwrap();
    let written = fs::metadata(&young).unwrap().modified().unwrap();
    file.set_modified(written - REMAINS_AGE - Duration::from_secs(60)).unwrap();

    FileStore::open(directory.path()).await.unwrap();
    assert!(old.exists(), "opening for reading changes nothing");
    FileStore::create(directory.path()).await.unwrap();
    assert_eq!(temporaries(&directory), [young]);
}

#[tokio::test]
async fn a_name_left_by_a_killed_process_is_passed_over() {
    let (directory, store) = store().await;
    let taken: Vec<PathBuf> = (0..20)
        .map(|n| format!("{}-{:016x}-{n}", std::process::id(), store.root.salt))
        .map(|name| directory.path().join(TEMPORARY).join(name))
        .collect();
    taken.iter().for_each(|path| fs::write(path, "remains").unwrap());
    store.put_new(&key("a"), Bytes::from_static(b"new")).await.unwrap();
    assert_eq!(store.get(&key("a"), ByteRange::Full).await.unwrap(), "new");
    assert_eq!(fs::read(&taken[1]).unwrap(), b"remains");
}

#[tokio::test]
async fn links_are_not_followed() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "not ours").unwrap();
    let (directory, store) = store().await;
    symlink(outside.path(), directory.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), directory.path().join("file")).unwrap();

    assert_eq!(listed(&store, "").await, Vec::<String>::new());
    assert_eq!(listed(&store, "out/").await, Vec::<String>::new());
    for linked in ["out/secret", "file", "out/new"] {
        let linked = key(linked);
        let read = store.get(&linked, ByteRange::Full).await;
        assert!(matches!(read, Err(StoreError::Permanent { .. })), "{read:?}");
        let put = store.put_new(&linked, Bytes::new()).await;
        assert!(matches!(put, Err(StoreError::Permanent { .. })), "{put:?}");
        let replaced = store.replace(&linked, Bytes::new()).await;
        assert!(matches!(replaced, Err(StoreError::Permanent { .. })), "{replaced:?}");
        let deleted = store.delete(&linked).await;
        assert!(matches!(deleted, Err(StoreError::Permanent { .. })), "{deleted:?}");
    }
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"not ours");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_root_may_be_a_link() {
    let (directory, store) = store().await;
    store.put_new(&key("a/b"), Bytes::from_static(b"1")).await.unwrap();
    let links = TempDir::new().unwrap();
    symlink(directory.path(), links.path().join("archive")).unwrap();
    let linked = FileStore::open(links.path().join("archive")).await.unwrap();
    assert_eq!(linked.get(&key("a/b"), ByteRange::Full).await.unwrap(), "1");
}

#[tokio::test]
async fn a_missing_directory_is_created_only_for_writing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("new/archive");
    let error = FileStore::open(&path).await.unwrap_err();
    let expected = format!(
        "file://{} does not exist; check the path and whether its disk is mounted; writing to it \
         for the first time creates it",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert!(!path.exists());
    FileStore::create(&path).await.unwrap();
    assert_eq!(
        FileStore::open(&path).await.unwrap().location(),
        format!("file://{}", path.display())
    );
}

#[tokio::test]
async fn a_file_in_the_place_of_the_store_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    for error in
        [FileStore::open(&path).await.unwrap_err(), FileStore::create(&path).await.unwrap_err()]
    {
        assert!(matches!(error, StoreError::NoSuchStore { .. }), "{error}");
    }
    FileStore::create(path.join("below")).await.unwrap_err();
}

#[tokio::test]
async fn a_root_that_vanished_is_neither_empty_nor_made_again() {
    let (directory, store) = store().await;
    store.put_new(&key("a/b"), Bytes::new()).await.unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    check_gone(&store).await;
    assert!(!directory.path().exists());
}

/// What is left in the place of an unmounted disk is an empty directory.
#[tokio::test]
async fn another_directory_in_the_place_of_the_root_is_not_the_store() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("archive");
    let store = FileStore::create(&path).await.unwrap();
    store.put_new(&key("a/b"), Bytes::new()).await.unwrap();
    fs::rename(&path, parent.path().join("unmounted")).unwrap();
    fs::create_dir(&path).unwrap();
    check_gone(&store).await;
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing is written beneath");
}

async fn check_gone(store: &FileStore) {
    let outcomes = [
        store.put_new(&key("a/c"), Bytes::new()).await.map(drop),
        store.replace(&key("a/c"), Bytes::new()).await,
        store.get(&key("a/b"), ByteRange::Full).await.map(drop),
        store.list("", None).await.map(drop),
        store.list("a/", None).await.map(drop),
        store.delete(&key("a/b")).await,
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(StoreError::NoSuchStore { .. })), "{outcome:?}");
    }
}

#[test]
fn errors_say_what_can_be_done() {
    let of = |kind: ErrorKind| failed("k", "file:///a".to_owned(), &io::Error::from(kind));
    for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::Interrupted] {
        assert!(of(kind).is_transient(), "{kind:?}");
    }
    for descriptors in [23, 24] {
        let error = io::Error::from_raw_os_error(descriptors);
        assert!(failed("k", String::new(), &error).is_transient());
    }
    assert!(matches!(of(ErrorKind::PermissionDenied), StoreError::Denied { .. }));
    assert!(matches!(of(ErrorKind::ReadOnlyFilesystem), StoreError::Permanent { .. }));
    assert_eq!(
        of(ErrorKind::StorageFull).to_string(),
        "file:///a did not take or give `k`: no storage space"
    );
}

/// As two containers that share a volume do: both processes have the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stores_of_one_directory_in_processes_of_one_id_do_not_take_each_others_files() {
    let (directory, _store) = store().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = FileStore::open(directory.path()).await.unwrap();
        writers.spawn(async move {
            for number in 0..200 {
                let bytes = Bytes::from(format!("{writer} {number}"));
                store.replace(&key(&format!("heads/{writer}")), bytes.clone()).await.unwrap();
                let new = key(&format!("chain/{writer}/{number}"));
                assert_eq!(store.put_new(&new, bytes).await.unwrap(), Put::Created);
            }
        });
    }
    writers.join_all().await;
    assert_eq!(temporaries(&directory), Vec::<PathBuf>::new());
}
