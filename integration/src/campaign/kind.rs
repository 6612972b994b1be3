//! What strikes, and whom.

use std::fmt;

/// A process of dacapo that a fault is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `dacapo archive run`.
    Archiver,
    /// `dacapo replay`.
    Replay,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Archiver => "archiver",
            Side::Replay => "replay",
        })
    }
}

/// A way in which things break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Terminated,
    /// The broker is stopped in order and started again.
    BrokerStopped,
    /// The broker is killed and started again.
    BrokerKilled,
    /// The connection is reset.
    Cut,
    /// Nothing passes any more in either direction, and neither side is told.
    Stalled,
    /// One direction of the connection ends.
    HalfClosed,
    /// Frames pass one by one.
    Slowed,
    /// The broker closes the channel over a protocol error.
    ChannelClosed,
    /// The broker runs short of memory and blocks publishers.
    MemoryAlarm,
    /// The target takes no more and refuses.
    QueueFull,
    /// The target is deleted in the middle.
    QueueDeleted,
    /// The target is unbound from its exchange in the middle.
    QueueUnbound,
    /// S3 answers 500.
    Status500,
    /// S3 answers 503 `SlowDown`.
    SlowDown,
    /// S3 does not answer.
    Unanswered,
    /// A body ends early, on its way to S3 or from it.
    Truncated,
    /// A byte of a body changes, on its way to S3 or from it.
    Corrupted,
    /// The connection to S3 is reset.
    Reset,
    /// Listings of S3 do not show what is new.
    StaleListing,
    /// The disk of the archive is full.
    StoreFull,
    /// The disk of the index is full.
    IndexFull,
    /// The disk of journals and receipts is full.
    StateFull,
    /// The wall clock is set back.
    ClockBack,
}

/// Everything that can be struck, in the order in which it is told.
pub const STRIKES: [(Kind, Side); 40] = {
    use Kind as K;
    use Side::{Archiver, Replay};
    [
        (K::Killed, Archiver),
        (K::Killed, Replay),
        (K::Terminated, Archiver),
        (K::Terminated, Replay),
        (K::BrokerStopped, Archiver),
        (K::BrokerStopped, Replay),
        (K::BrokerKilled, Archiver),
        (K::BrokerKilled, Replay),
        (K::Cut, Archiver),
        (K::Cut, Replay),
        (K::Stalled, Archiver),
        (K::Stalled, Replay),
        (K::HalfClosed, Archiver),
        (K::HalfClosed, Replay),
        (K::Slowed, Archiver),
        (K::Slowed, Replay),
        (K::ChannelClosed, Archiver),
        (K::ChannelClosed, Replay),
        (K::MemoryAlarm, Replay),
        (K::QueueFull, Replay),
        (K::QueueDeleted, Replay),
        (K::QueueUnbound, Replay),
        (K::Status500, Archiver),
        (K::Status500, Replay),
        (K::SlowDown, Archiver),
        (K::SlowDown, Replay),
        (K::Unanswered, Archiver),
        (K::Unanswered, Replay),
        (K::Truncated, Archiver),
        (K::Truncated, Replay),
        (K::Corrupted, Archiver),
        (K::Corrupted, Replay),
        (K::Reset, Archiver),
        (K::Reset, Replay),
        (K::StaleListing, Archiver),
        (K::StoreFull, Archiver),
        (K::IndexFull, Replay),
        (K::StateFull, Replay),
        (K::ClockBack, Archiver),
        (K::ClockBack, Replay),
    ]
};

impl Kind {
    /// Returns its name, as `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Killed => "killed",
            Kind::Terminated => "terminated",
            Kind::BrokerStopped => "broker-stopped",
            Kind::BrokerKilled => "broker-killed",
            Kind::Cut => "cut",
            Kind::Stalled => "stalled",
            Kind::HalfClosed => "half-closed",
            Kind::Slowed => "slowed",
            Kind::ChannelClosed => "channel-closed",
            Kind::MemoryAlarm => "memory-alarm",
            Kind::QueueFull => "queue-full",
            Kind::QueueDeleted => "queue-deleted",
            Kind::QueueUnbound => "queue-unbound",
            Kind::Status500 => "s3-500",
            Kind::SlowDown => "s3-slow-down",
            Kind::Unanswered => "s3-timeout",
            Kind::Truncated => "s3-truncated",
            Kind::Corrupted => "s3-corrupted",
            Kind::Reset => "s3-reset",
            Kind::StaleListing => "s3-stale-listing",
            Kind::StoreFull => "store-full",
            Kind::IndexFull => "index-full",
            Kind::StateFull => "state-full",
            Kind::ClockBack => "clock-back",
        }
    }

    /// Returns the kind of this name.
    pub fn named(name: &str) -> Option<Kind> {
        STRIKES.iter().map(|(kind, _)| *kind).find(|kind| kind.name() == name)
    }

    /// Returns how often it interrupts whom it strikes; what is not interrupted repeats nothing.
    /// Absent where the target refuses: a replay then interrupts itself.
    pub const fn interruptions(self) -> Option<u64> {
        match self {
            Kind::QueueFull => None,
            Kind::Killed
            | Kind::BrokerStopped
            | Kind::BrokerKilled
            | Kind::Cut
            | Kind::Stalled
            | Kind::HalfClosed
            | Kind::ChannelClosed
            | Kind::QueueDeleted
            | Kind::QueueUnbound
            | Kind::StaleListing
            | Kind::StateFull => Some(1),
            Kind::Terminated
            | Kind::Slowed
            | Kind::MemoryAlarm
            | Kind::Status500
            | Kind::SlowDown
            | Kind::Unanswered
            | Kind::Truncated
            | Kind::Corrupted
            | Kind::Reset
            | Kind::StoreFull
            | Kind::IndexFull
            | Kind::ClockBack => Some(0),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_of_one_kind() {
        for (kind, _) in STRIKES {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert_eq!(Kind::named("earthquake"), None);
    }
}
