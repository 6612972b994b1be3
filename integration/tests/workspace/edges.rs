//! Dependencies, read from the manifests: the internal ones are those of the code map, and a heavy
//! or telling external one has one home.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use toml::{Table, Value};

const PREFIX: &str = "dacapo-";
/// The composition root depends on all.
const ROOT_CRATE: &str = "dacapo-cli";
/// In no product of ours, so not even the composition root depends on them: one is for tests, one for
/// the services of a platform.
const NOT_IN_THE_ROOT: [&str; 2] = ["dacapo-consumer", "dacapo-fuzz"];

/// An external crate (a final `*` stands for any rest), and the only crates that may depend on it.
const HOMES: [(&str, &[&str]); 17] = [
    ("anyhow", &["dacapo-cli"]),
    ("aws-config", &["dacapo-s3"]),
    ("aws-lc-rs", &["dacapo-drill"]),
    ("aws-sdk-*", &["dacapo-s3"]),
    ("aws-types", &["dacapo-s3"]),
    ("cel", &["dacapo-filter"]),
    ("clap*", &["dacapo-cli"]),
    ("etcd-client", &["dacapo-consumer"]),
    ("governor", &["dacapo-republish"]),
    ("indicatif", &["dacapo-cli"]),
    ("lapin", &["dacapo-amqp"]),
    ("maud", &["dacapo-drill"]),
    ("parquet", &["dacapo-archive"]),
    ("peak_alloc", &["dacapo-fuzz"]),
    ("prost-reflect", &["dacapo-filter"]),
    ("rusqlite", &["dacapo-cli", "dacapo-consumer"]),
    ("sled", &["dacapo-consumer", "dacapo-index"]),
];

type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn internal_dependencies_are_those_of_the_code_map() {
    let crates = crates();
    let mapped = code_map(&crates);
    let mut wrong = Vec::new();
    for (name, manifest) in &crates {
        let actual: BTreeSet<String> = names(manifest, &["dependencies", "build-dependencies"])
            .into_iter()
            .filter(|dependency| dependency.starts_with(PREFIX))
            .collect();
        let Some(listed) = mapped.get(name) else {
            wrong.push(format!("`{name}` is not in the code map"));
            continue;
        };
        for extra in actual.difference(listed) {
            wrong.push(format!("`{name}` depends on `{extra}`, which the code map does not list"));
        }
        for missing in listed.difference(&actual) {
            wrong.push(format!("the code map lists `{name}` → `{missing}`, which is not there"));
        }
    }
    wrong.extend(
        mapped
            .keys()
            .filter(|name| !crates.contains_key(*name))
            .map(|name| format!("the code map lists `{name}`, which is not there")),
    );
    assert!(wrong.is_empty(), "docs/architecture.md, code map:\n{}", wrong.join("\n"));
}

#[test]
fn arrows_form_no_circle() {
    let crates = crates();
    let mut left = code_map(&crates);
    while !left.is_empty() {
        let inner: Vec<String> = left
            .iter()
            .filter(|(_, targets)| targets.iter().all(|target| !left.contains_key(target)))
            .map(|(name, _)| name.clone())
            .collect();
        assert!(!inner.is_empty(), "these depend on each other: {left:?}");
        left.retain(|name, _| !inner.contains(name));
    }
}

#[test]
fn external_crates_stay_at_home() {
    let mut wrong = Vec::new();
    for (name, manifest) in crates() {
        let kinds = ["dependencies", "build-dependencies", "dev-dependencies"];
        for dependency in names(&manifest, &kinds) {
            wrong.extend(
                HOMES
                    .iter()
                    .filter(|(pattern, homes)| {
                        matches(pattern, &dependency) && !homes.contains(&name.as_str())
                    })
                    .map(|(_, homes)| {
                        format!("`{name}` depends on `{dependency}`, whose home is {homes:?}")
                    }),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_home_is_lived_in() {
    let crates = crates();
    for (pattern, homes) in HOMES {
        for home in homes {
            let manifest = crates.get(*home).unwrap_or_else(|| panic!("there is no `{home}`"));
            let names = names(manifest, &["dependencies", "dev-dependencies"]);
            assert!(
                names.iter().any(|name| matches(pattern, name)),
                "`{home}` does not depend on `{pattern}`; correct HOMES"
            );
        }
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

/// Returns every crate's manifest by its name, which is its directory's.
fn crates() -> BTreeMap<String, Table> {
    let directory = super::root().join("crates");
    fs::read_dir(&directory)
        .expect("the crates' directory")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            let manifest: Table = super::read(path.join("Cargo.toml"))
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(manifest["package"]["name"].as_str(), Some(name.as_str()));
            (name, manifest)
        })
        .collect()
}

/// Returns the packages that a manifest names in its tables of these kinds, for any target.
fn names(manifest: &Table, kinds: &[&str]) -> BTreeSet<String> {
    let for_targets = manifest
        .get("target")
        .and_then(Value::as_table)
        .into_iter()
        .flat_map(Table::values)
        .filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(for_targets)
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flatten()
        .map(|(name, value)| {
            let renamed = value.get("package").and_then(Value::as_str);
            renamed.unwrap_or(name).to_owned()
        })
        .collect()
}

/// Returns the edges that the document lists.
fn code_map(crates: &BTreeMap<String, Table>) -> Edges {
    super::table_under("Code map")
        .into_iter()
        .map(|row| {
            let [name, _, targets] = row.as_slice() else { panic!("not three cells: {row:?}") };
            let name = name.trim_matches('`').to_owned();
            let targets = match targets.as_str() {
                "–" => BTreeSet::new(),
                "all" => {
                    assert_eq!(name, ROOT_CRATE, "only the composition root depends on all");
                    let product = |other: &&String| {
                        **other != name && !NOT_IN_THE_ROOT.contains(&other.as_str())
                    };
                    crates.keys().filter(product).cloned().collect()
                }
                list => list.split(", ").map(|short| format!("{PREFIX}{short}")).collect(),
            };
            (name, targets)
        })
        .collect()
}
