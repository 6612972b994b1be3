//! The store on a real S3 server: the suite that every store must pass, and what the server's
//! refusals are to a caller.

use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::Bytes;
use dacapo_archive::store::conformance::check_store;
use dacapo_archive::store::{ByteRange, ObjectKey, Put, Store, StoreError};
use dacapo_integration::{services, stored};
use dacapo_s3::{S3Credentials, S3Options, S3Store};
use futures::future::join_all;

/// Returns options for the server, with a prefix that no other test has.
fn options() -> S3Options {
    stored::options(&services::unique("s3-store"))
}

async fn connect(options: S3Options) -> S3Store {
    S3Store::connect(options).await.expect("region and credentials are given")
}

fn key(text: &str) -> ObjectKey {
    text.parse().expect("an object key")
}

/// Returns what a put, a get, a listing and a deletion come to.
async fn each_request(store: &S3Store) -> [StoreError; 4] {
    let key = key("any/object");
    [
        store.put_new(&key, Bytes::from_static(b"x")).await.expect_err("a put"),
        store.get(&key, ByteRange::Full).await.expect_err("a get"),
        store.list("any/", None).await.expect_err("a listing"),
        store.delete(&key).await.expect_err("a deletion"),
    ]
}

#[tokio::test]
async fn conforms() {
    check_store(Arc::new(connect(options()).await)).await;
}

/// Answers of three objects make every listing one of many answers, in the server's own order.
#[tokio::test]
async fn conforms_when_listings_take_many_answers() {
    let options = S3Options { answer_objects: NonZeroU16::new(3), ..options() };
    check_store(Arc::new(connect(options).await)).await;
}

#[tokio::test]
async fn of_writers_with_their_own_connections_one_wins() {
    let options = options();
    let stores = join_all((0..8).map(|_| connect(options.clone()))).await;
    for round in 0..10 {
        let raced = key(&format!("chain/s/{round}"));
        let puts = stores.iter().enumerate().map(|(n, store)| {
            let bytes = Bytes::from(format!("writer {n}"));
            store.put_new(&raced, bytes)
        });
        let outcomes = join_all(puts).await;
        let winners: Vec<usize> = outcomes
            .into_iter()
            .enumerate()
            .filter_map(|(n, put)| (put.expect("racing is no error") == Put::Created).then_some(n))
            .collect();
        let there = stores[0].get(&raced, ByteRange::Full).await.expect("the winner's object");
        let [winner] = winners[..] else { panic!("one writer must win, these did: {winners:?}") };
        assert_eq!(there, format!("writer {winner}"));
    }
}

#[tokio::test]
async fn prefixes_are_separate() {
    let inner = options();
    let name = format!("{}/archive", inner.prefix);
    let [one, beside] =
        ["", "-old"].map(|end| S3Options { prefix: format!("{name}{end}"), ..inner.clone() });
    let (one, beside) = (connect(one).await, connect(beside).await);
    beside.put_new(&key("a/b"), Bytes::from_static(b"beside")).await.expect("a put");
    assert!(one.list("", None).await.expect("a listing").objects.is_empty());
    let missing = one.get(&key("a/b"), ByteRange::Full).await.expect_err("another prefix's");
    let expected = format!("`a/b` does not exist in {}", one.location());
    assert_eq!(missing.to_string(), expected);
    one.put_new(&key("a/b"), Bytes::from_static(b"one")).await.expect("a put");
    assert_eq!(beside.get(&key("a/b"), ByteRange::Full).await.expect("a get"), "beside");
}

#[tokio::test]
async fn a_missing_bucket_is_a_missing_store() {
    let bucket = services::unique("no-such-bucket");
    let store = connect(S3Options { bucket: bucket.clone(), ..options() }).await;
    let key = key("any/object");
    for error in [
        store.get(&key, ByteRange::Full).await.expect_err("a get"),
        store.list("any/", None).await.expect_err("a listing"),
    ] {
        assert!(matches!(error, StoreError::NoSuchStore { .. }), "{error:?}");
        assert!(error.to_string().starts_with(&format!("s3://{bucket}/")), "{error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_refused_in_the_servers_words() {
    let right = options();
    let credentials = right.credentials.clone().expect("given");
    let wrong_secret =
        S3Credentials { secret_access_key: "wrong".to_owned(), ..credentials.clone() };
    let unknown = S3Credentials { access_key_id: "AKIAUNKNOWN".to_owned(), ..credentials };
    for (credentials, code) in
        [(wrong_secret, "SignatureDoesNotMatch"), (unknown, "InvalidAccessKeyId")]
    {
        let store = connect(S3Options { credentials: Some(credentials), ..right.clone() }).await;
        for error in each_request(&store).await {
            let StoreError::Denied { reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.starts_with(code), "{error}");
        }
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_worth_another_attempt() {
    // Bound and given back: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let down = S3Options { endpoint: Some(format!("http://127.0.0.1:{port}")), ..options() };
    let store = connect(down).await;
    let error = store.get(&key("any/object"), ByteRange::Full).await.expect_err("nobody listens");
    assert!(error.is_transient(), "{error:?}");
    let expected = format!("{} did not take or give `any/object`: ", store.location());
    assert!(error.to_string().starts_with(&expected), "{error}");
}
