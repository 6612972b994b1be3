//! What is written is believed, what is torn is not.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testing::{at, name};

fn journal() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    (dir, path)
}

fn counts(confirmed: u64, runs: u64) -> Counts {
    let seconds = confirmed as f64 / 4.0;
    Counts { confirmed, runs, seconds, bytes: confirmed * 100, ..Counts::default() }
}

fn positions(pairs: &[(&str, u64)]) -> Positions {
    pairs.iter().map(|(stream, at)| (name(stream), *at)).collect()
}

/// Writes a journal of one run with these checkpoints; returns its bytes, and how it stood with
/// each line more.
fn written(path: &Path, checkpoints: u64) -> (Vec<u8>, Vec<Standing>) {
    let mut standings = vec![Standing::default()];
    let (mut journal, _) = Journal::open(path).unwrap();
    let mut note = || standings.push(Journal::read(path).unwrap());
    journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    note();
    for n in 1..=checkpoints {
        journal.checkpoint(&counts(n, 1), &positions(&[("a", n), ("b", n / 2)])).unwrap();
        note();
    }
    let last = positions(&[("a", checkpoints), ("b", checkpoints / 2)]);
    journal.ended(at(2), Phase::Interrupted, &counts(checkpoints, 1), &last).unwrap();
    note();
    (fs::read(path).unwrap(), standings)
}

#[tokio::test]
async fn what_is_written_is_read_back_by_a_reader_and_after_reopening() {
    let (_dir, path) = journal();
    assert_eq!(Journal::read(&path).unwrap(), Standing::default());
    let (mut journal, standing) = Journal::open(&path).unwrap();
    assert_eq!(standing, Standing::default());
    assert_eq!(Journal::read(&path).unwrap().phase, Phase::New);

    journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    let expected = Standing {
        phase: Phase::Running,
        began_at: Some(at(1)),
        positions: Positions::new(),
        counts: counts(0, 1),
        on_reject: OnReject::Stop,
        at_reject: false,
        nack_retries: NackRetries::DEFAULT,
    };
    assert_eq!(Journal::read(&path).unwrap(), expected);

    journal.checkpoint(&counts(5, 1), &positions(&[("a", 5)])).unwrap();
    let running = Standing { positions: positions(&[("a", 5)]), counts: counts(5, 1), ..expected };
    assert_eq!(Journal::read(&path).unwrap(), running);
    drop(journal);

    // Killed; a second run ends in order.
    let (mut journal, standing) = Journal::open(&path).unwrap();
    assert_eq!(standing, running);
    journal.began(at(7), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    journal.ended(at(8), Phase::Completed, &counts(9, 2), &positions(&[("a", 9)])).unwrap();
    let expected = Standing {
        phase: Phase::Completed,
        positions: positions(&[("a", 9)]),
        counts: counts(9, 2),
        ..running
    };
    assert_eq!(Journal::read(&path).unwrap(), expected);
    assert_eq!(Journal::open(&path).unwrap().1, expected);
}

#[tokio::test]
async fn positions_of_streams_that_a_record_does_not_name_stay() {
    let (_dir, path) = journal();
    let (mut journal, _) = Journal::open(&path).unwrap();
    journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    journal.checkpoint(&counts(5, 1), &positions(&[("a", 5), ("b", 2)])).unwrap();
    journal.checkpoint(&counts(6, 1), &positions(&[("b", 3), ("c", 1)])).unwrap();
    let expected = positions(&[("a", 5), ("b", 3), ("c", 1)]);
    assert_eq!(Journal::read(&path).unwrap().positions, expected);
}

#[tokio::test]
async fn every_phase_is_read_back() {
    for phase in [Phase::Interrupted, Phase::Rejected, Phase::Completed, Phase::Cancelled] {
        let (_dir, path) = journal();
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
        journal.ended(at(2), phase, &counts(1, 1), &Positions::new()).unwrap();
        assert_eq!(Journal::read(&path).unwrap().phase, phase);
        let ended = matches!(phase, Phase::Completed | Phase::Cancelled);
        assert_eq!(phase.is_resumable(), !ended);
    }
}

/// Cancelled where it stood, a replay was taken to have nothing against its next event.
#[tokio::test]
async fn a_replay_stands_at_its_reject_until_it_is_tried_again() {
    let (_dir, path) = journal();
    let (mut journal, _) = Journal::open(&path).unwrap();
    let ended = |journal: &mut Journal, phase| {
        journal.ended(at(2), phase, &counts(1, 1), &Positions::new()).unwrap();
        let standing = Journal::read(&path).unwrap();
        (standing.phase, standing.rejected())
    };
    for _ in 0..2 {
        journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
        assert_eq!(ended(&mut journal, Phase::Rejected), (Phase::Rejected, 1));
        assert!(Journal::read(&path).unwrap().at_reject);
        journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
        assert_eq!(ended(&mut journal, Phase::Interrupted), (Phase::Interrupted, 0));
    }
    journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    ended(&mut journal, Phase::Rejected);
    assert_eq!(ended(&mut journal, Phase::Cancelled), (Phase::Cancelled, 1));
}

#[tokio::test]
async fn a_line_torn_at_any_byte_is_ignored_cut_and_written_over() {
    let (_dir, path) = journal();
    let (bytes, standings) = written(&path, 3);
    for cut in 0..=bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(Journal::read(&path).unwrap(), standings[whole], "at {cut}");

        let (mut journal, standing) = Journal::open(&path).unwrap();
        assert_eq!(standing, standings[whole], "at {cut}");
        let whole_bytes =
            bytes[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        assert_eq!(fs::metadata(&path).unwrap().len(), whole_bytes as u64, "at {cut}");

        journal.checkpoint(&counts(77, 1), &positions(&[("a", 77)])).unwrap();
        assert_eq!(Journal::read(&path).unwrap().counts.confirmed, 77, "at {cut}");
    }
}

#[tokio::test]
async fn a_byte_that_changed_never_moves_a_checkpoint_forward() {
    let (_dir, path) = journal();
    let (bytes, standings) = written(&path, 3);
    let lines = |at: usize| bytes[..at].iter().filter(|byte| **byte == b'\n').count();
    for at in 0..bytes.len() {
        for change in [0x01, 0x10, 0x80, b'\n' ^ bytes[at], b'9' ^ bytes[at]] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            fs::write(&path, &changed).unwrap();
            // What comes before the line stands; it itself may, where the change means nothing.
            let standing = Journal::read(&path).unwrap();
            let before = &standings[lines(at)];
            assert!(
                standing == *before || standing == *standings.last().unwrap(),
                "byte {at} changed by {change:#x}: {standing:?}"
            );
            assert!(standing.counts.confirmed <= 3);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (_dir, path) = journal();
        fs::write(&path, &bytes).unwrap();
        prop_assert_eq!(Journal::read(&path).unwrap(), Standing::default());
    }
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_refused_and_not_cut_off() {
    let (_dir, path) = journal();
    let (mut bytes, _) = written(&path, 1);
    let json = r#"{"moved":{"to":"elsewhere"}}"#;
    let newer = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    bytes.extend_from_slice(newer.as_bytes());
    fs::write(&path, &bytes).unwrap();
    for error in [Journal::read(&path).unwrap_err(), Journal::open(&path).unwrap_err()] {
        let error = error.to_string();
        assert!(error.starts_with(&format!("`{}` is not readable: ", path.display())), "{error}");
        assert!(error.ends_with("use a newer dacapo"), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn a_journal_that_grew_is_replaced_by_one_that_says_the_same() {
    let (dir, path) = journal();
    // Killed while it replaced one before.
    fs::write(dir.path().join("journal.tmp"), "torn").unwrap();
    let (mut journal, _) = Journal::open(&path).unwrap();
    journal.began(at(1), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    drop(journal);
    let (mut journal, _) = Journal::open(&path).unwrap();
    journal.lines.grown_max = 2_000;
    let few = NackRetries::new(2).unwrap();
    journal.began(at(5), OnReject::Skip { most: 7 }, few).unwrap();
    let mut longest = 0;
    for n in 1..=200 {
        let now = positions(&[("a", n), ("b", n / 2)]);
        journal.checkpoint(&counts(n, 2), &now).unwrap();
        let expected = Standing {
            phase: Phase::Running,
            began_at: Some(at(1)),
            positions: now,
            counts: counts(n, 2),
            at_reject: false,
            on_reject: OnReject::Skip { most: 7 },
            nack_retries: few,
        };
        assert_eq!(Journal::read(&path).unwrap(), expected);
        longest = longest.max(fs::metadata(&path).unwrap().len());
    }
    assert!((2_000..3_000).contains(&longest), "{longest}");
    drop(journal);
    let (mut journal, standing) = Journal::open(&path).unwrap();
    assert_eq!((standing.counts.runs, standing.counts.confirmed), (2, 200));
    journal.began(at(9), OnReject::Stop, NackRetries::DEFAULT).unwrap();
    assert_eq!(Journal::read(&path).unwrap().counts.runs, 3);
}
