//! What lies in the S3 server under test, read the way the product reads it.

use anyhow::{Context, Result};
use dacapo_archive::store::{ByteRange, Store};
use dacapo_s3::{S3Credentials, S3Options, S3Store};

use crate::secrets::{Secrets, Told};
use crate::services::{self, S3};

/// Returns the server's options for what lies below a prefix.
pub fn options(prefix: &str) -> S3Options {
    let S3 { endpoint, bucket, region, access_key, secret_key } = services::s3();
    S3Options {
        endpoint: Some(endpoint),
        region: Some(region),
        credentials: Some(S3Credentials {
            access_key_id: access_key,
            secret_access_key: secret_key,
        }),
        ..S3Options::new(bucket, prefix)
    }
}

/// Returns the objects below a prefix that tell a secret. Bodies and headers of events in segments
/// are compressed, and so not seen; a segment's footer is, and every other object.
///
/// # Errors
/// The server does not answer.
pub fn told_by_objects(prefix: &str, secrets: &Secrets) -> Result<Vec<(String, Told)>> {
    // The caller may be within a runtime, and one does not block in another.
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("no runtime")?.block_on(told(prefix, secrets))
        });
        looking.join().expect("looking does not panic")
    })
}

async fn told(prefix: &str, secrets: &Secrets) -> Result<Vec<(String, Told)>> {
    let store = S3Store::connect(options(prefix)).await?;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list("", after.as_ref()).await?;
        for object in &page.objects {
            let bytes = store.get(&object.key, ByteRange::Full).await?;
            found.extend(secrets.told(&bytes).map(|told| (object.key.to_string(), told)));
        }
        match page.objects.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(found),
        }
    }
}
