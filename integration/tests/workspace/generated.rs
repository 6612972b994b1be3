//! The committed protobuf code is what `schemas/` generates today.
//!
//! `just schemas` writes it: it runs this test with `DACAPO_WRITE_GENERATED=1`.

use std::fs;

const SCHEMAS: [&str; 2] =
    ["dacapo/archive/v1/properties.proto", "dacapo/envelope/v1/envelope.proto"];
const GENERATED: [&str; 2] = ["dacapo.archive.v1.rs", "dacapo.envelope.v1.rs"];

#[test]
fn protobuf_code_is_what_the_schemas_generate() {
    let root = super::root();
    let schemas = root.join("schemas");
    let descriptors = protox::compile(SCHEMAS.map(|file| schemas.join(file)), [&schemas])
        .expect("the schemas compile");
    let fresh = tempfile::tempdir().expect("a folder for the fresh code");
    prost_build::Config::new()
        .out_dir(fresh.path())
        .compile_fds(descriptors)
        .expect("prost generates code");

    let committed = root.join("crates/dacapo-event/src/gen");
    for name in GENERATED {
        let generated = fs::read_to_string(fresh.path().join(name)).expect("prost wrote the file");
        if write_asked_for() {
            fs::write(committed.join(name), &generated).expect("the committed file is writable");
        }
        let current = fs::read_to_string(committed.join(name)).unwrap_or_default();
        assert!(current == generated, "{name} is not what schemas/ generates; run `just schemas`");
    }
}

#[expect(clippy::disallowed_methods, reason = "a developer's switch of this test")]
fn write_asked_for() -> bool {
    std::env::var_os("DACAPO_WRITE_GENERATED").is_some()
}
