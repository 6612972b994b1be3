//! What a second process sees of an index, and what a killed one leaves behind.
//!
//! Without arguments this runs the tests; with `hold DIR` or `fill DIR` it is the other
//! process.

fn main() {
    tests::main();
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use dacapo_archive::{SegmentSummary, Tally};
    use dacapo_event::{Digest, Timestamp};
    use dacapo_index::{Holder, Index, IndexError};

    /// Segments that `fill` adds at once.
    const BATCH: u64 = 7;
    const EVENTS_PER_SEGMENT: u64 = 10;

    pub(super) fn main() {
        let arguments: Vec<String> = std::env::args().collect();
        match arguments.get(1..) {
            Some([role, dir]) if role == "hold" => hold(Path::new(dir)),
            Some([role, dir]) if role == "fill" => fill(Path::new(dir)),
            _ => {
                a_second_process_is_told_who_holds_the_index();
                a_killed_process_leaves_whole_batches();
                println!("2 tests of other processes passed");
            }
        }
    }

    fn holder(command: &str) -> Holder {
        Holder { command: command.to_owned(), since: Timestamp::from_secs(1_800_000_000) }
    }

    /// Holds the index until standard input ends.
    fn hold(dir: &Path) {
        let index = Index::open(dir, &holder("dacapo plan")).unwrap();
        println!("held");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        index.close().unwrap();
    }

    /// Adds segments for ever, and says after each flush how many batches are in.
    fn fill(dir: &Path) {
        let index = Index::open(dir, &holder("dacapo index sync")).unwrap();
        for batch in 0.. {
            let segments: Vec<SegmentSummary> =
                (batch * BATCH..(batch + 1) * BATCH).map(segment).collect();
            index.insert_segments(&segments).unwrap();
            index.flush().unwrap();
            println!("{}", batch + 1);
            std::io::stdout().flush().unwrap();
        }
    }

    fn segment(number: u64) -> SegmentSummary {
        let first = number * EVENTS_PER_SEGMENT + 1;
        let mut by_type = Tally::default();
        by_type.add("order.placed");
        SegmentSummary {
            key: format!("segments/stream=shop/date=2026-11-23/hour=08/{first:020}.parquet")
                .parse()
                .unwrap(),
            size: 1_000 + number,
            stream: "shop".parse().unwrap(),
            first,
            last: first + EVENTS_PER_SEGMENT - 1,
            dropped: 0,
            time_min: Timestamp::from_secs(number),
            time_max: Timestamp::from_secs(number + 1),
            archived_min: Timestamp::from_secs(number),
            archived_max: Timestamp::from_secs(number + 1),
            body_bytes: 500,
            by_type,
            by_routing_key: Tally::default(),
            by_exchange: Tally::default(),
            digest: Digest::of(&number.to_be_bytes()),
            previous: None,
            source_mark: None,
        }
    }

    fn start(role: &str, dir: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .arg(role)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn a_second_process_is_told_who_holds_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let mut other = start("hold", dir.path());
        let mut said = String::new();
        BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n");
        let error = Index::open(dir.path(), &holder("dacapo replay")).unwrap_err();
        assert!(matches!(error, IndexError::Busy { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            format!(
                "index `{}` is in use by process {} (`dacapo plan`) since 2027-01-15T08:00:00Z; wait for it or use --index DIR",
                dir.path().display(),
                other.id()
            )
        );
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        Index::open(dir.path(), &holder("dacapo replay")).unwrap().close().unwrap();
    }

    fn a_killed_process_leaves_whole_batches() {
        const BATCHES_SEEN: [u64; 3] = [1, 4, 20];
        for seen in BATCHES_SEEN {
            let dir = tempfile::tempdir().unwrap();
            let mut other = start("fill", dir.path());
            let lines = BufReader::new(other.stdout.take().unwrap()).lines();
            let flushed = lines.map(|line| line.unwrap().parse::<u64>().unwrap());
            let flushed = flushed.take(usize::try_from(seen).unwrap()).last().unwrap();
            other.kill().unwrap();
            other.wait().unwrap();

            let index = Index::open(dir.path(), &holder("dacapo index sync")).unwrap();
            let segments: Vec<SegmentSummary> = index.segments().map(Result::unwrap).collect();
            let expected: Vec<SegmentSummary> = (0..segments.len() as u64).map(segment).collect();
            assert_eq!(segments, expected);
            assert!(segments.len() as u64 >= flushed * BATCH, "{} after {flushed}", segments.len());
            assert_eq!(segments.len() as u64 % BATCH, 0);
            let progress = index.progress(&"shop".parse().unwrap()).unwrap().unwrap();
            assert_eq!(progress.segments, segments.len() as u64);
            assert_eq!(progress.last, segments.last().unwrap().last);
            assert!(progress.is_contiguous());
            index.close().unwrap();
        }
    }
}
