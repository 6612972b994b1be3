//! Releases of `schemas/`: nothing that was released is broken, and what is in a release is what its
//! schemas generate.
//!
//! `just schema-release` makes one: it runs this test with `DACAPO_RELEASE_SCHEMAS=1`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use protox::prost::Message as _;
use protox::prost_reflect::prost_types::FileDescriptorSet;

use super::breaking::breaking;

/// In a release: all schemas, with what they import.
const DESCRIPTOR_SET: &str = "schemas.binpb";
/// In a release: the Rust code of all packages, with the module that holds them.
const RUST: &str = "rust";
const MODULES: &str = "mod.rs";

#[test]
fn nothing_that_was_released_is_broken_and_a_release_is_made_where_one_is_asked_for() {
    let now = current();
    let last = releases().pop_last();
    if let Some((number, folder)) = &last {
        let broken = breaking(&descriptor_set(folder), &now);
        assert!(
            broken.is_empty(),
            "these break whoever has release {number} of the schemas; take them back, or make a new \
             version of the package (schemas/README.md):\n{}",
            broken.join("\n")
        );
    }
    let number = last.as_ref().map_or(1, |(number, _)| number + 1);
    let is_new = last.is_none_or(|(_, folder)| descriptor_set(&folder) != now);
    if release_asked_for() && is_new {
        let folder = super::root().join(format!("schemas/releases/{number}"));
        fs::create_dir_all(folder.join(RUST)).expect("the folder can be made");
        fs::write(folder.join(DESCRIPTOR_SET), now.encode_to_vec()).expect("it can be written");
        for (name, code) in generate(&now) {
            fs::write(folder.join(RUST).join(name), code).expect("it can be written");
        }
    }
}

#[test]
fn every_release_has_the_code_that_its_descriptor_set_generates() {
    let releases = releases();
    assert!(!releases.is_empty(), "there is a release; `just schema-release` makes one");
    for (number, folder) in releases {
        let committed = files(&folder.join(RUST)).into_iter().map(|path| {
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            (name, super::read(path))
        });
        assert_eq!(
            committed.collect::<BTreeMap<_, _>>(),
            generate(&descriptor_set(&folder)),
            "release {number}"
        );
    }
}

/// Returns the schemas as they are now.
fn current() -> FileDescriptorSet {
    let root = super::root().join("schemas");
    let mut schemas = Vec::new();
    collect(&root, &mut schemas);
    schemas.sort();
    let mut set = protox::compile(schemas, [root]).expect("the schemas compile");
    // Comments and places are not what a release is about.
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    set
}

/// Returns the releases by their number.
fn releases() -> BTreeMap<u32, PathBuf> {
    let folders = files(&super::root().join("schemas/releases")).into_iter();
    let numbered = folders.map(|folder| {
        let name = folder.file_name().expect("it has a name").to_string_lossy().into_owned();
        (name.parse().unwrap_or_else(|_| panic!("`{name}` is no number of a release")), folder)
    });
    numbered.collect()
}

fn descriptor_set(release: &Path) -> FileDescriptorSet {
    let bytes = fs::read(release.join(DESCRIPTOR_SET)).expect("a release has a descriptor set");
    FileDescriptorSet::decode(bytes.as_slice()).expect("it is one")
}

/// Returns the Rust code of all packages by its file.
fn generate(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().expect("a folder for the code");
    prost_build::Config::new()
        .out_dir(folder.path())
        .include_file(MODULES)
        .compile_fds(set.clone())
        .expect("prost generates code");
    let generated = files(folder.path()).into_iter().map(|path| {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("code is text"))
    });
    generated.collect()
}

/// Returns what is in a folder; nothing if it is not there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn collect(folder: &Path, schemas: &mut Vec<PathBuf>) {
    for path in files(folder) {
        if path.is_dir() {
            collect(&path, schemas);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            schemas.push(path);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a developer's switch of this test")]
fn release_asked_for() -> bool {
    std::env::var_os("DACAPO_RELEASE_SCHEMAS").is_some()
}
