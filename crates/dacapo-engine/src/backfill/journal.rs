//! The journal of a backfill: append-only `lines`, each of them all that is known
//! of how it stands, so that the last sound one is enough.

use std::collections::BTreeMap;
use std::path::Path;

use dacapo_event::Timestamp;
use serde::{Deserialize, Serialize};

use super::standing::{Counts, Past, Played, Round, Stage, Standing};
use crate::EngineError;
use crate::lines::Lines;
use crate::merge::Positions;
use crate::state::ReplayId;

/// The journal of one backfill, open for appending.
#[derive(Debug)]
pub struct Journal {
    lines: Lines,
}

impl Journal {
    /// Opens a journal, creating it if it is not there, and returns how the backfill stands. What
    /// follows the first torn line is cut off.
    ///
    /// # Errors
    /// The file cannot be read or written, or a newer version wrote it.
    pub fn open(path: &Path) -> Result<(Self, Standing), EngineError> {
        let mut standing = Standing::default();
        let lines = Lines::open(path, |json| read(json).map(|read| standing = read))?;
        Ok((Journal { lines }, standing))
    }

    /// Returns how a backfill stands, without changing its journal; another process may be writing.
    ///
    /// # Errors
    /// The file cannot be read, or a newer version wrote it.
    pub fn read(path: &Path) -> Result<Standing, EngineError> {
        let mut standing = Standing::default();
        Lines::read(path, |json| read(json).map(|read| standing = read))?;
        Ok(standing)
    }

    /// Writes how the backfill stands; durable when it returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, standing: &Standing) -> Result<(), EngineError> {
        self.append(standing)?;
        self.lines.sync()
    }

    /// Writes how far what is held is passed on; safe from `kill -9` when it returns, from a power
    /// cut within a second.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn checkpoint(&mut self, standing: &Standing) -> Result<(), EngineError> {
        self.append(standing)?;
        self.lines.sync_at_times()
    }

    fn append(&mut self, standing: &Standing) -> Result<(), EngineError> {
        let json = StandingJson::of(standing);
        match self.lines.is_grown() {
            true => self.lines.replace(&[&json]),
            false => self.lines.append(&json),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StandingJson {
    stage: StageJson,
    began_at: Option<TimeJson>,
    runs: u64,
    positions: BTreeMap<String, u64>,
    played_to: Option<TimeJson>,
    rounds: u64,
    round: Option<RoundJson>,
    attempt: u64,
    asked_at: Option<TimeJson>,
    low: BTreeMap<String, u64>,
    high: BTreeMap<String, u64>,
    #[serde(default)]
    ends: Option<BTreeMap<String, u64>>,
    #[serde(default)]
    may_expire: bool,
    past: PastJson,
    counts: CountsJson,
}

#[derive(Serialize, Deserialize)]
struct RoundJson {
    number: u64,
    replay: String,
    surveyed_at: TimeJson,
    until: BTreeMap<String, u64>,
    is_last: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountsJson {
    history_events: u64,
    history_bytes: u64,
    history_possible_repeats: u64,
    history_reordered: u64,
    forwarded: u64,
    forwarded_bytes: u64,
    dropped: u64,
    replays: u64,
    between_barriers: u64,
    not_remembered: u64,
    passed_again: u64,
    live_as_well: u64,
    reordered: u64,
    came_live: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[derive(Clone)]
struct StageJson(Stage);

#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[derive(Clone)]
struct PastJson(Past);

#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[derive(Clone)]
struct TimeJson(Timestamp);

impl TryFrom<String> for StageJson {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        let found = Stage::ALL.into_iter().find(|stage| stage.as_str() == word);
        found.map(StageJson).ok_or_else(|| format!("`{word}` is no stage"))
    }
}

impl From<StageJson> for String {
    fn from(stage: StageJson) -> Self {
        stage.0.as_str().to_owned()
    }
}

impl TryFrom<String> for PastJson {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        let found = Past::ALL.into_iter().find(|past| past.as_str() == word);
        found.map(PastJson).ok_or_else(|| format!("`{word}` is no mark"))
    }
}

impl From<PastJson> for String {
    fn from(past: PastJson) -> Self {
        past.0.as_str().to_owned()
    }
}

impl TryFrom<String> for TimeJson {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(TimeJson).map_err(|error: dacapo_event::ParseError| error.to_string())
    }
}

impl From<TimeJson> for String {
    fn from(time: TimeJson) -> Self {
        time.0.to_string()
    }
}

fn read(json: &[u8]) -> Result<Standing, serde_json::Error> {
    serde_json::from_slice::<StandingJson>(json)?
        .into_standing()
        .map_err(<serde_json::Error as serde::de::Error>::custom)
}

fn to_wire(positions: &Positions) -> BTreeMap<String, u64> {
    positions.iter().map(|(stream, sequence)| (stream.to_string(), *sequence)).collect()
}

fn from_wire(positions: BTreeMap<String, u64>) -> Result<Positions, String> {
    let position = |(stream, sequence): (String, u64)| {
        let stream = stream.parse().map_err(|error: dacapo_event::ParseError| error.to_string())?;
        Ok((stream, sequence))
    };
    positions.into_iter().map(position).collect()
}

impl StandingJson {
    fn of(standing: &Standing) -> Self {
        let counts = &standing.counts;
        StandingJson {
            stage: StageJson(standing.stage),
            began_at: standing.began_at.map(TimeJson),
            runs: standing.runs,
            positions: to_wire(&standing.positions),
            played_to: standing.played_to.map(TimeJson),
            rounds: standing.rounds,
            round: standing.round.as_ref().map(|round| RoundJson {
                number: round.number,
                replay: round.replay.to_string(),
                surveyed_at: TimeJson(round.surveyed_at),
                until: to_wire(&round.until),
                is_last: round.is_last,
            }),
            attempt: standing.attempt,
            asked_at: standing.asked_at.map(TimeJson),
            low: to_wire(&standing.low),
            high: to_wire(&standing.high),
            ends: standing.ends.as_ref().map(to_wire),
            may_expire: standing.may_expire,
            past: PastJson(standing.past),
            counts: CountsJson {
                history_events: counts.history.events,
                history_bytes: counts.history.bytes,
                history_possible_repeats: counts.history.possible_repeats,
                history_reordered: counts.history.reordered,
                forwarded: counts.forwarded,
                forwarded_bytes: counts.forwarded_bytes,
                dropped: counts.dropped,
                replays: counts.replays,
                between_barriers: counts.between_barriers,
                not_remembered: counts.not_remembered,
                passed_again: counts.passed_again,
                live_as_well: counts.live_as_well,
                reordered: counts.reordered,
                came_live: counts.came_live,
            },
        }
    }

    fn into_standing(self) -> Result<Standing, String> {
        let counts = self.counts;
        let round = |round: RoundJson| {
            let no_replay = || format!("`{}` is no replay", round.replay);
            Ok::<_, String>(Round {
                number: round.number,
                replay: ReplayId::read(&round.replay).ok_or_else(no_replay)?,
                surveyed_at: round.surveyed_at.0,
                until: from_wire(round.until)?,
                is_last: round.is_last,
            })
        };
        Ok(Standing {
            stage: self.stage.0,
            began_at: self.began_at.map(|at| at.0),
            runs: self.runs,
            positions: from_wire(self.positions)?,
            played_to: self.played_to.map(|at| at.0),
            rounds: self.rounds,
            round: self.round.map(round).transpose()?,
            attempt: self.attempt,
            asked_at: self.asked_at.map(|at| at.0),
            low: from_wire(self.low)?,
            high: from_wire(self.high)?,
            ends: self.ends.map(from_wire).transpose()?,
            may_expire: self.may_expire,
            past: self.past.0,
            counts: Counts {
                history: Played {
                    events: counts.history_events,
                    bytes: counts.history_bytes,
                    possible_repeats: counts.history_possible_repeats,
                    reordered: counts.history_reordered,
                },
                forwarded: counts.forwarded,
                forwarded_bytes: counts.forwarded_bytes,
                dropped: counts.dropped,
                replays: counts.replays,
                between_barriers: counts.between_barriers,
                not_remembered: counts.not_remembered,
                passed_again: counts.passed_again,
                live_as_well: counts.live_as_well,
                reordered: counts.reordered,
                came_live: counts.came_live,
            },
        })
    }
}
