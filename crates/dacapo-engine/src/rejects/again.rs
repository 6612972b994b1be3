//! Rejected events that are to be tried again: read from a reject file, and held against the
//! archive before anything is published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use dacapo_archive::compaction;
use dacapo_archive::store::Store;
use dacapo_event::{Digest, Sequence, StreamName};
use dacapo_filter::{Selection, SelectionSpec};
use futures::{StreamExt, TryStreamExt, stream};

use super::{LINE_BYTES_MAX, Lines, REJECTS_MAX, shortened, wire};
use crate::EngineError;
use crate::plan::{Plan, PlannedSegment};
use crate::scan::Scan;

/// Segments looked at at once: hides the store's latency.
const CHECKED_AT_ONCE: usize = 4;

/// What one batch of events may decode to while they are held against the file.
const CHECK_BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// The events of a reject file; each once, however often the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToTryAgain {
    /// The file.
    pub path: String,
    /// Where the archive is that has them.
    pub archive: String,
    /// The replays to which they were refused.
    pub replays: BTreeSet<String>,
    events: BTreeMap<(StreamName, Sequence), Known>,
    /// Whether the last line was torn: its event was not passed over, and is left out.
    pub torn: bool,
}

/// What an event must be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// Shortened.
    id: String,
    body_digest: Digest,
}

/// An event of a reject file that compaction has left out since, because it is an exact repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its stream.
    pub stream: StreamName,
    /// Its place there.
    pub sequence: Sequence,
    /// The place of the event that stayed.
    pub repeat_of: Sequence,
}

/// Returns which of these places are empty because of compaction.
async fn left_out(
    store: &Arc<dyn Store>,
    missing: &BTreeSet<&(StreamName, Sequence)>,
) -> Result<Vec<LeftOut>, EngineError> {
    let mut streams: BTreeMap<&StreamName, BTreeSet<Sequence>> = BTreeMap::new();
    for (stream, sequence) in missing {
        streams.entry(stream).or_default().insert(*sequence);
    }
    let mut left_out = Vec::new();
    for (stream, sequences) in streams {
        let repeats = compaction::repeats(store, stream, &sequences).await?;
        left_out.extend(repeats.into_iter().map(|(sequence, repeat_of)| LeftOut {
            stream: stream.clone(),
            sequence,
            repeat_of,
        }));
    }
    Ok(left_out)
}

/// Reads a reject file, or what was picked out of some.
///
/// # Errors
/// The file cannot be read, has no events, too many, a damaged line, or events of two archives.
pub fn read(path: &Path) -> Result<ToTryAgain, EngineError> {
    let file = File::open(path).map_err(|error| EngineError::Unreadable {
        path: path.display().to_string(),
        problem: error.to_string(),
    })?;
    let mut again = ToTryAgain {
        path: path.display().to_string(),
        archive: String::new(),
        replays: BTreeSet::new(),
        events: BTreeMap::new(),
        torn: false,
    };
    let mut lines = Lines::of(&file, path);
    let mut number = 0;
    while let Some(line) = lines.next()? {
        number += 1;
        let rejected = match wire::parse(line) {
            Ok(rejected) => rejected,
            // The last one: a replay was killed while it wrote it.
            Err(_) if !line.ends_with(b"\n") && (line.len() as u64) < LINE_BYTES_MAX => {
                again.torn = true;
                break;
            }
            Err(problem) => return Err(again.unreadable(format!("line {number}: {problem}"))),
        };
        if number == 1 {
            again.archive = rejected.archive;
        } else if again.archive != rejected.archive {
            let problem = format!(
                "line {number} is of the archive at {}, those before it of that at {}; try them \
                 again apart",
                rejected.archive, again.archive
            );
            return Err(again.unreadable(problem));
        }
        let known = Known { id: rejected.id, body_digest: rejected.body_digest };
        again.replays.insert(rejected.replay);
        again.events.entry((rejected.stream, rejected.sequence)).or_insert(known);
        if again.events.len() as u64 > REJECTS_MAX {
            let problem = format!("it has more than {REJECTS_MAX} events; split it");
            return Err(again.unreadable(problem));
        }
    }
    if again.events.is_empty() {
        let problem = "it has no events; was nothing rejected?".to_owned();
        return Err(again.unreadable(problem));
    }
    Ok(again)
}

impl ToTryAgain {
    /// Returns where the events are: what selects exactly them.
    pub fn places(&self) -> Vec<(StreamName, Sequence)> {
        self.events.keys().cloned().collect()
    }

    /// Makes sure that the archive has every event as it was refused, reading those segments of the
    /// plan that hold them; `progress` is told how many of them are read. Returns where those are
    /// that compaction left out.
    ///
    /// Such an event is an exact repeat of one that is still there, and comes before it in the
    /// stream: the replay has delivered that one, or it is in the file as well.
    ///
    /// # Errors
    /// One is not there any more, or another event is in its place; the archive cannot be read.
    pub async fn verify(
        &self,
        store: &Arc<dyn Store>,
        plan: &Plan,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<LeftOut>, EngineError> {
        let selection = Arc::new(Selection::compile(SelectionSpec {
            places: self.places(),
            ..SelectionSpec::default()
        })?);
        let mut missing: BTreeSet<&(StreamName, Sequence)> = self.events.keys().collect();
        let mut checks = stream::iter(&plan.segments)
            .map(|segment| self.verify_in(store, segment, &selection))
            .buffered(CHECKED_AT_ONCE);
        let mut read = 0;
        while let Some(found) = checks.try_next().await? {
            read += 1;
            progress(read);
            for place in &found {
                missing.remove(place);
            }
        }
        let left_out = left_out(store, &missing).await?;
        for LeftOut { stream, sequence, .. } in &left_out {
            missing.remove(&(stream.clone(), *sequence));
        }
        let Some(place @ (stream, sequence)) = missing.first() else { return Ok(left_out) };
        let others = match missing.len() - 1 {
            0 => String::new(),
            others => format!(", and {others} others are gone as well"),
        };
        Err(self.gone(
            &self.events[*place],
            format!("is not at {stream}:{sequence} in the archive any more{others}"),
        ))
    }

    async fn verify_in(
        &self,
        store: &Arc<dyn Store>,
        segment: &PlannedSegment,
        selection: &Arc<Selection>,
    ) -> Result<Vec<(StreamName, Sequence)>, EngineError> {
        let (store, selection) = (Arc::clone(store), Arc::clone(selection));
        let mut scan =
            Scan::open(store, &segment.to_read(), selection, 0, CHECK_BATCH_BYTES).await?;
        let mut seen = Vec::new();
        while let Some(found) = scan.next().await? {
            for event in found.into_iter().map(|found| found.event) {
                let place = (segment.stream.clone(), event.sequence);
                let Some(known) = self.events.get(&place) else { continue };
                let same = known.id == shortened(&event.id)
                    && known.body_digest == Digest::of(&event.message.body);
                if !same {
                    let (stream, sequence) = &place;
                    let how = format!(
                        "is not the one at {stream}:{sequence} in the archive, which is `{}`",
                        shortened(&event.id)
                    );
                    return Err(self.gone(known, how));
                }
                seen.push(place);
            }
        }
        Ok(seen)
    }

    fn gone(&self, known: &Known, how: String) -> EngineError {
        EngineError::RejectGone { event: known.id.clone(), path: self.path.clone(), how }
    }

    fn unreadable(&self, problem: String) -> EngineError {
        EngineError::Unreadable { path: self.path.clone(), problem }
    }
}
