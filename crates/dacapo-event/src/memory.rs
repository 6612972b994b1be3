//! The one budget that every kind of work takes its share of.

use std::num::NonZeroU64;

/// What events may take in memory, all buffers together; the process takes some 40 MB beside it.
///
/// Each share is a bound on what one part holds; a single event larger than a share is held alone.
/// With the default, 128 MiB, a process stays under 200 MB with bodies of 16 MiB among small ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget(NonZeroU64);

impl MemoryBudget {
    /// The default: with the rest of the process it fits a container of 200 MB.
    pub const DEFAULT: MemoryBudget =
        MemoryBudget(NonZeroU64::new(128 * 1024 * 1024).expect("not zero"));

    /// The least: below it a page of bodies for each of fifty streams does not fit its share.
    pub const MIN_BYTES: u64 = 32 * 1024 * 1024;

    /// Returns a budget of so many bytes; nothing if they are fewer than
    /// [`MemoryBudget::MIN_BYTES`].
    pub fn new(bytes: u64) -> Option<Self> {
        NonZeroU64::new(bytes).filter(|bytes| bytes.get() >= Self::MIN_BYTES).map(MemoryBudget)
    }

    /// Returns the whole.
    pub const fn bytes(self) -> u64 {
        self.0.get()
    }

    /// Returns the size at which a segment is finished: one is filled while one is put, and
    /// encoding takes as much again.
    pub const fn segment(self) -> u64 {
        self.bytes() / 8
    }

    /// Returns what all streams that are read together may hold decoded. Pages on their way to be
    /// decoded take about as much again, and a row group that is fetched at once half as much as stored.
    pub fn reading(self) -> u64 {
        self.bytes() / 8
    }

    /// Returns what deliveries may take that an archiver has been sent and not begun to encode.
    pub fn waiting(self) -> u64 {
        self.bytes() / 4
    }

    /// Returns the size at which an output of compaction is finished, unless another is asked for.
    pub fn output(self) -> u64 {
        self.bytes() / 4
    }

    /// Returns the largest size that may be asked for: an output is held while it is made and put.
    pub fn output_max(self) -> u64 {
        self.bytes() / 8 * 3
    }

    /// Returns what may be remembered of the events of one output, to find those that are there
    /// twice.
    pub fn repeats(self) -> u64 {
        self.bytes() / 8
    }

    /// Returns what a backfill may remember of events that are in history and may be held as well.
    pub fn remembered(self) -> u64 {
        self.bytes() / 4
    }

    /// Returns how many bytes of bodies and properties may be published and not confirmed. The
    /// client holds the properties as they are encoded, too, and copies of one write.
    pub fn window(self) -> u64 {
        self.bytes() / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_has_a_least_and_its_parts_fit_it() {
        assert_eq!(MemoryBudget::new(MemoryBudget::MIN_BYTES - 1), None);
        for bytes in [MemoryBudget::MIN_BYTES, MemoryBudget::DEFAULT.bytes(), u64::MAX] {
            let budget = MemoryBudget::new(bytes).unwrap();
            let replay = 2 * budget.reading() + 2 * budget.window();
            let archive = 3 * budget.segment() + budget.waiting();
            let compaction = budget.output_max() + budget.repeats();
            let backfill = 2 * budget.window() + budget.waiting() + budget.remembered();
            let most = replay.max(archive).max(compaction).max(backfill);
            assert!(most <= bytes && budget.output() <= budget.output_max(), "{bytes}");
        }
    }
}
