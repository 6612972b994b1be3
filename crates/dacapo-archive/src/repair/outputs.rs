//! What outputs of compaction prove: the chain entries of their inputs, and which of the outputs
//! took the place of segments. Plain functions of what was found in the archive.
//!
//! Outputs cover a stream from its first sequence without a hole, each naming the digest of the one
//! before it; and each lists what it was made of, which the chain must confirm.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use dacapo_event::{Digest, Sequence};

use crate::chain::ChainEntry;
use crate::compaction::Compaction;
use crate::store::ObjectKey;

/// An output whose footer could be read.
#[derive(Debug)]
pub(super) struct Output {
    /// What its compaction entry would say.
    pub(super) entry: ChainEntry,
    pub(super) made: Compaction,
    /// Whether all of its bytes were read and agree with its digest; else only its footer was, and
    /// a compaction entry says the same.
    pub(super) is_whole: bool,
}

/// A compaction entry as it was found.
#[derive(Debug)]
pub(super) struct ListedOutput {
    /// What it says of its output; absent if it is not readable.
    pub(super) entry: Option<ChainEntry>,
    /// The digest that a damaged entry still shows.
    pub(super) named: Option<Digest>,
}

/// A chain entry that an output tells of.
pub(super) struct Recorded {
    pub(super) entry: ChainEntry,
    /// The place of the output among those given.
    pub(super) by: usize,
}

/// Returns the chain entries that outputs tell of, as far as nothing of them is missing: their key,
/// and the digest of the segment before; `ends` is last sequence and digest of the segments that
/// anything else tells of.
pub(super) fn recorded(outputs: &[Output], ends: &BTreeSet<(Sequence, Digest)>) -> Vec<Recorded> {
    let of_outputs: BTreeMap<(Sequence, Digest), Digest> = outputs
        .iter()
        .filter_map(|output| Some((output.entry.last, output.entry.digest, output.last_input()?)))
        .map(|(last, digest, last_input)| ((last, digest), last_input))
        .collect();
    let before = |output: &ChainEntry| {
        let end = (output.first - 1, output.previous?);
        // A segment that is its own output has one digest in both chains.
        let itself = ends.contains(&end).then_some(end.1);
        of_outputs.get(&end).copied().or(itself)
    };
    let mut all = Vec::new();
    for (by, output) in outputs.iter().enumerate() {
        let mut previous = match output.entry.first {
            1 => Some(None),
            _ => before(&output.entry).map(Some),
        };
        for input in &output.made.inputs {
            if let (Some(previous), Some(segment)) = (previous, input.key_within(&output.entry)) {
                let entry = ChainEntry {
                    segment,
                    size: input.bytes,
                    first: input.first,
                    last: input.last,
                    digest: input.digest,
                    previous,
                };
                all.push(Recorded { entry, by });
            }
            previous = Some(Some(input.digest));
        }
    }
    all
}

impl Output {
    /// Returns the digest of its last input.
    pub(super) fn last_input(&self) -> Option<Digest> {
        self.made.inputs.last().map(|input| input.digest)
    }
}

/// What was found of the outputs of one stream.
pub(super) struct Evidence<'a> {
    /// The compaction entries, by the sequence in their key.
    pub(super) listed: &'a BTreeMap<Sequence, ListedOutput>,
    pub(super) outputs: &'a [Output],
    /// The chain entries that are confirmed, or were rebuilt.
    pub(super) chain: &'a BTreeMap<Sequence, &'a ChainEntry>,
    /// The segments that are there.
    pub(super) segments: &'a BTreeSet<ObjectKey>,
}

/// Where the outputs end that were looked at.
#[derive(Clone, Copy)]
enum End {
    /// With this output, which is there; nothing before the first.
    At(Option<Digest>),
    /// With this output, as its entry says; it is not there.
    Said(Digest),
    /// With one of which nothing is known.
    Unknown,
}

/// Returns what the compaction entries are to say that are missing, damaged, or not those of this
/// archive, and whose output proves itself.
pub(super) fn rebuilt(evidence: &Evidence<'_>) -> Vec<ChainEntry> {
    let mut by_first: BTreeMap<Sequence, Vec<&Output>> = BTreeMap::new();
    for output in evidence.outputs {
        by_first.entry(output.entry.first).or_default().push(output);
    }
    let proof = Proof { evidence, by_first };
    let mut rebuilt = Vec::new();
    let (mut next, mut end) = (Some(1), End::At(None));
    while let Some(first) = next {
        let there = evidence.listed.get(&first).and_then(|listed| listed.entry.as_ref());
        let confirmed = there.filter(|entry| proof.is_confirmed(entry));
        let found = match confirmed {
            Some(_) => None,
            None => proof.choose(first, end),
        };
        let said = there.filter(|entry| entry.continues(end));
        (next, end) = match (confirmed.or(found.as_ref()), said) {
            (Some(output), _) => (output.last.checked_add(1), End::At(Some(output.digest))),
            (None, Some(lost)) => (lost.last.checked_add(1), End::Said(lost.digest)),
            // Nothing is known of it: on with the next that there is.
            (None, None) => {
                let later = (Bound::Excluded(first), Bound::Unbounded);
                let listed = evidence.listed.range(later).next().map(|(first, _)| *first);
                let there = proof.by_first.range(later).next().map(|(first, _)| *first);
                (listed.into_iter().chain(there).min(), End::Unknown)
            }
        };
        rebuilt.extend(found);
    }
    rebuilt
}

impl ChainEntry {
    fn continues(&self, end: End) -> bool {
        match end {
            End::At(before) => self.previous == before,
            End::Said(before) => self.previous == Some(before),
            End::Unknown => true,
        }
    }
}

struct Proof<'a> {
    evidence: &'a Evidence<'a>,
    by_first: BTreeMap<Sequence, Vec<&'a Output>>,
}

impl Proof<'_> {
    fn at(&self, first: Sequence) -> impl Iterator<Item = &Output> {
        self.by_first.get(&first).map_or(&[][..], Vec::as_slice).iter().copied()
    }

    /// Returns whether an object says what this compaction entry does.
    fn is_confirmed(&self, entry: &ChainEntry) -> bool {
        let is_itself = self.evidence.chain.get(&entry.first).is_some_and(|segment| {
            **segment == ChainEntry { previous: segment.previous, ..entry.clone() }
        });
        is_itself || self.at(entry.first).any(|output| output.entry == *entry)
    }

    /// Returns the output that begins here, if one can be proven.
    fn choose(&self, first: Sequence, end: End) -> Option<ChainEntry> {
        let outputs = self
            .at(first)
            .filter(|output| output.entry.continues(end) && self.is_made_of_the_chain(output));
        let outputs: Vec<&ChainEntry> = outputs.map(|output| &output.entry).collect();
        let itself = self.itself(first, end);
        let all = outputs.iter().copied().chain(itself.as_ref());
        let named: Vec<&ChainEntry> = all.filter(|output| self.is_named(output)).collect();
        match (named.as_slice(), outputs.as_slice()) {
            ([only], _) => Some((*only).clone()),
            ([], [only]) if self.was_there(only, end) && self.has_room_for(only) => {
                Some((*only).clone())
            }
            _ => None,
        }
    }

    /// Returns the segment that begins here as its own output.
    fn itself(&self, first: Sequence, end: End) -> Option<ChainEntry> {
        let End::At(previous) = end else { return None };
        let segment = self.evidence.chain.get(&first)?;
        let is_there = self.evidence.segments.contains(&segment.segment);
        is_there.then(|| ChainEntry { previous, ..(*segment).clone() })
    }

    /// Returns whether the chain has all that an output says it was made of.
    fn is_made_of_the_chain(&self, output: &Output) -> bool {
        output.is_whole
            && output.made.inputs.iter().all(|input| {
                let chained = self.evidence.chain.get(&input.first);
                chained.is_some_and(|chained| input.is_of(chained, &output.entry))
            })
    }

    /// Returns whether another object names this output: what was made after it, or what is left
    /// of its own entry.
    fn is_named(&self, output: &ChainEntry) -> bool {
        let next = output.last.saturating_add(1);
        let continues =
            |entry: &ChainEntry| entry.first == next && entry.previous == Some(output.digest);
        let listed = self.evidence.listed.get(&next).and_then(|listed| listed.entry.as_ref());
        let left = self.evidence.listed.get(&output.first).and_then(|listed| listed.named);
        listed.is_some_and(continues)
            || self.at(next).any(|other| continues(&other.entry))
            || left == Some(output.digest)
    }

    /// Returns whether this output must have been part of the archive, or one in its place: there
    /// is an entry that is not what it was, or a segment was deleted, which only happens then.
    fn was_there(&self, output: &ChainEntry, end: End) -> bool {
        // It could lie within one of which nothing is known.
        if matches!(end, End::Unknown) {
            return false;
        }
        let is_damaged =
            self.evidence.listed.get(&output.first).is_some_and(|listed| {
                listed.entry.as_ref().is_none_or(|entry| !entry.continues(end))
            });
        let inputs = self.evidence.chain.range(output.first..=output.last);
        is_damaged
            || inputs.into_iter().any(|(_, input)| !self.evidence.segments.contains(&input.segment))
    }

    /// Returns whether what comes after it can do so.
    fn has_room_for(&self, output: &ChainEntry) -> bool {
        let after = output.first.saturating_add(1)..=output.last.saturating_add(1);
        let mut listed =
            self.evidence.listed.range(after).filter_map(|(_, listed)| listed.entry.as_ref());
        listed.all(|next| next.first > output.last && next.previous == Some(output.digest))
    }
}
