//! How far a backfill has come, and what each thing that happens makes of it. Pure.

use std::collections::BTreeMap;

use dacapo_event::{Sequence, StreamName, Timestamp};
use dacapo_filter::SequenceRange;

use crate::merge::Positions;
use crate::state::ReplayId;

/// What a backfill does next, or does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// The target queue is made, or found.
    #[default]
    Preparing,
    /// History is followed: a round is to be planned, or what is left is young enough.
    History,
    /// A round is played.
    Round,
    /// The archivers are asked for the first time how far they are.
    FirstBarrier,
    /// The holding queue is made and bound.
    Binding,
    /// The archivers are asked for the second time.
    SecondBarrier,
    /// The archivers' parking queues are asked.
    ParkedBarrier,
    /// A mark goes into the holding queue.
    Marking,
    /// The last round is to be planned.
    Closing,
    /// What was held is passed on, until little is left.
    Held,
    /// The target queue is bound to the live stream, and the holding queue no longer.
    Switching,
    /// The rest of what was held is passed on.
    Draining,
    /// The holding queue is deleted.
    Removing,
    /// All is done.
    Completed,
    /// Its operator ended it.
    Cancelled,
}

/// Which marks in the holding queue have been passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Past {
    /// None: what is held may be in history as well.
    #[default]
    Nothing,
    /// What follows is held only.
    History,
    /// What follows may have come live as well.
    Opened,
    /// What follows has come live.
    Closed,
}

/// What the archive had gained, as one replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Which one, from 1.
    pub number: u64,
    /// The replay that plays it.
    pub replay: ReplayId,
    /// When the archive was looked at.
    pub surveyed_at: Timestamp,
    /// The last sequence of each stream that is part of it.
    pub until: Positions,
    /// Whether it ends where what is held begins.
    pub is_last: bool,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Played {
    /// Events confirmed.
    pub events: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Messages that may have come more than once.
    pub possible_repeats: u64,
    /// Events that may have come before an earlier one.
    pub reordered: u64,
}

/// Counts over all runs. What is passed on of the holding queue is counted by deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// What all rounds did.
    pub history: Played,
    /// Held messages that the target has confirmed.
    pub forwarded: u64,
    /// Bytes of their bodies.
    pub forwarded_bytes: u64,
    /// Held messages that were dropped, because history has an event of the same id and content.
    pub dropped: u64,
    /// Held messages that are some other replay's, and were passed on as they are.
    pub replays: u64,
    /// Selected events between the two barriers.
    pub between_barriers: u64,
    /// Those of them whose repeats in the holding queue cannot be told and are passed on: without an
    /// id of their own, or more than is remembered.
    pub not_remembered: u64,
    /// Messages passed on that may have been passed on before: delivered again after a kill or a
    /// lost connection.
    pub passed_again: u64,
    /// Messages passed on that may have come live as well.
    pub live_as_well: u64,
    /// Messages passed on that may have come after a later one: at the switch, by way of the parking
    /// queue, or because the target refused an earlier one at first.
    pub reordered: u64,
    /// Held messages that came live and were dropped.
    pub came_live: u64,
}

impl Counts {
    /// Returns how many messages may have come more than once, at the most.
    pub fn possible_repeats(&self) -> u64 {
        self.history
            .possible_repeats
            .saturating_add(self.not_remembered)
            .saturating_add(self.passed_again)
            .saturating_add(self.live_as_well)
    }

    /// Returns how many may have come before an earlier one, or after a later one, at the most.
    pub fn possibly_reordered(&self) -> u64 {
        self.history.reordered.saturating_add(self.reordered)
    }
}

/// How a backfill stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// What comes next.
    pub stage: Stage,
    /// When it first began.
    pub began_at: Option<Timestamp>,
    /// How often it was started.
    pub runs: u64,
    /// The last sequence of each stream that was played.
    pub positions: Positions,
    /// When the archive ended there.
    pub played_to: Option<Timestamp>,
    /// How many rounds were begun.
    pub rounds: u64,
    /// The round at hand.
    pub round: Option<Round>,
    /// How often barriers were begun with.
    pub attempt: u64,
    /// When the first barrier of this attempt was wanted.
    pub asked_at: Option<Timestamp>,
    /// Of each stream the last sequence that cannot be held: up to the first barrier, or where it was
    /// known to end before that.
    pub low: Positions,
    /// What the archivers answered to the second barrier, and to that of their parking queues.
    pub high: Positions,
    /// Where the streams of the archive ended before the mark went into the holding queue.
    pub ends: Option<Positions>,
    /// Whether anything that was held had an expiration, or had expired.
    pub may_expire: bool,
    /// Which marks have been passed.
    pub past: Past,
    /// The counts.
    pub counts: Counts,
}

/// Something that happened; it is applied, and then written to the journal.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    /// A run began.
    Began(Timestamp),
    /// The target queue is there.
    Prepared,
    /// There is more to play.
    RoundPlanned(Round),
    /// The round at hand is played to its end.
    RoundPlayed(Played),
    /// The round at hand was ended by its operator after so much.
    RoundEnded(Played, Positions),
    /// What is left is young enough; the archive ends there.
    Near(Timestamp, Positions),
    /// The archivers answered to the first barrier.
    FirstAnswered(Positions),
    /// Too late: meanwhile what is left has grown old.
    Stale,
    /// The holding queue holds.
    Bound,
    /// The archivers answered to the second barrier.
    SecondAnswered(Positions),
    /// The archivers answered to the barrier of their parking queues.
    ParkedAnswered(Positions),
    /// The archive ends there, and the mark is not in the holding queue yet.
    Surveyed(Positions),
    /// The mark is in the holding queue.
    Marked,
    /// Little is held any more.
    LittleHeld,
    /// The target is bound, and the holding queue no longer.
    Switched,
    /// Everything that was to be passed on is.
    Drained,
    /// The holding queue is gone.
    Removed,
    /// Its operator ended it.
    Cancelled,
}

impl Standing {
    /// Takes what happened.
    pub fn apply(&mut self, happened: Happened) {
        match happened {
            Happened::Began(at) => {
                self.began_at.get_or_insert(at);
                self.runs = self.runs.saturating_add(1);
            }
            Happened::Prepared => self.stage = Stage::History,
            Happened::RoundPlanned(round) => {
                self.rounds = round.number;
                self.round = Some(round);
                self.stage = Stage::Round;
            }
            Happened::RoundPlayed(played) => self.round_played(played),
            Happened::RoundEnded(played, positions) => {
                let is_last = self.round.take().is_some_and(|round| round.is_last);
                raise(&mut self.positions, &positions);
                self.count(played);
                self.stage = if is_last { Stage::Closing } else { Stage::History };
            }
            Happened::Near(at, ends) => {
                self.attempt = self.attempt.saturating_add(1);
                self.asked_at = Some(at);
                self.low = ends;
                self.high.clear();
                self.ends = None;
                self.stage = Stage::FirstBarrier;
            }
            Happened::FirstAnswered(reached) => {
                // Below an answer nothing can be held, whatever was known before it was asked for.
                self.low.extend(reached);
                self.stage = Stage::Binding;
            }
            Happened::Stale => self.stage = Stage::History,
            Happened::Bound => self.stage = Stage::SecondBarrier,
            Happened::SecondAnswered(reached) => {
                self.high = reached;
                self.stage = Stage::ParkedBarrier;
            }
            Happened::ParkedAnswered(reached) => {
                raise(&mut self.high, &reached);
                self.stage = Stage::Marking;
            }
            Happened::Surveyed(ends) => self.ends = Some(ends),
            Happened::Marked => self.stage = Stage::Closing,
            Happened::LittleHeld => self.stage = Stage::Switching,
            Happened::Switched => self.stage = Stage::Draining,
            Happened::Drained => self.stage = Stage::Removing,
            Happened::Removed => self.stage = Stage::Completed,
            Happened::Cancelled => self.stage = Stage::Cancelled,
        }
    }

    fn round_played(&mut self, played: Played) {
        let Some(round) = self.round.take() else { return };
        raise(&mut self.positions, &round.until);
        self.played_to = Some(round.surveyed_at);
        self.count(played);
        self.stage = if round.is_last { Stage::Held } else { Stage::History };
    }

    fn count(&mut self, played: Played) {
        let history = &mut self.counts.history;
        history.events += played.events;
        history.bytes += played.bytes;
        history.possible_repeats += played.possible_repeats;
        history.reordered += played.reordered;
    }

    /// Returns what of the archive, which has these ends, is not played yet.
    pub fn beyond(&self, ends: &Positions) -> Vec<SequenceRange> {
        let range = |(stream, until): (&StreamName, &Sequence)| {
            let after = self.positions.get(stream).copied().unwrap_or(0);
            (after < *until).then(|| SequenceRange { stream: stream.clone(), after, until: *until })
        };
        ends.iter().filter_map(range).collect()
    }

    /// Returns the runs whose events may be held as well, once the last round is played or planned.
    pub fn between_barriers(&self) -> Vec<SequenceRange> {
        let ends: &BTreeMap<StreamName, Sequence> = match &self.round {
            Some(round) if round.is_last => &round.until,
            _ => &self.positions,
        };
        let range = |(stream, until): (&StreamName, &Sequence)| {
            let after = self.low.get(stream).copied().unwrap_or(0);
            (after < *until).then(|| SequenceRange { stream: stream.clone(), after, until: *until })
        };
        ends.iter().filter_map(range).collect()
    }

    /// Returns whether the holding queue may be there.
    pub fn may_hold(&self) -> bool {
        use Stage as S;
        match self.stage {
            S::Binding | S::SecondBarrier | S::ParkedBarrier | S::Marking | S::Closing => true,
            S::Held => true,
            S::Switching | S::Draining | S::Removing => true,
            S::Round => self.round.as_ref().is_some_and(|round| round.is_last),
            S::Preparing | S::History | S::FirstBarrier | S::Completed | S::Cancelled => false,
        }
    }

    /// Returns whether it can go on.
    pub fn is_resumable(&self) -> bool {
        !matches!(self.stage, Stage::Completed | Stage::Cancelled)
    }
}

/// Moves positions forward, never back.
fn raise(positions: &mut Positions, to: &Positions) {
    for (stream, sequence) in to {
        let position = positions.entry(stream.clone()).or_insert(0);
        *position = (*position).max(*sequence);
    }
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 15] = [
        Stage::Preparing,
        Stage::History,
        Stage::Round,
        Stage::FirstBarrier,
        Stage::Binding,
        Stage::SecondBarrier,
        Stage::ParkedBarrier,
        Stage::Marking,
        Stage::Closing,
        Stage::Held,
        Stage::Switching,
        Stage::Draining,
        Stage::Removing,
        Stage::Completed,
        Stage::Cancelled,
    ];

    /// Returns its word in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Preparing => "preparing",
            Stage::History => "history",
            Stage::Round => "round",
            Stage::FirstBarrier => "first_barrier",
            Stage::Binding => "binding",
            Stage::SecondBarrier => "second_barrier",
            Stage::ParkedBarrier => "parked_barrier",
            Stage::Marking => "marking",
            Stage::Closing => "closing",
            Stage::Held => "held",
            Stage::Switching => "switching",
            Stage::Draining => "draining",
            Stage::Removing => "removing",
            Stage::Completed => "completed",
            Stage::Cancelled => "cancelled",
        }
    }

    /// Returns where the service is with this: what an operator is told.
    pub fn phase(self) -> &'static str {
        match self {
            Stage::Preparing | Stage::History | Stage::Round | Stage::FirstBarrier => "history",
            Stage::Binding | Stage::SecondBarrier | Stage::ParkedBarrier => "catching-up",
            Stage::Marking | Stage::Closing | Stage::Held | Stage::Switching => "catching-up",
            // From the switch on it gets live events.
            Stage::Draining | Stage::Removing | Stage::Completed => "live",
            Stage::Cancelled => "cancelled",
        }
    }
}

impl Past {
    /// All of them, in order.
    pub(super) const ALL: [Past; 4] = [Past::Nothing, Past::History, Past::Opened, Past::Closed];

    /// Returns its word in the journal.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Past::Nothing => "nothing",
            Past::History => "history",
            Past::Opened => "opened",
            Past::Closed => "closed",
        }
    }
}
