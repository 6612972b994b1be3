//! What a replay would do, decided before it does it.
//!
//! Pure: facts and request in, a value out that can be printed, saved and hashed. No I/O,
//! no clock.

use std::collections::{BTreeMap, BTreeSet};

use dacapo_archive::Segment;
use dacapo_archive::store::ObjectKey;
use dacapo_event::{Digest, Hasher, Sequence, StreamName, Timestamp};

use crate::blast::BlastRadius;
use crate::merge::StreamToRead;
use crate::preflight::Preflight;
use crate::request::Request;
use crate::scan::SegmentToRead;
use crate::survey::{Gap, Survey, SurveyedSegment, TargetFacts};

/// Assumed for the time a replay takes when no pace is asked for: a cautious figure for 4 KB
/// events, confirmed, into a quorum queue.
const UNPACED_EVENTS_PER_SECOND: f64 = 10_000.0;

/// Body bytes of one row group, for the number of requests: writers close one at 8 MiB.
const ROW_GROUP_BYTES: u64 = 8 * 1024 * 1024;

/// A decided replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// Where the archive is.
    pub archive: String,
    /// The segments that are read, by stream and then sequence; no others.
    pub segments: Vec<PlannedSegment>,
    /// How many events are selected.
    pub events: u64,
    /// Whether `events` is exact.
    pub exact: bool,
    /// Selected events by type.
    pub by_type: BTreeMap<String, u64>,
    /// Whether `by_type` is exact.
    pub by_type_exact: bool,
    /// Bytes of the selected events' bodies, about.
    pub bytes: u64,
    /// Bytes read from the archive, about.
    pub bytes_read: u64,
    /// Bytes a full scan of the archive would read.
    pub bytes_full_scan: u64,
    /// Requests to the archive, about.
    pub requests: u64,
    /// Seconds it takes at the pace asked for, about.
    pub seconds: f64,
    /// Time of the first selected event, or the earliest it can be.
    pub first_time: Option<Timestamp>,
    /// Time of the last selected event, or the latest it can be.
    pub last_time: Option<Timestamp>,
    /// Whether these two are exact.
    pub times_exact: bool,
    /// Sequences missing from the archive in the streams that are read.
    pub gaps: Vec<Gap>,
    /// The exchanges that the selected events came from, and maybe more, as far as footers name them.
    pub exchanges: BTreeSet<String>,
    /// Whether these are all.
    pub exchanges_exact: bool,
    /// How the target was.
    pub target: TargetFacts,
    /// What spoke against the target; nothing was looked at until someone did.
    pub preflight: Preflight,
    /// Which queues it reaches, if it goes to exchanges and someone looked.
    pub blast_radius: Option<BlastRadius>,
    /// When the plan was made.
    pub made_at: Timestamp,
}

/// A segment that the plan reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSegment {
    /// The stream it is of.
    pub stream: StreamName,
    /// Where it is.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
    /// Its first sequence.
    pub first: Sequence,
    /// Its last sequence.
    pub last: Sequence,
    /// The earliest time it holds.
    pub time_min: Timestamp,
}

/// Returns the plan that these facts and this request make.
pub fn plan(request: Request, survey: Survey) -> Plan {
    let streams: BTreeSet<&StreamName> =
        survey.segments.iter().map(|surveyed| &surveyed.stream).collect();
    let gaps = survey.gaps.iter().filter(|gap| streams.contains(&gap.stream)).cloned().collect();

    let (mut events, mut exact) = (0, true);
    let (mut bytes, mut bytes_read, mut requests) = (0, 0, 0);
    let mut times: Option<(Timestamp, Timestamp)> = None;
    for surveyed in &survey.segments {
        let size = surveyed.size;
        events += surveyed.selected;
        exact &= surveyed.exact;
        let share = surveyed.selected as f64 / surveyed.events as f64;
        bytes += (surveyed.body_bytes as f64 * share) as u64;
        bytes_read += (size as f64 * share.max(0.05)) as u64;
        requests += match size <= Segment::ONE_REQUEST_BYTES {
            true => 1,
            false => 1 + 2 * (surveyed.body_bytes / ROW_GROUP_BYTES + 1),
        };
        let (min, max) = clipped(&request, surveyed.times);
        let (earliest, latest) = times.unwrap_or((min, max));
        times = Some((earliest.min(min), latest.max(max)));
    }
    // A bound of another segment that is no further out changes nothing.
    let has = |end: fn((Timestamp, Timestamp)) -> Timestamp| {
        let exact = survey.segments.iter().filter(|surveyed| surveyed.times_exact);
        times.is_none_or(|times| exact.map(|it| end(it.times)).any(|at| at == end(times)))
    };
    let times_exact = has(|(first, _)| first) && has(|(_, last)| last);
    let seconds = seconds(&request, events, bytes, times);
    Plan {
        archive: survey.archive,
        segments: survey.segments.into_iter().map(PlannedSegment::of).collect(),
        events,
        exact,
        by_type: survey.by_type,
        by_type_exact: survey.by_type_exact,
        bytes,
        bytes_read,
        bytes_full_scan: survey.archive_bytes,
        requests,
        seconds,
        first_time: times.map(|(first, _)| first),
        last_time: times.map(|(_, last)| last),
        times_exact,
        gaps,
        exchanges: survey.exchanges,
        exchanges_exact: survey.exchanges_exact,
        target: survey.target,
        preflight: Preflight::default(),
        blast_radius: None,
        made_at: survey.now,
        request,
    }
}

/// Returns the bounds within the range of time asked for.
fn clipped(request: &Request, (min, max): (Timestamp, Timestamp)) -> (Timestamp, Timestamp) {
    let (from, to) = (request.selection.from, request.selection.to);
    (from.map_or(min, |from| min.max(from)), to.map_or(max, |to| max.min(to)))
}

fn seconds(
    request: &Request,
    events: u64,
    bytes: u64,
    times: Option<(Timestamp, Timestamp)>,
) -> f64 {
    let pace = &request.pace;
    let by_rate = pace.rate.map(|rate| events as f64 / f64::from(rate.get()));
    let by_bytes = pace.byte_rate.map(|rate| bytes as f64 / rate.get() as f64);
    let by_speed = pace
        .speed
        .zip(times)
        .map(|(speed, (first, last))| last.since(first).as_secs_f64() / speed.factor());
    let ramp = pace.ramp.map_or(0.0, |ramp| ramp.as_secs_f64());
    let limits =
        [by_rate.map(|at| ramped(at, ramp)), by_bytes.map(|at| ramped(at, ramp)), by_speed];
    let paced = limits.into_iter().flatten().reduce(f64::max);
    paced.unwrap_or(events as f64 / UNPACED_EVENTS_PER_SECOND)
}

/// Returns how long something takes that would take `seconds` at a rate to which it rises evenly
/// from zero in `ramp` seconds.
fn ramped(seconds: f64, ramp: f64) -> f64 {
    if seconds >= ramp / 2.0 { seconds + ramp / 2.0 } else { (2.0 * seconds * ramp).sqrt() }
}

impl PlannedSegment {
    fn of(surveyed: SurveyedSegment) -> Self {
        let SurveyedSegment { stream, key, size, digest, first, last, time_min, .. } = surveyed;
        PlannedSegment { stream, key, size, digest, first, last, time_min }
    }

    /// Returns what reading needs to know.
    pub fn to_read(&self) -> SegmentToRead {
        SegmentToRead { key: self.key.clone(), size: self.size, digest: self.digest }
    }
}

impl Plan {
    /// Adds gaps that a sync found in the streams that are read: a survey sees those between two
    /// segments, and not what is missing up to a stream's head.
    pub fn add_gaps(&mut self, found: &[Gap]) {
        for gap in found {
            let is_read = self.segments.iter().any(|segment| segment.stream == gap.stream);
            if is_read && !self.gaps.contains(gap) {
                self.gaps.push(gap.clone());
            }
        }
    }

    /// Returns the digest of all that decides what is published and where: the request and the
    /// planned segments.
    ///
    /// The same selection of the same archive to the same target has the same hash, whenever the
    /// plan is made; the counts and the state of the target are not part of it.
    pub fn hash(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher
            .update_framed(crate::plan_json::request_to_json(&self.request).to_string().as_bytes());
        for segment in &self.segments {
            hasher.update_framed(segment.stream.as_str().as_bytes());
            hasher.update_framed(segment.key.as_str().as_bytes());
            hasher.update_framed(segment.digest.as_bytes());
            for number in [segment.size, segment.first, segment.last] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(&segment.time_min.as_micros().to_le_bytes());
        }
        hasher.finish()
    }

    /// Returns the streams to read, each beginning after its position.
    pub fn streams(&self, positions: &crate::merge::Positions) -> Vec<StreamToRead> {
        let mut streams: BTreeMap<&StreamName, StreamToRead> = BTreeMap::new();
        for segment in &self.segments {
            let after = positions.get(&segment.stream).copied().unwrap_or(0);
            if segment.last <= after {
                continue;
            }
            let stream = streams.entry(&segment.stream).or_insert_with(|| StreamToRead {
                name: segment.stream.clone(),
                segments: Vec::new(),
                time_min: segment.time_min,
                after,
            });
            stream.segments.push(segment.to_read());
            stream.time_min = stream.time_min.min(segment.time_min);
        }
        streams.into_values().collect()
    }
}

#[cfg(test)]
mod tests;
