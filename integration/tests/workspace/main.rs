//! The workspace against its own rules: generated code is current, internal
//! dependencies are those of `docs/architecture.md`, every file says what it is.
//!
//! Needs no server, and with `--no-default-features` depends on no dacapo crate,
//! so that it can judge and regenerate what does not compile.

mod alerts;
mod breaking;
mod edges;
mod generated;
mod limits;
mod planted;
mod prose;
mod releases;
mod retention;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace root")
}

/// Returns the text of a file of the workspace.
fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the rows of the first table after the heading `title` of docs/architecture.md, cell by
/// cell, without its two head rows.
fn table_under(title: &str) -> Vec<Vec<String>> {
    let document = read("docs/architecture.md");
    let heading = format!("## {title}");
    let rows: Vec<Vec<String>> = document
        .lines()
        .skip_while(|line| *line != heading)
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "docs/architecture.md has no table under `{heading}`");
    rows
}

/// Returns what stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}
