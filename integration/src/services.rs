//! The servers under test, as the tests ask for them.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use crate::environment as env;

/// The broker over TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Its URL.
    pub url: String,
    /// PEM file of the authority that signed its certificate; no system trusts it.
    pub authority: PathBuf,
}

/// The S3 server.
#[derive(Debug, Clone)]
pub struct S3 {
    /// For `AWS_ENDPOINT_URL`; path-style addressing.
    pub endpoint: String,
    /// A bucket that exists; every test takes a prefix of its own.
    pub bucket: String,
    /// For `AWS_REGION`.
    pub region: String,
    /// For `AWS_ACCESS_KEY_ID`.
    pub access_key: String,
    /// For `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: String,
}

/// Returns the broker's URL, credentials included.
///
/// # Panics
/// The test was not started by `integration/test`.
#[track_caller]
pub fn amqp() -> String {
    required(env::AMQP)
}

/// Returns the broker's URL with another password, and the user's name.
///
/// # Panics
/// The test was not started by `integration/test`, or the URL has no credentials.
#[track_caller]
pub fn amqp_with_password(password: &str) -> (String, String) {
    let url = amqp();
    let (login, place) = url.rsplit_once('@').expect("the broker's URL has credentials");
    let (login, _) = login.rsplit_once(':').expect("the broker's URL has a password");
    let (_, user) = login.rsplit_once('/').expect("the broker's URL has a scheme");
    (format!("{login}:{password}@{place}"), user.to_owned())
}

/// Returns the broker over TLS, where it has that.
pub fn amqps() -> Option<Tls> {
    Some(Tls { url: env::get(env::AMQPS)?, authority: env::get(env::AMQPS_CA)?.into() })
}

/// Returns the URL of the broker's management plugin, credentials included, where it has one.
pub fn management() -> Option<String> {
    env::get(env::MANAGEMENT)
}

/// Returns the S3 server.
///
/// # Panics
/// The test was not started by `integration/test`.
#[track_caller]
pub fn s3() -> S3 {
    S3 {
        endpoint: required(env::S3_ENDPOINT),
        bucket: required(env::S3_BUCKET),
        region: required("AWS_REGION"),
        access_key: required("AWS_ACCESS_KEY_ID"),
        secret_key: required("AWS_SECRET_ACCESS_KEY"),
    }
}

/// Returns a name that no other test, run or user of the servers has.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:016x}", RandomState::new().hash_one(prefix))
}

#[track_caller]
pub(crate) fn required(name: &str) -> String {
    match env::get(name) {
        Some(value) => value,
        None => panic!("`{name}` is not set; run ./integration/test"),
    }
}
