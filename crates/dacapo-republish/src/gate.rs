//! Whether the target wants messages now: it may be blocked, or too deep.

use std::num::NonZeroU64;
use std::time::Duration;

use dacapo_bus::TargetState;
use tokio::time::Instant;

use crate::Phase;

/// How often the target is asked while it takes messages. A blocked connection is noticed within
/// this, and what was sent meanwhile is within the window.
const ASK_OPEN: Duration = Duration::from_millis(250);

/// How often it is asked while it is shut, or its room is used up: what a sink's `state` is made
/// for.
const ASK_SHUT: Duration = Duration::from_millis(100);

/// What is known of the target's will.
#[derive(Debug)]
pub(crate) struct Gate {
    depth_max: Option<NonZeroU64>,
    asked: Option<Instant>,
    known: Known,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Blocked,
    /// So many more messages may be published before the queue can be too deep.
    Room {
        left: u64,
        depth: u64,
    },
}

/// A depth limit was asked for, and the target has no depth.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoDepth;

impl Gate {
    pub(crate) fn new(depth_max: Option<NonZeroU64>) -> Self {
        Gate { depth_max, asked: None, known: Known::Room { left: 0, depth: 0 } }
    }

    /// Forgets what was known, because the connection is another one.
    pub(crate) fn reset(&mut self) {
        *self = Gate::new(self.depth_max);
    }

    /// Returns when the target is to be asked next; at once if it never was.
    pub(crate) fn ask_at(&self) -> Option<Instant> {
        let interval = if self.shut().is_some() { ASK_SHUT } else { ASK_OPEN };
        self.asked.map(|asked| asked + interval)
    }

    /// Takes the answer. `unanswered` messages are on their way and may not be counted in it yet.
    pub(crate) fn answer(
        &mut self,
        state: TargetState,
        unanswered: u64,
        now: Instant,
    ) -> Result<(), NoDepth> {
        self.asked = Some(now);
        self.known = match (state.blocked, self.depth_max, state.depth) {
            (true, _, _) => Known::Blocked,
            (false, None, depth) => Known::Room { left: u64::MAX, depth: depth.unwrap_or(0) },
            (false, Some(_), None) => return Err(NoDepth),
            (false, Some(most), Some(depth)) => {
                let left = most.get().saturating_sub(depth).saturating_sub(unanswered);
                Known::Room { left, depth }
            }
        };
        Ok(())
    }

    /// Notes that the target did not answer in time, which is what a blocked one may do.
    pub(crate) fn silent(&mut self, now: Instant) {
        self.asked = Some(now);
        self.known = Known::Blocked;
    }

    /// Returns how many messages may be published.
    pub(crate) fn room(&self) -> usize {
        match self.known {
            Known::Blocked => 0,
            Known::Room { left, .. } => usize::try_from(left).unwrap_or(usize::MAX),
        }
    }

    /// Returns what a run with no room is waiting for.
    pub(crate) fn shut(&self) -> Option<Phase> {
        match self.known {
            Known::Blocked => Some(Phase::Blocked),
            Known::Room { left: 0, depth } => Some(Phase::TooDeep { depth }),
            Known::Room { .. } => None,
        }
    }

    /// Notes that so many were published.
    pub(crate) fn published(&mut self, count: usize) {
        if let Known::Room { left, .. } = &mut self.known
            && *left != u64::MAX
        {
            *left = left.saturating_sub(count as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(depth: Option<u64>, blocked: bool) -> TargetState {
        TargetState { depth, blocked }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_counts_against_the_room() {
        let now = Instant::now();
        let mut gate = Gate::new(NonZeroU64::new(100));
        assert_eq!(gate.ask_at(), None, "asked before anything is published");
        assert_eq!(gate.room(), 0);
        gate.answer(state(Some(60), false), 30, now).unwrap();
        assert_eq!((gate.room(), gate.shut()), (10, None));
        assert_eq!(gate.ask_at(), Some(now + ASK_OPEN));
        gate.published(10);
        assert_eq!(gate.shut(), Some(Phase::TooDeep { depth: 60 }));
        assert_eq!(gate.ask_at(), Some(now + ASK_SHUT), "asked again when the room is used up");
        gate.answer(state(Some(500), false), 0, now).unwrap();
        assert_eq!(gate.room(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn blocked_or_silent_is_shut_and_no_limit_is_room_without_end() {
        let now = Instant::now();
        let mut gate = Gate::new(None);
        gate.answer(state(Some(1), true), 0, now).unwrap();
        assert_eq!((gate.room(), gate.shut()), (0, Some(Phase::Blocked)));
        gate.answer(state(None, false), 1_000, now).unwrap();
        gate.published(1_000_000);
        assert_eq!((gate.room(), gate.shut()), (usize::MAX, None));
        gate.silent(now);
        assert_eq!(gate.shut(), Some(Phase::Blocked));
        gate.reset();
        assert_eq!(gate.ask_at(), None);
        let mut limited = Gate::new(NonZeroU64::new(1));
        assert_eq!(limited.answer(state(None, false), 0, now), Err(NoDepth));
    }
}
