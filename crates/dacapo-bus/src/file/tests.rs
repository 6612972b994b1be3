//! The file target: whole lines, and nothing of anybody else's destroyed.

use bytes::Bytes;

use super::*;
use crate::conformance::{self, Fidelity, SinkHarness};

fn messages(lines: &[&str]) -> Vec<Message> {
    lines
        .iter()
        .map(|line| Message { body: Bytes::from((*line).to_owned()), ..Message::default() })
        .collect()
}

async fn write(target: &FileTarget, lines: &[&str]) {
    let mut sink = target.open().await.unwrap();
    sink.send(&messages(lines)).await.unwrap();
    assert_eq!(sink.outcomes().await.unwrap(), vec![Outcome::Confirmed; lines.len()]);
    sink.close().await.unwrap();
}

#[track_caller]
fn check_continued(before: &[u8], after: &str) -> impl Future<Output = ()> {
    let before = before.to_vec();
    let after = after.to_owned();
    async move {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ndjson");
        std::fs::write(&path, before).unwrap();
        write(&FileTarget::new(&path, Existing::Continue), &["c"]).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
    }
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_and_whole_ones_stay() {
    check_continued(b"", "c\n").await;
    check_continued(b"a\nb\n", "a\nb\nc\n").await;
    check_continued(b"a\nb", "a\nc\n").await;
    check_continued(b"torn from the start", "c\n").await;
    let long = [b"a\n".as_slice(), &vec![b'x'; 3 * usize::try_from(TAIL_BYTES).unwrap()]].concat();
    check_continued(&long, "a\nc\n").await;
}

#[tokio::test]
async fn somebody_elses_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "no newline at the end").unwrap();
    let refused = FileTarget::new(&path, Existing::Refuse).open().await;
    assert!(
        matches!(refused.err(), Some(BusError::File { source, .. }) if source.kind() == ErrorKind::AlreadyExists)
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "no newline at the end");
}

#[tokio::test]
async fn a_new_file_can_be_opened_again_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    let target = FileTarget::new(&path, Existing::Refuse);
    write(&target, &["a"]).await;
    write(&target, &["b"]).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\nb\n");
}

#[tokio::test]
async fn a_body_with_a_line_break_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    let mut sink = FileTarget::new(&path, Existing::Refuse).open().await.unwrap();
    let refused = sink.send(&messages(&["a", "b\nb"])).await;
    assert!(matches!(refused, Err(BusError::Unsendable { .. })), "{refused:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_names_the_file() {
    let mut sink = FileTarget::new("/dev/full", Existing::Continue).open().await.unwrap();
    let error = sink.send(&messages(&["a"])).await.expect_err("no room");
    assert!(matches!(&error, BusError::File { path, .. } if path == "/dev/full"), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_writer_gets_the_lines_and_cannot_be_opened_twice() {
    let (writer, mut reader) = tokio::io::duplex(64);
    let target = FileTarget::writer("-", Box::new(writer));
    write(&target, &["a", ""]).await;
    assert!(matches!(target.open().await.err(), Some(BusError::File { path, .. }) if path == "-"));
    let mut read = String::new();
    reader.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "a\n\n");
}

struct Lines(tempfile::TempDir);

#[async_trait]
impl SinkHarness for Lines {
    async fn target(&self) -> Box<dyn Connect> {
        let path = self.0.path().join("events.ndjson");
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        Box::new(FileTarget::new(path, Existing::Refuse))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Body
    }

    async fn arrived(&self) -> Vec<Message> {
        let text = std::fs::read_to_string(self.0.path().join("events.ndjson")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        messages(&text.lines().collect::<Vec<_>>())
    }

    async fn delete_queue(&self) {
        unreachable!("lines have no queue to delete");
    }
}

#[tokio::test]
async fn it_passes_the_suite_of_sinks() {
    conformance::check_sink(&Lines(tempfile::tempdir().unwrap())).await;
}
