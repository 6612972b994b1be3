//! The variables between the harness and the tests; the only place that reads them.
//!
//! Whoever sets one before `integration/test` brings a server of their own.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// `amqp://user:password@host:port/vhost` of the broker; its user must be allowed everything.
pub const AMQP: &str = "DACAPO_TEST_AMQP";
/// The same broker over TLS; absent where the broker was brought without it.
pub const AMQPS: &str = "DACAPO_TEST_AMQPS";
/// PEM file of the authority that signed the certificate of [`AMQPS`].
pub const AMQPS_CA: &str = "DACAPO_TEST_AMQPS_CA";
/// `http://user:password@host:port` of the management plugin; absent where there is none.
pub const MANAGEMENT: &str = "DACAPO_TEST_MANAGEMENT";
/// `http://host:port` of the S3 server; credentials and region are in the AWS tools' variables.
pub const S3_ENDPOINT: &str = "DACAPO_TEST_S3_ENDPOINT";
/// A bucket that exists and that the tests may fill.
pub const S3_BUCKET: &str = "DACAPO_TEST_S3_BUCKET";
/// A Python with the packages of `integration/witness/requirements.txt`.
pub const PYTHON: &str = "DACAPO_TEST_PYTHON";
/// The `dacapo` binary under test.
pub const BIN: &str = "DACAPO_TEST_BIN";
/// Bytes of the archive that a tenfold one is compared with in the tests of memory.
pub const MEMORY_BYTES: &str = "DACAPO_TEST_MEMORY_BYTES";

/// Returns the variable's value, or nothing if it is not set or empty.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment what to run on")]
pub fn get(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the product's settings among the variables of this process. They are a developer's own,
/// and must not reach a command of a test.
pub fn settings() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| is_setting(name))
}

/// What the harness is told is none, and neither is which planted bug is awake.
fn is_setting(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("DACAPO_") && !name.starts_with("DACAPO_TEST_") && name != "DACAPO_PLANTED"
}

/// Returns the workspace's root.
pub fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Returns the folder for everything that runs and tools leave behind.
pub fn scratch() -> PathBuf {
    root().join("target/integration")
}
