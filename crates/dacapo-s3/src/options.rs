//! From what the user configured to a client.

use std::fmt;
use std::num::NonZeroU16;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{self, Credentials, ProvideCredentials as _, Region};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_types::service_config::ServiceConfigKey;
use dacapo_archive::store::StoreError;

use crate::store::ListingOrder;

/// A server that has not accepted a connection by then will not, or not soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request's last byte to the answer's first. S3 itself answers within a second; a busy
/// server of another make that syncs a segment to spinning disks was seen to take ten.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// One attempt with its upload: a segment of 64 MiB over a line of 5 Mbit/s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
/// All attempts at one request with the waits between them.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(300);
/// The most attempts that `AWS_MAX_ATTEMPTS` can ask for; unset it is the SDK's 3. Who waits
/// longer than these, like the archiver while S3 is down, does so itself and shows it.
const ATTEMPTS_MAX: u32 = 10;
/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// What the signature needs where the server is not Amazon's and has no regions.
const REGION_OF_OTHERS: &str = "us-east-1";

/// Where an archive is on S3 and, where the AWS configuration is not to decide, how to get there.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// What the keys begin with, without `/` at either end; empty for the whole bucket.
    pub prefix: String,
    /// In place of `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3` and the profile's.
    pub endpoint: Option<String>,
    /// In place of `AWS_REGION` and the profile's.
    pub region: Option<String>,
    /// In place of the credentials chain.
    pub credentials: Option<S3Credentials>,
    /// How many objects to ask for in one answer to a listing, in place of the 1,000 that S3 gives
    /// at most; for servers that are slow with many, and for tests.
    pub answer_objects: Option<NonZeroU16>,
}

/// A key pair. `Debug` shows the secret of none.
#[derive(Clone)]
pub struct S3Credentials {
    /// The access key's id.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

impl S3Options {
    /// Returns the options of a bucket and a prefix, the rest left to the AWS configuration.
    pub fn new(bucket: impl Into<String>, prefix: &str) -> Self {
        S3Options {
            bucket: bucket.into(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint: None,
            region: None,
            credentials: None,
            answer_objects: None,
        }
    }

    /// Returns the options of `s3://BUCKET[/PREFIX]`, or nothing if it has not that form.
    pub fn from_url(url: &str) -> Option<Self> {
        let place = url.strip_prefix("s3://")?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        (!bucket.is_empty()).then(|| S3Options::new(bucket, prefix))
    }

    /// Returns `s3://BUCKET[/PREFIX]`.
    pub fn location(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("s3://{}{slash}{}", self.bucket, self.prefix)
    }

    /// Returns a client, having found region and credentials but made no request of S3, and the
    /// order in which its server lists.
    ///
    /// # Errors
    /// `Denied` if no credentials are configured, `Permanent` if no region is and S3 is Amazon's.
    pub(crate) async fn client(&self) -> Result<(Client, ListingOrder), StoreError> {
        let loaded = self.load().await;
        let endpoint = endpoint_of(&loaded);
        let region = match (loaded.region(), &endpoint) {
            (Some(region), _) => region.clone(),
            (None, Some(_)) => Region::from_static(REGION_OF_OTHERS),
            // Asked last, because outside of Amazon's machines it takes seconds to say no.
            (None, None) => {
                ImdsRegionProvider::builder().build().region().await.ok_or_else(|| {
                    let reason = "no AWS region is configured; set `AWS_REGION`, or \
                              `AWS_ENDPOINT_URL` for a server that is not Amazon's";
                    self.permanent(reason)
                })?
            }
        };
        self.find_credentials(&loaded).await?;

        let retry = loaded.retry_config().cloned().unwrap_or_else(RetryConfig::standard);
        let attempts = retry.max_attempts().clamp(1, ATTEMPTS_MAX);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(ANSWER_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        // Checksums of requests are left at the SDK's default, a CRC32 of every put: bodies are in
        // memory, so it goes in a header, which servers that do not know it ignore, and not in a
        // trailer, which some refuse. `AWS_REQUEST_CHECKSUM_CALCULATION=when_required` ends it.
        let (path_style, order) = match endpoint.as_deref().is_some_and(|url| !is_amazons(url)) {
            true => (true, ListingOrder::Unknown),
            false => (false, ListingOrder::OfBytes),
        };
        let config = config::Builder::from(&loaded)
            .region(region)
            .force_path_style(path_style)
            .retry_config(retry.with_max_attempts(attempts).with_max_backoff(BACKOFF_MAX))
            .timeout_config(timeouts)
            .build();
        Ok((Client::from_conf(config), order))
    }

    async fn load(&self) -> SdkConfig {
        let region = RegionProviderChain::first_try(self.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new());
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).region(region);
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(S3Credentials { access_key_id, secret_access_key }) = &self.credentials {
            let given = Credentials::new(access_key_id, secret_access_key, None, None, "options");
            loader = loader.credentials_provider(given);
        }
        loader.load().await
    }

    /// Asks the chain once, now: a request without credentials fails as if the network had.
    async fn find_credentials(&self, loaded: &SdkConfig) -> Result<(), StoreError> {
        let Some(provider) = loaded.credentials_provider() else { return Ok(()) };
        match provider.provide_credentials().await {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::Denied {
                key: self.bucket.clone(),
                location: self.location(),
                reason: format!("no AWS credentials were found: {}", DisplayErrorContext(error)),
            }),
        }
    }

    fn permanent(&self, reason: &str) -> StoreError {
        StoreError::Permanent {
            key: self.bucket.clone(),
            location: self.location(),
            reason: reason.to_owned(),
        }
    }
}

/// Returns the endpoint that the client will use, if one is configured in any of the ways.
fn endpoint_of(loaded: &SdkConfig) -> Option<String> {
    let of_s3 = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all of its parts are given");
    let given = loaded.endpoint_url().map(str::to_owned);
    if loaded.get_origin("endpoint_url").is_client_config() {
        return given;
    }
    loaded.service_config().and_then(|service| service.load_config(of_s3)).or(given)
}

/// Returns whether the endpoint is one of Amazon's own (a VPC's, say), which take the bucket in
/// the host name; other servers seldom have a name for each bucket.
fn is_amazons(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or(host);
    [".amazonaws.com", ".amazonaws.com.cn"].iter().any(|domain| host.ends_with(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        for (url, expected) in [
            ("s3://b", Some("s3://b")),
            ("s3://b/", Some("s3://b")),
            ("s3://b/p", Some("s3://b/p")),
            ("s3://b/p/q/", Some("s3://b/p/q")),
            ("s3://b//p", Some("s3://b/p")),
            ("s3://", None),
            ("s3:///p", None),
            ("file:///p", None),
            ("/p", None),
        ] {
            let location = S3Options::from_url(url).map(|options| options.location());
            assert_eq!(location.as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn only_amazons_endpoints_take_the_bucket_in_the_host() {
        for (url, expected) in [
            ("https://s3.eu-central-1.amazonaws.com", true),
            ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com:443/", true),
            ("https://s3.cn-north-1.amazonaws.com.cn", true),
            ("http://127.0.0.1:9000", false),
            ("https://minio.example.com/amazonaws.com", false),
            ("https://amazonaws.com.example.com", false),
        ] {
            assert_eq!(is_amazons(url), expected, "{url}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = S3Options {
            credentials: Some(S3Credentials {
                access_key_id: "id".to_owned(),
                secret_access_key: "hunter2".to_owned(),
            }),
            ..S3Options::new("b", "")
        };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
