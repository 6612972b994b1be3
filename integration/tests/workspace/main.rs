//! The workspace against its own rules: generated code is current, internal
//! dependencies are those of `docs/architecture.md`, every file says what it is.
//!
//! Needs no server, and depends on no dacapo crate, so that it can judge and
//! regenerate what does not compile.

mod generated;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace root")
}
