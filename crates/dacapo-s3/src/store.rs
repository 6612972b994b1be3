//! The store itself: requests, and their retries beyond what the SDK does.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{self, ResponseChecksumValidation};
use aws_sdk_s3::error::{DisplayErrorContext, SdkError};
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::Object;
use bytes::{Bytes, BytesMut};
use dacapo_archive::store::{ByteRange, ListPage, ObjectKey, ObjectMeta, Put, Store, StoreError};

use crate::S3Options;
use crate::answer::{Refusal, expected_length, range_header};
use crate::listing::{Answer, Ask, Depth, Step, Walk};

/// How often a conditional put is tried that met another one under way. S3 decides between the two
/// within milliseconds; together with the waits this is over a second.
const CONFLICT_ATTEMPTS_MAX: u32 = 8;
/// The wait after the first conflict; doubled after each further one.
const CONFLICT_WAIT: Duration = Duration::from_millis(10);
/// How often a get is tried whose body broke off; the SDK retries only until the body begins.
const BODY_ATTEMPTS_MAX: u32 = 3;
/// The wait after a body that broke off; doubled after the second.
const BODY_WAIT: Duration = Duration::from_millis(200);
/// One body: a segment of 64 MiB over a line of 5 Mbit/s. A line that stands still is given up
/// sooner, by the SDK.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// What is set aside for a body before it comes; a header that promises more is not believed.
const RESERVED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Objects in one answer to a listing: the most that S3 gives.
const ANSWER_OBJECTS_MAX: u16 = 1_000;

/// Keeps objects in a bucket, below a prefix.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty or ending in `/`.
    prefix: String,
    location: String,
    order: ListingOrder,
    answer_objects: i32,
}

/// In which order the server lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListingOrder {
    /// That of the keys' bytes, as Amazon documents.
    OfBytes,
    /// That of the keys' bytes or that of directories' names.
    Unknown,
}

/// How a body ended.
enum Body {
    Whole(Bytes),
    /// Another attempt may bring the rest.
    Broken(String),
}

impl S3Store {
    /// Finds region, endpoint and credentials where the AWS tools find them. No request is made of
    /// S3: that the bucket exists and may be used shows with the first.
    ///
    /// # Errors
    /// `Denied` if no credentials are configured, `Permanent` if no region is and S3 is Amazon's.
    pub async fn connect(options: S3Options) -> Result<S3Store, StoreError> {
        let (client, order) = options.client().await?;
        let location = options.location();
        let prefix = options.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let answer_objects =
            i32::from(options.answer_objects.map_or(ANSWER_OBJECTS_MAX, |n| n.get()));
        Ok(S3Store { client, bucket: options.bucket, prefix, location, order, answer_objects })
    }

    fn full_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Asks for a range; nothing means that no byte of the object is in it.
    async fn request(
        &self,
        key: &ObjectKey,
        range: ByteRange,
    ) -> Result<Option<GetObjectOutput>, StoreError> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.full_key(key));
        let outcome = match range_header(range) {
            None => request.send().await,
            Some(header) => {
                // Some servers send the checksum of the whole object with a part of it.
                let unchecked = config::Config::builder()
                    .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
                request.range(header).customize().config_override(unchecked).send().await
            }
        };
        match outcome {
            Ok(output) => Ok(Some(output)),
            Err(error) => {
                let refusal = Refusal::of(&error);
                if refusal.is_out_of_range() {
                    return Ok(None);
                }
                Err(refusal.into_error(key.as_str(), &self.location, storage_class(&error)))
            }
        }
    }

    async fn get_once(&self, key: &ObjectKey, range: ByteRange) -> Result<Body, StoreError> {
        let Some(output) = self.request(key, range).await? else {
            return match range {
                ByteRange::Span(start, end) => {
                    let reason =
                        format!("bytes {start}..{end} were asked for and the object ends before");
                    Err(self.permanent(key.as_str(), reason))
                }
                // Only an empty object has no last bytes.
                ByteRange::Full | ByteRange::Suffix(_) => Ok(Body::Whole(Bytes::new())),
            };
        };
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        let expected = expected_length(range, output.content_range(), length)
            .map_err(|reason| self.permanent(key.as_str(), reason))?;
        match tokio::time::timeout(BODY_TIMEOUT, receive(output.body, expected)).await {
            Ok(body) => Ok(body),
            Err(_) => {
                let seconds = BODY_TIMEOUT.as_secs();
                Ok(Body::Broken(format!("the body did not come within {seconds} seconds")))
            }
        }
    }

    /// Returns whether the object is there and is exactly `bytes`; nothing if it is not there.
    async fn is_there(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Option<bool>, StoreError> {
        match self.get(key, ByteRange::Full).await {
            Ok(there) => Ok(Some(there == *bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn permanent(&self, key: &str, reason: String) -> StoreError {
        StoreError::Permanent { key: key.to_owned(), location: self.location.clone(), reason }
    }

    fn unavailable(&self, key: &ObjectKey, reason: String) -> StoreError {
        StoreError::Unavailable { key: key.to_string(), location: self.location.clone(), reason }
    }

    /// Returns what a listed object is below the prefix; one that is none of ours (a folder's
    /// marker, say) is nothing.
    fn meta(&self, object: &Object) -> Option<ObjectMeta> {
        let key = object.key()?.strip_prefix(&self.prefix)?.parse().ok()?;
        let size = object.size().and_then(|size| u64::try_from(size).ok())?;
        Some(ObjectMeta { key, size })
    }
}

#[async_trait]
impl Store for S3Store {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        for attempt in 0..CONFLICT_ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(CONFLICT_WAIT * 2_u32.pow(attempt - 1)).await;
            }
            let put = self
                .client
                .put_object()
                .bucket(&self.bucket)
                .key(self.full_key(key))
                .if_none_match("*")
                .body(ByteStream::from(bytes.clone()))
                .send()
                .await;
            let Err(error) = put else { return Ok(Put::Created) };
            let refusal = Refusal::of(&error);
            if refusal.is_taken() {
                // It may have been taken by an attempt of ours whose answer was lost, in the SDK
                // or in a proxy on the way.
                match self.is_there(key, &bytes).await? {
                    Some(true) => return Ok(Put::Created),
                    Some(false) => return Ok(Put::Exists),
                    None => tracing::debug!(%key, "object was deleted while it was put"),
                }
            } else if refusal.is_conflict() {
                tracing::debug!(%key, reason = refusal.reason, "another put was under way");
            } else {
                return Err(refusal.into_error(key.as_str(), &self.location, None));
            }
        }
        let reason = format!("others were writing it in each of {CONFLICT_ATTEMPTS_MAX} attempts");
        Err(self.unavailable(key, reason))
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.client.put_object().bucket(&self.bucket).key(self.full_key(key));
        match put.body(ByteStream::from(bytes)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::of(&error).into_error(key.as_str(), &self.location, None)),
        }
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        let asked = match range {
            ByteRange::Span(start, end) if start >= end => {
                let reason = format!("the span {start}..{end} is empty");
                return Err(self.permanent(key.as_str(), reason));
            }
            // HTTP has no way to ask for the last 0 bytes; one shows whether the object is there.
            ByteRange::Suffix(0) => ByteRange::Suffix(1),
            range => range,
        };
        let mut wait = BODY_WAIT;
        let mut attempt = 1;
        loop {
            match self.get_once(key, asked).await? {
                Body::Whole(_) if range == ByteRange::Suffix(0) => return Ok(Bytes::new()),
                Body::Whole(bytes) => return Ok(bytes),
                Body::Broken(reason) if attempt == BODY_ATTEMPTS_MAX => {
                    return Err(self.unavailable(key, reason));
                }
                Body::Broken(reason) => tracing::debug!(%key, reason, "body broke off"),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
            attempt += 1;
        }
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        let page = match self.order {
            ListingOrder::OfBytes => self.list_as_given(prefix, after).await?,
            ListingOrder::Unknown => {
                let mut walk = Walk::new(prefix, after);
                loop {
                    match walk.step() {
                        Step::Ask(ask) => walk.answer(self.ask(ask).await?),
                        Step::Done(page) => break page,
                    }
                }
            }
        };
        // Who reads a listing relies on its order, and would pass over objects without a sign.
        let keys = after.into_iter().chain(page.objects.iter().map(|object| &object.key));
        match keys.clone().zip(keys.skip(1)).find(|(key, next)| key >= next) {
            None => Ok(page),
            Some((key, next)) => {
                let reason = format!(
                    "the server lists `{next}` after `{key}`; listings in such an order cannot be used"
                );
                Err(self.permanent(named(prefix), reason))
            }
        }
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key));
        let Err(error) = request.send().await else { return Ok(()) };
        match Refusal::of(&error).into_error(key.as_str(), &self.location, None) {
            StoreError::NotFound { .. } => Ok(()),
            error => Err(error),
        }
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}

impl S3Store {
    /// Lists on a server whose order is that of the keys' bytes.
    async fn list_as_given(
        &self,
        prefix: &str,
        after: Option<&ObjectKey>,
    ) -> Result<ListPage, StoreError> {
        let mut ask = Ask {
            prefix: prefix.to_owned(),
            depth: Depth::Whole,
            start_after: after.map(ObjectKey::to_string),
            continuation: None,
        };
        loop {
            let Answer { objects, continuation, .. } = self.ask(ask.clone()).await?;
            // Whoever asks for the next page needs a last object to ask after.
            if !objects.is_empty() || continuation.is_none() {
                return Ok(ListPage { objects, more: continuation.is_some() });
            }
            ask.continuation = continuation;
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, StoreError> {
        let Ask { prefix, depth, start_after, continuation } = ask;
        let below = |text: &str| format!("{}{text}", self.prefix);
        let page = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(below(&prefix))
            .max_keys(self.answer_objects)
            .set_delimiter((depth == Depth::Level).then(|| "/".to_owned()))
            .set_start_after(start_after.as_deref().map(below))
            .set_continuation_token(continuation)
            .send()
            .await
            .map_err(|error| {
                match Refusal::of(&error).into_error(named(&prefix), &self.location, None) {
                    // A listing of nothing is empty; only a bucket can be missing.
                    StoreError::NotFound { location, .. } => {
                        let hint = "check the bucket's name and `AWS_ENDPOINT_URL`".to_owned();
                        StoreError::NoSuchStore { location, hint }
                    }
                    error => error,
                }
            })?;
        let directories = page.common_prefixes().iter().filter_map(|directory| {
            Some(directory.prefix()?.strip_prefix(&self.prefix)?.to_owned())
        });
        let answer = Answer {
            objects: page.contents().iter().filter_map(|object| self.meta(object)).collect(),
            directories: directories.collect(),
            continuation: page.next_continuation_token().map(str::to_owned),
        };
        if page.is_truncated().unwrap_or(false) && answer.continuation.is_none() {
            let reason = "the server's listing says that it goes on, and not where";
            return Err(self.permanent(named(&prefix), reason.to_owned()));
        }
        Ok(answer)
    }
}

/// Returns how a listing's prefix is named in a message.
fn named(prefix: &str) -> &str {
    if prefix.is_empty() { "." } else { prefix }
}

fn storage_class(error: &SdkError<GetObjectError, config::http::HttpResponse>) -> Option<String> {
    match error.as_service_error()? {
        GetObjectError::InvalidObjectState(state) => {
            let tier = state.access_tier().map(|tier| tier.as_str());
            state.storage_class().map(|class| class.as_str()).or(tier).map(str::to_owned)
        }
        _ => None,
    }
}

/// Reads a body, and no more of it than was expected.
async fn receive(mut body: ByteStream, expected: Option<u64>) -> Body {
    let reserved = expected.unwrap_or_default().min(RESERVED_BYTES_MAX) as usize;
    let mut bytes = BytesMut::with_capacity(reserved);
    loop {
        match body.try_next().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => break,
            Err(error) => return Body::Broken(DisplayErrorContext(error).to_string()),
        }
        if expected.is_some_and(|expected| bytes.len() as u64 > expected) {
            break;
        }
    }
    match expected {
        Some(expected) if expected != bytes.len() as u64 => {
            let came = bytes.len();
            Body::Broken(format!("{expected} bytes were announced and {came} came"))
        }
        _ => Body::Whole(bytes.freeze()),
    }
}

#[cfg(test)]
mod tests;
