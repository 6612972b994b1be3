//! What every source file and the architecture document must say of themselves.

use std::fs;
use std::path::{Path, PathBuf};

/// Most files stay under half of this; past it a reader is lost, and the file is split.
const LINES_MAX: usize = 800;

#[test]
fn every_source_file_says_what_lives_in_it() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "these do not open with `//!`: {silent:#?}");
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "these have more than {LINES_MAX} lines: {long:#?}");
}

#[test]
fn no_lint_is_silenced_without_a_reason_and_no_test_is_left_out() {
    const BANNED: [&str; 3] = ["#[allow(", "#![allow(", "#[ignore"];
    let found: Vec<_> = sources()
        .into_iter()
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| BANNED.iter().any(|ban| line.trim_start().starts_with(ban)))
                .map(|(number, line)| format!("{}:{}: {line}", path.display(), number + 1))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "use `#[expect(…, reason = …)]`; tests run:\n{}", found.join("\n"));
}

/// A row names files, and may name test functions in them: `` `path.rs` (`a_test`, `another`) ``.
#[test]
fn every_invariant_names_what_keeps_it() {
    for row in super::table_under("Invariants") {
        let [invariant, keeper] = row.as_slice() else { panic!("not two cells: {row:?}") };
        let (files, functions): (Vec<_>, Vec<_>) =
            super::quoted(keeper).into_iter().partition(|word| word.contains(['/', '.']));
        assert!(!files.is_empty(), "“{invariant}” names no file that keeps it");
        let text: String = files.iter().map(super::read).collect();
        for function in functions {
            assert!(
                text.contains(&format!("fn {function}(")),
                "“{invariant}”: there is no test `{function}` in {files:?}"
            );
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = super::root();
    let mut documents = vec![root.join("README.md")];
    collect(&root.join("docs"), "md", &mut documents);
    let mut broken = Vec::new();
    for document in documents.iter().filter(|document| document.exists()) {
        let folder = document.parent().expect("it lies in a folder");
        for target in link_targets(&super::read(document)) {
            if !folder.join(&target).exists() {
                broken.push(format!("{}: `{target}`", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to files that are not there:\n{}", broken.join("\n"));
}

/// Returns the local files that `[text](file#part)` links to.
fn link_targets(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default().to_owned())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

/// Returns every source file that is written by hand, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for folder in ["crates", "integration"] {
        collect(&super::root().join(folder), "rs", &mut paths);
    }
    assert!(paths.len() > 10, "the sources were not found: {paths:?}");
    paths.into_iter().map(|path| (path.clone(), super::read(path))).collect()
}

/// Adds the files below `folder` that end in `.extension`, but for generated ones.
fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if !path.ends_with("src/gen") && !path.ends_with("target") {
                collect(&path, extension, found);
            }
        } else if path.extension().is_some_and(|ending| ending == extension) {
            found.push(path);
        }
    }
}
