//! Answers that a real server gives seldom or never, from one that says what it is told to.

use dacapo_archive::store::StoreError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::S3Credentials;

/// What becomes of one request.
enum Reply {
    /// The status line's rest, further headers, and the body.
    Answer(&'static str, &'static [&'static str], &'static str),
    /// As if more of the body were to come than does.
    Short(&'static str),
    /// The connection ends without an answer.
    Lost,
}

/// Runs `operation` on a store whose server replies as told; returns the outcome and the
/// requests' first lines.
async fn with_replies<T>(
    replies: &[Reply],
    operation: impl AsyncFnOnce(S3Store) -> T,
) -> (T, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = S3Options {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        region: Some("us-east-1".to_owned()),
        credentials: Some(S3Credentials {
            access_key_id: "id".to_owned(),
            secret_access_key: "secret".to_owned(),
        }),
        ..S3Options::new("bucket", "p")
    };
    let store = S3Store::connect(options).await.unwrap();
    let serve = async {
        let mut requests = Vec::new();
        for reply in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.push(receive_request(&mut stream).await);
            stream.write_all(&bytes_of(reply)).await.unwrap();
            stream.shutdown().await.unwrap();
        }
        requests
    };
    // A request that was not foreseen waits for ever, hence the deadline.
    let both = async { tokio::join!(operation(store), serve) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("as many requests as replies")
}

/// Reads a request with its body and returns its first line.
async fn receive_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return head.lines().next().unwrap().replace(" HTTP/1.1", "");
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "the request broke off");
    }
}

fn bytes_of(reply: &Reply) -> Vec<u8> {
    let (status, headers, body, length) = match reply {
        Reply::Answer(status, headers, body) => (*status, *headers, *body, body.len()),
        Reply::Short(body) => ("200 OK", &[][..], *body, body.len() + 10),
        Reply::Lost => return Vec::new(),
    };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    );
    text.into_bytes()
}

const TAKEN: Reply = Reply::Answer(
    "412 Precondition Failed",
    &[],
    "<Error><Code>PreconditionFailed</Code><Message>taken</Message></Error>",
);
const CONFLICT: Reply = Reply::Answer(
    "409 Conflict",
    &[],
    "<Error><Code>ConditionalRequestConflict</Code><Message>busy</Message></Error>",
);
const CREATED: Reply = Reply::Answer("200 OK", &[], "");
const PUT: &str = "PUT /bucket/p/k?x-id=PutObject";
const GET: &str = "GET /bucket/p/k?x-id=GetObject";

fn key() -> ObjectKey {
    "k".parse().unwrap()
}

async fn put(replies: &[Reply]) -> (Result<Put, StoreError>, Vec<String>) {
    let bytes = Bytes::from_static(b"mine");
    with_replies(replies, async |store| store.put_new(&key(), bytes).await).await
}

async fn get(range: ByteRange, replies: &[Reply]) -> (Result<Bytes, StoreError>, Vec<String>) {
    with_replies(replies, async |store| store.get(&key(), range).await).await
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_found_to_have_happened() {
    let mine = Reply::Answer("200 OK", &[], "mine");
    let (put, requests) = put(&[Reply::Lost, TAKEN, mine]).await;
    assert_eq!(put.unwrap(), Put::Created);
    assert_eq!(requests, [PUT, PUT, GET]);
}

#[tokio::test]
async fn a_key_taken_by_others_is_not_ours() {
    let (put, requests) = put(&[TAKEN, Reply::Answer("200 OK", &[], "other")]).await;
    assert_eq!(put.unwrap(), Put::Exists);
    assert_eq!(requests, [PUT, GET]);
}

#[tokio::test]
async fn a_put_that_met_another_is_tried_again() {
    let (put, requests) = put(&[CONFLICT, CONFLICT, CREATED]).await;
    assert_eq!(put.unwrap(), Put::Created);
    assert_eq!(requests, [PUT, PUT, PUT]);
}

#[tokio::test]
async fn a_put_that_always_meets_another_ends() {
    let replies: Vec<Reply> = (0..CONFLICT_ATTEMPTS_MAX).map(|_| CONFLICT).collect();
    let (put, _) = put(&replies).await;
    assert_eq!(
        put.unwrap_err().to_string(),
        "s3://bucket/p did not take or give `k`: others were writing it in each of 8 attempts"
    );
}

#[tokio::test]
async fn a_body_that_broke_off_is_asked_for_again() {
    let whole = Reply::Answer("200 OK", &[], "0123456789");
    let (bytes, requests) = get(ByteRange::Full, &[Reply::Short("012"), whole]).await;
    assert_eq!(bytes.unwrap(), "0123456789");
    assert_eq!(requests, [GET, GET]);
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_an_error() {
    let replies = [Reply::Short("012"), Reply::Short("0123"), Reply::Short("")];
    let (bytes, _) = get(ByteRange::Full, &replies).await;
    assert!(bytes.unwrap_err().is_transient());
}

#[tokio::test]
async fn a_part_with_the_checksum_of_the_whole_is_taken() {
    // The CRC32 is that of `0123456789`.
    let headers = &["content-range: bytes 2-4/10", "x-amz-checksum-crc32: poTHxg=="];
    let reply = Reply::Answer("206 Partial Content", headers, "234");
    let (bytes, _) = get(ByteRange::Span(2, 5), &[reply]).await;
    assert_eq!(bytes.unwrap(), "234");
}

#[tokio::test]
async fn a_whole_with_another_checksum_is_not_taken() {
    let wrong = || Reply::Answer("200 OK", &["x-amz-checksum-crc32: poTHxg=="], "0123456780");
    let (bytes, _) = get(ByteRange::Full, &[wrong(), wrong(), wrong()]).await;
    let error = bytes.unwrap_err();
    assert!(error.to_string().contains("checksum mismatch"), "{error}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_found_out() {
    let reply = Reply::Answer("200 OK", &[], "0123456789");
    let (bytes, _) = get(ByteRange::Span(2, 5), &[reply]).await;
    assert_eq!(
        bytes.unwrap_err().to_string(),
        "`k` in s3://bucket/p: the server ignored the range that was asked for"
    );
}

#[tokio::test]
async fn an_object_in_cold_storage_is_named_with_its_class() {
    let reply = Reply::Answer(
        "403 Forbidden",
        &[],
        "<Error><Code>InvalidObjectState</Code><Message>archived</Message>\
         <StorageClass>DEEP_ARCHIVE</StorageClass></Error>",
    );
    let (bytes, _) = get(ByteRange::Full, &[reply]).await;
    assert_eq!(
        bytes.unwrap_err().to_string(),
        "`k` in s3://bucket/p is in cold storage (DEEP_ARCHIVE); restore it (for example \
         `aws s3api restore-object`) and try again"
    );
}

#[tokio::test]
async fn a_server_that_fails_once_is_asked_again() {
    let busy = Reply::Answer("503 Slow Down", &[], "<Error><Code>SlowDown</Code></Error>");
    let (bytes, requests) =
        get(ByteRange::Full, &[busy, Reply::Answer("200 OK", &[], "here")]).await;
    assert_eq!(bytes.unwrap(), "here");
    assert_eq!(requests, [GET, GET]);
}

/// Amazon's order is not put right, so it must be what Amazon promises.
#[tokio::test]
async fn listings_as_given_pass_over_strangers_and_must_be_in_order() {
    const STRANGER: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>t</NextContinuationToken>\
        <Contents><Key>p/folder/</Key><Size>0</Size></Contents></ListBucketResult>";
    const SORTED: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>t</NextContinuationToken>\
        <Contents><Key>p/a-b</Key><Size>1</Size></Contents>\
        <Contents><Key>p/a/b</Key><Size>2</Size></Contents></ListBucketResult>";
    const UNSORTED: &str = "<ListBucketResult><IsTruncated>false</IsTruncated>\
        <Contents><Key>p/a/b</Key><Size>1</Size></Contents>\
        <Contents><Key>p/a-b</Key><Size>2</Size></Contents></ListBucketResult>";
    let listing = |body| Reply::Answer("200 OK", &[], body);
    let list = async |store: S3Store| {
        let amazons = S3Store { order: ListingOrder::OfBytes, ..store };
        amazons.list("", None).await
    };

    let (page, requests) = with_replies(&[listing(STRANGER), listing(SORTED)], list).await;
    let page = page.unwrap();
    assert!(page.more);
    let objects: Vec<_> = page.objects.iter().map(|o| (o.key.as_str(), o.size)).collect();
    assert_eq!(objects, [("a-b", 1), ("a/b", 2)]);
    assert!(requests[1].contains("continuation-token=t"), "{requests:?}");

    let (page, _) = with_replies(&[listing(UNSORTED)], list).await;
    assert_eq!(
        page.unwrap_err().to_string(),
        "`.` in s3://bucket/p: the server lists `a-b` after `a/b`; listings in such an order \
         cannot be used"
    );
}
