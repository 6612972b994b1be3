//! Reject files that are damaged, too large, or of several archives.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::testing::{at, name};

fn rejected(sequence: Sequence) -> Rejected {
    Rejected {
        replay: "r1".to_owned(),
        archive: "file:///archive".to_owned(),
        stream: name("shop"),
        sequence,
        id: format!("e-{sequence}"),
        time: at(sequence),
        event_type: "order.placed".to_owned(),
        exchange: "shop".to_owned(),
        routing_key: readable(b"orders.\xff\n"),
        body_digest: Digest::of(b"{}"),
        kind: RejectKind::Unroutable,
        reason: "312 NO_ROUTE".to_owned(),
    }
}

fn file_of(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rejects.jsonl");
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn lines(sequences: &[Sequence]) -> String {
    sequences.iter().map(|sequence| wire::line(&rejected(*sequence))).collect()
}

#[test]
fn a_line_is_json_that_people_can_read() {
    let line = wire::line(&rejected(7));
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["id"], "e-7");
    assert_eq!(json["kind"], "unroutable");
    assert_eq!(json["routing_key"], "orders.\\xff\n");
    assert_eq!(line.matches('\n').count(), 1);
    assert_eq!(wire::parse(line.as_bytes()), Ok(rejected(7)));
}

#[track_caller]
fn check_refused(text: &[u8], words: &str) {
    let (_dir, path) = file_of(text);
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains(words) && error.contains("rejects.jsonl"), "{error}");
}

#[test]
fn what_is_no_reject_file_is_refused_with_the_line_that_is_wrong() {
    check_refused(b"", "it has no events");
    check_refused(b"{\"id\"", "it has no events");
    check_refused(b"{}\n", "line 1: it is no reject");
    let sound = lines(&[1, 2, 3]);
    check_refused(sound.replacen("\"e-2\"", "\"e-9\"", 1).as_bytes(), "line 2: it was changed");
    check_refused(&[sound.as_bytes(), &b"x".repeat(100_000)].concat(), "line 4");
    let other = wire::line(&Rejected { archive: "s3://other".to_owned(), ..rejected(4) });
    check_refused(format!("{sound}{other}").as_bytes(), "line 4 is of the archive at s3://other");
}

#[test]
fn an_event_counts_once_and_a_torn_end_is_left_out() {
    let text = lines(&[5, 3, 5]);
    let (_dir, path) = file_of(text.as_bytes());
    let again = read(&path).unwrap();
    assert_eq!(again.places(), [(name("shop"), 3), (name("shop"), 5)]);
    assert!(!again.torn);
    let (_dir, path) = file_of(&text.as_bytes()[..text.len() - 2]);
    let again = read(&path).unwrap();
    assert_eq!((again.places().len(), again.torn), (2, true));
}

#[test]
fn what_was_spaced_in_another_way_is_as_good() {
    let json: serde_json::Value = serde_json::from_str(&wire::line(&rejected(1))).unwrap();
    let line = format!("{json}\n").replace(',', ", ");
    assert_eq!(wire::parse(line.as_bytes()), Ok(rejected(1)));
}

#[test]
fn a_long_text_is_shortened_and_a_line_stays_bounded() {
    let long = "\u{1}é".repeat(100_000);
    let rejected = Rejected {
        id: long.clone(),
        event_type: long.clone(),
        exchange: readable(&[0xff; 255]),
        routing_key: readable(&[0xff; 255]),
        reason: long,
        ..rejected(1)
    };
    let line = wire::line(&rejected);
    assert!((line.len() as u64) < LINE_BYTES_MAX, "{}", line.len());
    assert_eq!(wire::parse(line.as_bytes()).unwrap().id, shortened(&rejected.id));
}

proptest! {
    /// However the process or its machine died, what a checkpoint passed is kept and the rest cut.
    #[test]
    fn what_the_checkpoint_has_not_passed_is_cut_off(
        passed in 0_u64..5,
        more in 0_u64..5,
        torn in 0_usize..200,
    ) {
        let all: Vec<Sequence> = (1..=passed + more).map(|n| n * 10).collect();
        let mut text = lines(&all).into_bytes();
        let next = wire::line(&rejected(1_000));
        text.extend(&next.as_bytes()[..torn]);
        let (_dir, path) = file_of(&text);
        let mut standing = Standing::default();
        standing.positions.insert(name("shop"), passed * 10 + 5);
        standing.counts.rejected = passed;
        let mut file = RejectFile::open(&path, &standing).unwrap();
        file.append(&rejected(2_000)).unwrap();
        let mut expected = all[..usize::try_from(passed).unwrap()].to_vec();
        expected.push(2_000);
        prop_assert_eq!(fs::read_to_string(&path).unwrap(), lines(&expected));
    }
}
