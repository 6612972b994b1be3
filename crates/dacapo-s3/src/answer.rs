//! What a server's answer means: plain functions, so that the answers of servers at hand and not
//! at hand can be tested alike.

use std::ops::Range;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use dacapo_archive::store::{ByteRange, StoreError};

/// A request that did not succeed, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The HTTP status, unless there was no answer.
    pub(crate) status: Option<u16>,
    /// S3's error code, `NoSuchKey` for example.
    pub(crate) code: Option<String>,
    /// The server's words, or what happened to the connection.
    pub(crate) reason: String,
}

impl Refusal {
    pub(crate) fn of<E>(error: &SdkError<E, HttpResponse>) -> Refusal
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let service = error.as_service_error();
        let code = service.and_then(|error| error.code()).map(str::to_owned);
        let message = service.and_then(|error| error.message()).filter(|words| !words.is_empty());
        let reason = match (&code, message, status) {
            (Some(code), Some(message), _) => format!("{code}: {message}"),
            (Some(code), None, _) => code.clone(),
            (None, _, Some(status)) if service.is_some() => format!("HTTP status {status}"),
            (None, ..) => unanswered(DisplayErrorContext(error).to_string()),
        };
        Refusal { status, code, reason }
    }

    /// Returns whether the key of a write-once put was taken.
    pub(crate) fn is_taken(&self) -> bool {
        self.status == Some(412) || self.has_code("PreconditionFailed")
    }

    /// Returns whether another conditional put of the key was under way.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status == Some(409)
            && (self.code.is_none()
                || self.has_code("ConditionalRequestConflict")
                || self.has_code("OperationAborted"))
    }

    /// Returns whether no byte of the object is in the range asked for.
    pub(crate) fn is_out_of_range(&self) -> bool {
        self.status == Some(416) || self.has_code("InvalidRange")
    }

    /// Returns the error that this is to the caller; `class` is the storage class, if the answer
    /// named one.
    pub(crate) fn into_error(self, key: &str, location: &str, class: Option<String>) -> StoreError {
        let (key, location) = (key.to_owned(), location.to_owned());
        let reason = self.reason;
        match (self.status, self.code.as_deref().unwrap_or_default()) {
            (_, "NoSuchBucket") => {
                let hint = "check the bucket's name, the region and `AWS_ENDPOINT_URL`, or create \
                            the bucket";
                StoreError::NoSuchStore { location, hint: hint.to_owned() }
            }
            (_, "InvalidObjectState") => {
                let class = class.unwrap_or_else(|| "storage class not named".to_owned());
                StoreError::Cold { key, location, class }
            }
            (
                _,
                "AccessDenied"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "RequestTimeTooSkewed"
                | "AllAccessDisabled"
                | "AccountProblem"
                | "UnauthorizedAccess",
            ) => StoreError::Denied { key, location, reason },
            (_, "SlowDown" | "RequestTimeout" | "ThrottlingException" | "Throttling") => {
                StoreError::Unavailable { key, location, reason }
            }
            (Some(301 | 307 | 308), _)
            | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
                let reason = format!("{reason}; check `AWS_REGION` and `AWS_ENDPOINT_URL`");
                StoreError::Permanent { key, location, reason }
            }
            (Some(401 | 403), _) => StoreError::Denied { key, location, reason },
            (Some(404), _) => StoreError::NotFound { key, location },
            // The server does not know this request and will not learn it by being asked again.
            (Some(501), _) => StoreError::Permanent { key, location, reason },
            (Some(408 | 409 | 429 | 500..), _) | (None, _) => {
                StoreError::Unavailable { key, location, reason }
            }
            // An answer that broke off, whatever its status promised.
            (Some(..=299), _) => StoreError::Unavailable { key, location, reason },
            _ => StoreError::Permanent { key, location, reason },
        }
    }

    fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

/// Returns what happened to the connection, in the SDK's words unless there is more to say: how a
/// server's certificate gets trusted is nothing that another attempt finds out.
fn unanswered(words: String) -> String {
    const CERTIFICATE: &str = "invalid peer certificate: ";
    let Some((_, why)) = words.split_once(CERTIFICATE) else { return words };
    // After that the SDK shows the same once more, as a structure.
    let why = why.split(" (DispatchFailure").next().unwrap_or(why);
    let hint = match why.to_lowercase() {
        why if why.contains("expired") || why.contains("not valid yet") => {
            "renew the server's certificate, or set this machine's clock if that is wrong"
        }
        _ => {
            "name the file of its authority in the environment variable `SSL_CERT_FILE`, or use the \
             host name that is in its certificate"
        }
    };
    format!("TLS: {CERTIFICATE}{why}; {hint}")
}

/// Returns the `Range` header of a get, or none for the whole object.
pub(crate) fn range_header(range: ByteRange) -> Option<String> {
    match range {
        ByteRange::Full => None,
        // The header's end is inclusive.
        ByteRange::Span(start, end) => Some(format!("bytes={start}-{}", end.saturating_sub(1))),
        ByteRange::Suffix(bytes) => Some(format!("bytes=-{bytes}")),
    }
}

/// Returns how many bytes the body of an answer must have, or nothing if the answer does not say
/// (then the whole object was asked for).
///
/// # Errors
/// What is wrong, if this is no answer to `range`.
pub(crate) fn expected_length(
    range: ByteRange,
    content_range: Option<&str>,
    content_length: Option<u64>,
) -> Result<Option<u64>, String> {
    let ignored = || Err("the server ignored the range that was asked for".to_owned());
    let said = content_range.map(|text| {
        parse_content_range(text)
            .ok_or_else(|| format!("the server's content range `{text}` is not readable"))
    });
    match (range, said.transpose()?) {
        (ByteRange::Full, None) => Ok(content_length),
        (ByteRange::Full, Some(_)) => Err("the server gave a part of the object".to_owned()),
        (ByteRange::Span(..), None) => ignored(),
        (ByteRange::Span(start, end), Some((given, size))) => {
            if given == (start..end) {
                Ok(Some(end - start))
            } else if end > size {
                Err(format!("bytes {start}..{end} were asked for and the object has {size}"))
            } else {
                let (first, last) = (given.start, given.end);
                Err(format!(
                    "bytes {start}..{end} were asked for and the server gave {first}..{last}"
                ))
            }
        }
        // The whole of a small object may come without a word about ranges.
        (ByteRange::Suffix(bytes), None) => match content_length {
            Some(length) if length <= bytes => Ok(Some(length)),
            _ => ignored(),
        },
        (ByteRange::Suffix(bytes), Some((given, size))) => {
            let expected = size.saturating_sub(bytes)..size;
            if given == expected {
                Ok(Some(given.end - given.start))
            } else {
                let (first, last) = (given.start, given.end);
                Err(format!(
                    "the last {bytes} of {size} bytes were asked for and the server gave {first}..{last}"
                ))
            }
        }
    }
}

/// Returns the offsets and the object's size in `bytes 0-9/100`.
fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (span, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    Some((first..last.checked_add(1)?, size))
}

#[cfg(test)]
mod tests;
