//! Answers, of servers at hand and not at hand.

use super::*;

const LOCATION: &str = "s3://bucket/prefix";

/// Checks which error a status and code are, by the word that begins its `Debug` form.
#[track_caller]
fn check(status: impl Into<Option<u16>>, code: &str, variant: &str) {
    let code = (!code.is_empty()).then(|| code.to_owned());
    let refusal = Refusal { status: status.into(), code, reason: "the words".to_owned() };
    let shown = format!("{:?}", refusal.clone().into_error("key", LOCATION, None));
    assert_eq!(shown.split(' ').next(), Some(variant), "{refusal:?}");
}

#[test]
fn what_a_caller_can_do_follows_from_status_and_code() {
    check(404, "NoSuchKey", "NotFound");
    check(404, "", "NotFound");
    check(404, "NoSuchBucket", "NoSuchStore");
    check(403, "AccessDenied", "Denied");
    check(403, "InvalidAccessKeyId", "Denied");
    check(403, "SignatureDoesNotMatch", "Denied");
    check(403, "", "Denied");
    check(403, "SomethingNew", "Denied");
    check(401, "", "Denied");
    check(400, "ExpiredToken", "Denied");
    check(403, "InvalidObjectState", "Cold");
    check(503, "SlowDown", "Unavailable");
    check(500, "InternalError", "Unavailable");
    check(502, "", "Unavailable");
    check(503, "", "Unavailable");
    check(507, "XMinioStorageFull", "Unavailable");
    check(429, "", "Unavailable");
    check(400, "RequestTimeout", "Unavailable");
    check(409, "OperationAborted", "Unavailable");
    check(None, "", "Unavailable");
    check(200, "", "Unavailable");
    check(501, "NotImplemented", "Permanent");
    check(301, "PermanentRedirect", "Permanent");
    check(400, "AuthorizationHeaderMalformed", "Permanent");
    check(400, "InvalidRequest", "Permanent");
    check(413, "EntityTooLarge", "Permanent");
}

#[test]
fn messages_name_the_object_and_the_next_step() {
    let message = |status: u16, code: &str, class: Option<&str>| {
        let refusal = Refusal {
            status: Some(status),
            code: Some(code.to_owned()),
            reason: format!("{code}: the server's words"),
        };
        refusal.into_error("a/b", LOCATION, class.map(str::to_owned)).to_string()
    };
    assert_eq!(
        message(404, "NoSuchBucket", None),
        "s3://bucket/prefix does not exist; check the bucket's name, the region and \
         `AWS_ENDPOINT_URL`, or create the bucket"
    );
    assert_eq!(
        message(403, "AccessDenied", None),
        "access to `a/b` in s3://bucket/prefix was refused (AccessDenied: the server's words); \
         check the credentials and the policy"
    );
    assert_eq!(
        message(403, "InvalidObjectState", Some("GLACIER")),
        "`a/b` in s3://bucket/prefix is in cold storage (GLACIER); restore it (for example \
         `aws s3api restore-object`) and try again"
    );
    assert_eq!(
        message(301, "PermanentRedirect", None),
        "`a/b` in s3://bucket/prefix: PermanentRedirect: the server's words; check `AWS_REGION` \
         and `AWS_ENDPOINT_URL`"
    );
}

#[test]
fn a_conflict_is_tried_again_and_a_taken_key_is_not() {
    let refusal = |status, code: Option<&str>| Refusal {
        status: Some(status),
        code: code.map(str::to_owned),
        reason: String::new(),
    };
    assert!(refusal(409, Some("ConditionalRequestConflict")).is_conflict());
    assert!(refusal(409, None).is_conflict());
    assert!(!refusal(409, Some("BucketNotEmpty")).is_conflict());
    assert!(!refusal(412, Some("PreconditionFailed")).is_conflict());
    assert!(refusal(412, Some("PreconditionFailed")).is_taken());
    assert!(refusal(412, None).is_taken());
    assert!(!refusal(409, Some("ConditionalRequestConflict")).is_taken());
}

#[test]
fn ranges_are_asked_for_with_an_inclusive_end() {
    assert_eq!(range_header(ByteRange::Full), None);
    assert_eq!(range_header(ByteRange::Span(0, 1)).as_deref(), Some("bytes=0-0"));
    assert_eq!(range_header(ByteRange::Span(5, 20)).as_deref(), Some("bytes=5-19"));
    assert_eq!(range_header(ByteRange::Suffix(8)).as_deref(), Some("bytes=-8"));
}

#[track_caller]
fn check_length(
    range: ByteRange,
    content_range: Option<&str>,
    content_length: impl Into<Option<u64>>,
    expected: Result<Option<u64>, &str>,
) {
    let length = expected_length(range, content_range, content_length.into());
    assert_eq!(length.as_ref().map_err(String::as_str), expected.as_ref().map_err(|error| *error));
}

#[test]
fn an_answer_must_be_the_range_that_was_asked_for() {
    use ByteRange::{Full, Span, Suffix};
    check_length(Full, None, 10, Ok(Some(10)));
    check_length(Full, None, None, Ok(None));
    check_length(Full, Some("bytes 0-4/10"), 5, Err("the server gave a part of the object"));

    let ignored = Err("the server ignored the range that was asked for");
    check_length(Span(2, 5), Some("bytes 2-4/10"), 3, Ok(Some(3)));
    check_length(Span(2, 5), None, 10, ignored);
    let short = Err("bytes 2..12 were asked for and the object has 10");
    check_length(Span(2, 12), Some("bytes 2-9/10"), 8, short);
    let other = Err("bytes 2..5 were asked for and the server gave 0..3");
    check_length(Span(2, 5), Some("bytes 0-2/10"), 3, other);

    check_length(Suffix(4), Some("bytes 6-9/10"), 4, Ok(Some(4)));
    check_length(Suffix(40), Some("bytes 0-9/10"), 10, Ok(Some(10)));
    check_length(Suffix(40), None, 10, Ok(Some(10)));
    check_length(Suffix(4), None, 10, ignored);
    check_length(Suffix(4), None, None, ignored);
    let wrong = Err("the last 4 of 10 bytes were asked for and the server gave 0..4");
    check_length(Suffix(4), Some("bytes 0-3/10"), 4, wrong);
}

#[test]
fn a_content_range_that_is_not_one_is_refused() {
    for text in ["", "bytes", "bytes 0-9/*", "bytes */10", "bytes 9/10", "items 0-9/10"] {
        let expected = format!("the server's content range `{text}` is not readable");
        check_length(ByteRange::Span(0, 10), Some(text), 10, Err(&expected));
    }
    let overflow = format!("bytes 0-{}/10", u64::MAX);
    assert!(expected_length(ByteRange::Span(0, 10), Some(&overflow), None).is_err());
}

#[test]
fn a_certificate_that_is_not_trusted_is_told_with_the_next_step() {
    for (why, hint) in [
        ("UnknownIssuer", "`SSL_CERT_FILE`"),
        ("certificate not valid for name \"h\"", "use the host name"),
        ("certificate expired: verification time 3 (UNIX), but 2", "renew the server's"),
    ] {
        let said = format!("dispatch failure: io error: invalid peer certificate: {why}");
        let told = unanswered(format!("{said} (DispatchFailure(DispatchFailure {{ .. }}))"));
        let expected = format!("TLS: invalid peer certificate: {why}; ");
        assert!(told.starts_with(&expected) && told.contains(hint), "{told}");
        assert!(!told.contains("DispatchFailure"), "{told}");
    }
    assert_eq!(unanswered("dispatch failure".to_owned()), "dispatch failure");
}
