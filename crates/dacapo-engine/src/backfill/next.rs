//! What a backfill does next: a plain function of how it stands and of facts.

use std::time::Duration;

use dacapo_event::{Digest, Timestamp};

use super::{BackfillId, Barrier, Description, Happened, Round, Stage, Standing};
use crate::merge::Positions;
use crate::state::ReplayId;

/// How late the archivers may answer to the first barrier, if more than a backfill may be behind:
/// they put a segment for it, with retries. Past it what the archive gained meanwhile is played
/// first, so that little has to be remembered and little is held.
pub const ANSWER_FRESH: Duration = Duration::from_secs(120);

/// What is known beside the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The time.
    pub now: Timestamp,
    /// Where the streams of the archive end, as of `now`; looked at only if
    /// [`Standing::needs_ends`].
    pub ends: Positions,
    /// Tells apart replays that begin together.
    pub salt: u32,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing but to write this to the journal.
    Note(Happened),
    /// Make or find the target queue.
    Prepare,
    /// Play the round at hand.
    Play(Round),
    /// Publish this barrier to every archiver's queue, or parking queue, and wait until all have
    /// answered.
    Ask(Barrier),
    /// Make the holding queue, see whether there is room, bind it, and wait for the margin.
    Bind,
    /// Take the holding queue away again: it holds what is to come too long.
    Release,
    /// Wait for the margin, for an archiver may have what is still on its way to the holding queue, and
    /// publish the mark of what can be in history into it.
    Mark,
    /// Wait until the archive that is seen is as long as the archivers say.
    AwaitArchive,
    /// Pass on what is held until little is.
    Forward,
    /// Mark, bind the target, wait for the margin, mark, unbind the holding queue.
    Switch,
    /// Pass on the rest.
    Drain,
    /// Delete the holding queue.
    Remove,
    /// Nothing: it is over.
    Nothing,
}

impl Standing {
    /// Returns whether what comes next depends on where the archive ends now.
    pub fn needs_ends(&self) -> bool {
        match self.stage {
            Stage::History | Stage::Closing => true,
            Stage::Marking => self.ends.is_none(),
            _ => false,
        }
    }

    /// Returns how old what is not played may be, if the archive has these ends now: what is not
    /// played was archived since the archive was last played to its end.
    pub fn behind(&self, facts: &Facts) -> Option<Duration> {
        match self.beyond(&facts.ends).is_empty() {
            true => Some(Duration::ZERO),
            false => self.played_to.map(|at| facts.now.since(at)),
        }
    }

    /// Returns whether the first barrier of this attempt was asked so long ago that history is to be
    /// followed again.
    fn is_stale(&self, description: &Description, now: Timestamp) -> bool {
        let fresh = ANSWER_FRESH.max(description.behind_max);
        self.asked_at.is_none_or(|at| now.since(at) > fresh)
    }
}

/// Decides.
pub fn next(
    id: &BackfillId,
    description: &Description,
    standing: &Standing,
    facts: &Facts,
) -> Step {
    match standing.stage {
        Stage::Preparing => Step::Prepare,
        Stage::History => match standing.behind(facts) {
            Some(behind) if behind <= description.behind_max => {
                Step::Note(Happened::Near(facts.now, facts.ends.clone()))
            }
            _ => plan(id, standing, facts, facts.ends.clone(), false),
        },
        Stage::Round => match &standing.round {
            Some(round) => Step::Play(round.clone()),
            None => Step::Note(Happened::Stale),
        },
        Stage::FirstBarrier => Step::Ask(Barrier::First),
        Stage::Binding if standing.is_stale(description, facts.now) => Step::Release,
        Stage::Binding => Step::Bind,
        Stage::SecondBarrier => Step::Ask(Barrier::Second),
        Stage::ParkedBarrier => Step::Ask(Barrier::Parked),
        // What is archived after the mark is held after it, so the last round must not have it.
        Stage::Marking if standing.ends.is_none() => {
            Step::Note(Happened::Surveyed(facts.ends.clone()))
        }
        Stage::Marking => Step::Mark,
        Stage::Closing => close(id, standing, facts),
        Stage::Held => Step::Forward,
        Stage::Switching => Step::Switch,
        Stage::Draining => Step::Drain,
        Stage::Removing => Step::Remove,
        Stage::Completed | Stage::Cancelled => Step::Nothing,
    }
}

/// The last round ends at the barriers where there were some, and takes in elsewhere what there was
/// before the mark.
fn close(id: &BackfillId, standing: &Standing, facts: &Facts) -> Step {
    let seen = |stream| facts.ends.get(stream).copied().unwrap_or(0);
    if standing.high.iter().any(|(stream, reached)| seen(stream) < *reached) {
        return Step::AwaitArchive;
    }
    // A journal of an older dacapo does not say where they ended.
    let mut until = standing.ends.as_ref().unwrap_or(&facts.ends).clone();
    until.extend(standing.high.iter().map(|(stream, reached)| (stream.clone(), *reached)));
    plan(id, standing, facts, until, true)
}

fn plan(
    id: &BackfillId,
    standing: &Standing,
    facts: &Facts,
    until: Positions,
    is_last: bool,
) -> Step {
    let number = standing.rounds.saturating_add(1);
    let digest = Digest::of(format!("{id} {number}").as_bytes());
    let replay = ReplayId::new(facts.now, &digest, facts.salt);
    let surveyed_at = facts.now;
    Step::Note(Happened::RoundPlanned(Round { number, replay, surveyed_at, until, is_last }))
}
