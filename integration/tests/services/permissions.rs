//! The least permissions that docs/operations.md states are enough, and none of them is too many:
//! each command is run with those of its row, and with every one of them taken away.

mod broker;
mod bucket;

/// The chapter that the tests read.
fn operations() -> String {
    let path = dacapo_integration::environment::root().join("docs/operations.md");
    std::fs::read_to_string(path).expect("the document is there")
}
