//! The archive's [`Store`](dacapo_archive::store::Store) on S3, and on servers that speak its
//! protocol: [`S3Store`]. The only crate that knows AWS.
//!
//! Configured like the AWS tools: environment, profiles, credentials chain. What is decided here
//! and not there (path-style addressing, deadlines, checksums) is in `options`; what the
//! server's answers mean is in `answer`, and how a listing in any order becomes one in the order of
//! bytes in `listing`, as plain functions.
//!
//! Invariant: whatever server answers, a read gives exactly the bytes asked for or an error, and
//! a listing is in order or an error.
//!
//! It asks for no more than `s3:GetObject`, `s3:PutObject`, `s3:ListBucket` and, for the writers'
//! probe, `s3:DeleteObject`.

mod answer;
mod listing;
mod options;
mod store;

pub use options::{S3Credentials, S3Options};
pub use store::S3Store;
