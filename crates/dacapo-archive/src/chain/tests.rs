//! What is told of an object of another version.

use super::*;

fn head() -> Head {
    Head {
        stream: "shop".parse().unwrap(),
        last: 9,
        digest: Digest::of(b"x"),
        segment: layout::segment(&"shop".parse().unwrap(), Timestamp::EPOCH, 8),
        moved_at: Timestamp::EPOCH,
        source_mark: None,
    }
}

fn entry() -> ChainEntry {
    let Head { segment, last, digest, .. } = head();
    ChainEntry { segment, size: 7, first: 8, last, digest, previous: None }
}

fn changed(bytes: &Bytes, from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    text.replacen(from, to, 1).into_bytes()
}

/// A newer object must not be taken for damage, or a repair would replace it.
#[test]
fn an_object_of_a_newer_version_is_told_from_one_whose_version_was_changed() {
    let key: ObjectKey = "x".parse().unwrap();
    let version = "\"format\": 1";
    let with_more = "\"format\": 2,\n  \"more\": true";
    let is_newer = |error| matches!(error, ArchiveError::NewerFormat { version: 2, .. });
    let is_damaged = |error| matches!(error, ArchiveError::Damaged { .. });

    let bytes = entry().to_bytes();
    let read = |bytes: &[u8]| ChainEntry::from_exact_bytes(&key, bytes).unwrap_err();
    assert!(is_newer(read(&changed(&bytes, version, with_more))));
    assert!(is_damaged(read(&changed(&bytes, version, "\"format\": 2"))));
    assert!(is_damaged(read(&changed(&bytes, version, "\"format\":11"))));

    let bytes = head().to_bytes();
    let read = |bytes: &[u8]| Head::from_exact_bytes(&key, bytes).unwrap_err();
    assert!(is_newer(read(&changed(&bytes, version, with_more))));
    assert!(is_damaged(read(&changed(&bytes, version, "\"format\": 2"))));
}
