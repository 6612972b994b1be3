//! Which chain entries an archive proves that it had: a plain function of what was found in it.
//!
//! A segment names the digest of the one before it. So whatever is known to be in the chain (a
//! head, an entry that agrees with its segment) proves the segment before it, and that one the
//! next; of a segment that was merged and deleted, its output tells what its entry said. Where
//! nothing follows, an entry's own digest proves its segment.
//!
//! Two objects may agree and yet be those of another archive. So what follows from a proof is taken
//! as a whole or not at all: not if it contradicts what is known before it.

use std::collections::{BTreeMap, BTreeSet};

use dacapo_event::{Digest, Sequence};

use crate::chain::ChainEntry;

/// What was found of one stream.
pub(super) struct Evidence<'a> {
    /// Last sequence and digest of a sound head.
    pub(super) head: Option<(Sequence, Digest)>,
    /// The digest that a damaged head still shows: one that a segment has did not come about by
    /// damage.
    pub(super) named: Option<Digest>,
    /// The entries, by the sequence in their key.
    pub(super) entries: &'a BTreeMap<Sequence, Listed>,
    /// What entries of sound segments would say, of those that no confirmed entry names.
    pub(super) orphans: &'a [ChainEntry],
    /// What sound outputs tell of the entries of their inputs.
    pub(super) recorded: &'a [ChainEntry],
    /// Last sequence and last input's digest of the outputs that took the place of segments, each
    /// of which was in the chain then, and not at its end.
    pub(super) merged: &'a [(Sequence, Digest)],
}

/// A chain entry as it was found.
#[derive(Debug)]
pub(super) struct Listed {
    /// What it says; absent if it is not readable.
    pub(super) entry: Option<ChainEntry>,
    /// Whether another object says the same: the footer of the segment that it names, or the
    /// output that was made of it.
    pub(super) confirmed: bool,
}

/// Returns the entries that are to be put, by sequence: they are missing, not readable, or not
/// what their segment says.
pub(super) fn rebuilt(evidence: &Evidence<'_>) -> Vec<ChainEntry> {
    let mut proof = Proof::new(evidence);
    for entry in evidence.confirmed() {
        // Of what cannot be in one chain with something else, nothing follows.
        let is_unsure = proof.contradicts_what_is_known(entry)
            || proof.walk_back(entry.first - 1, entry.previous) == Walk::Contradiction;
        if is_unsure {
            proof.unsure.insert(entry.first);
        }
    }
    if let Some((last, digest)) = evidence.head {
        proof.walk_back(last, Some(digest));
    }
    let named = |found: &&ChainEntry| evidence.named == Some(found.digest);
    if let Some(found) = evidence.orphans.iter().find(named) {
        proof.walk_back(found.last, Some(found.digest));
    }
    for (last, digest) in evidence.merged {
        proof.walk_back(*last, Some(*digest));
    }
    for (first, listed) in evidence.entries.iter().rev().filter(|(_, listed)| !listed.confirmed) {
        proof.settle(*first, listed.entry.as_ref());
    }
    proof.extend_past_the_end();
    proof.rebuilt.into_values().collect()
}

/// Returns those of these entries that contradict neither the one before nor the one after, by
/// first sequence.
pub(super) fn in_one_chain<'a>(
    entries: impl Iterator<Item = &'a ChainEntry>,
) -> BTreeMap<Sequence, &'a ChainEntry> {
    let mut all: BTreeMap<Sequence, &ChainEntry> =
        entries.map(|entry| (entry.first, entry)).collect();
    let pairs = all.values().zip(all.values().skip(1));
    let contradictory: Vec<Sequence> = pairs
        .filter(|(one, next)| contradict(one, next))
        .flat_map(|(one, next)| [one.first, next.first])
        .collect();
    for first in contradictory {
        all.remove(&first);
    }
    all
}

impl<'a> Evidence<'a> {
    fn confirmed(&self) -> impl Iterator<Item = &'a ChainEntry> {
        self.entries.values().filter(|listed| listed.confirmed).filter_map(|l| l.entry.as_ref())
    }

    fn readable(&self) -> impl Iterator<Item = &'a ChainEntry> {
        self.entries.values().filter_map(|listed| listed.entry.as_ref())
    }
}

/// Where the links lead from something that is proven.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// To what is known to be in the chain.
    Known,
    /// To the first segment of the stream.
    Start,
    /// To a segment that ends with this sequence and of which nothing is left.
    Lost(Sequence),
    /// To what contradicts something that is known to be in the chain, or to what leads there.
    Contradiction,
}

/// Entries by one of their sequences.
type By<'a> = BTreeMap<Sequence, Vec<&'a ChainEntry>>;

struct Proof<'a> {
    evidence: &'a Evidence<'a>,
    /// By first sequence.
    confirmed: BTreeMap<Sequence, &'a ChainEntry>,
    readable_by_last: By<'a>,
    orphans_by_first: By<'a>,
    /// What may be put. An output tells the very key of a segment, of which there may be copies; so
    /// that comes first.
    candidates_by_first: By<'a>,
    candidates_by_last: By<'a>,
    /// First sequences of confirmed entries that contradict something, or lead to what does.
    unsure: BTreeSet<Sequence>,
    rebuilt: BTreeMap<Sequence, ChainEntry>,
}

impl<'a> Proof<'a> {
    fn new(evidence: &'a Evidence<'a>) -> Self {
        let candidates = || evidence.recorded.iter().chain(evidence.orphans);
        Proof {
            evidence,
            confirmed: evidence.confirmed().map(|entry| (entry.first, entry)).collect(),
            readable_by_last: by(evidence.readable(), |entry| entry.last),
            orphans_by_first: by(evidence.orphans.iter(), |entry| entry.first),
            candidates_by_first: by(candidates(), |entry| entry.first),
            candidates_by_last: by(candidates(), |entry| entry.last),
            unsure: BTreeSet::new(),
            rebuilt: BTreeMap::new(),
        }
    }

    /// Follows the links from something that is proven to be in the chain to what it proves.
    fn walk_back(&mut self, last: Sequence, previous: Option<Digest>) -> Walk {
        let mut found = Vec::new();
        let mut is_doubtful = false;
        let end = self.follow(last, previous, &mut found, &mut is_doubtful);
        let accepted = match end {
            Walk::Known => true,
            Walk::Start => !is_doubtful,
            Walk::Lost(last) => !is_doubtful && !self.knows_another_end(last),
            Walk::Contradiction => false,
        };
        if accepted {
            self.rebuilt.extend(found.into_iter().map(|entry| (entry.first, entry.clone())));
        }
        end
    }

    /// Collects what the links lead to; it is doubtful if they lead through an entry in whose place
    /// there is a sound segment that says otherwise.
    fn follow(
        &self,
        mut last: Sequence,
        mut previous: Option<Digest>,
        found: &mut Vec<&'a ChainEntry>,
        is_doubtful: &mut bool,
    ) -> Walk {
        loop {
            let digest = match (last, previous) {
                (0, None) => return Walk::Start,
                (0, Some(_)) | (_, None) => return Walk::Contradiction,
                (_, Some(digest)) => digest,
            };
            let is_named = |entry: &&ChainEntry| entry.last == last && entry.digest == digest;
            if let Some(known) = self.known_near(last, last).find(is_named) {
                return match self.unsure.contains(&known.first) {
                    true => Walk::Contradiction,
                    false => Walk::Known,
                };
            }
            let there = at(&self.readable_by_last, last).find(is_named);
            let candidates = || at(&self.candidates_by_last, last).filter(is_named);
            // Copies of one segment are alike but for their place.
            let in_place = candidates().find(|c| there.is_some_and(|e| e.segment == c.segment));
            let step = match (in_place.or_else(|| candidates().next()), there) {
                (Some(candidate), _) => {
                    found.push(candidate);
                    candidate
                }
                // Its segment is lost, but it tells what came before.
                (None, Some(entry)) => {
                    let mut in_its_place = at(&self.orphans_by_first, entry.first);
                    *is_doubtful |= in_its_place.any(|other| other.segment == entry.segment);
                    entry
                }
                (None, None) => return Walk::Lost(last),
            };
            if self.contradicts_what_is_known(step) {
                return Walk::Contradiction;
            }
            (last, previous) = (step.first - 1, step.previous);
        }
    }

    /// Returns what is known to be in the chain and touches these sequences.
    fn known_near(&self, first: Sequence, last: Sequence) -> impl Iterator<Item = &ChainEntry> {
        let after = last.saturating_add(1);
        let confirmed = self.confirmed.range(..=after).rev().map(|(_, entry)| *entry);
        let rebuilt = self.rebuilt.range(..=after).rev().map(|(_, entry)| entry);
        up_to_one_before(first, confirmed).chain(up_to_one_before(first, rebuilt))
    }

    fn contradicts_what_is_known(&self, found: &ChainEntry) -> bool {
        let mut near = self.known_near(found.first, found.last);
        near.any(|known| known != found && contradict(known, found))
    }

    /// Returns whether anything that is left ends with this sequence.
    fn knows_another_end(&self, last: Sequence) -> bool {
        at(&self.readable_by_last, last).chain(at(&self.candidates_by_last, last)).next().is_some()
    }

    /// Decides on an entry that is damaged or contradicts its segment, and that nothing behind it
    /// has proven.
    fn settle(&mut self, first: Sequence, says: Option<&ChainEntry>) {
        if self.rebuilt.contains_key(&first) {
            return;
        }
        let fits = |found: &&ChainEntry| self.is_possible(found);
        let candidates: Vec<&ChainEntry> = at(&self.orphans_by_first, first).filter(fits).collect();
        let named = |found: &&&ChainEntry| says.is_some_and(|entry| entry.digest == found.digest);
        let found = match (candidates.iter().find(named), candidates.as_slice()) {
            (Some(found), _) => *found,
            // Nothing says anything of it but the segment before: enough at the end of a chain.
            (None, [only]) if says.is_none() && self.is_at_the_end(only) => *only,
            _ => return,
        };
        self.rebuilt.insert(first, found.clone());
        self.walk_back(first - 1, found.previous);
    }

    /// Adds segments past the end of the chain if there are two or more: a writer puts none before
    /// the one before it is committed, so their entries are gone. A single one was never committed,
    /// for all that is known, and is left to the next writer; but outputs never reach the end of
    /// the chain, so what follows them was.
    fn extend_past_the_end(&mut self) {
        let mut end = self.end();
        let mut run: Vec<&ChainEntry> = Vec::new();
        loop {
            let (last, digest) = end;
            let next = last.saturating_add(1);
            let mut candidates: Vec<&ChainEntry> = Vec::new();
            for found in at(&self.candidates_by_first, next).filter(|f| f.previous == digest) {
                if !candidates.contains(&found) {
                    candidates.push(found);
                }
            }
            let goes_on = |found: &&&ChainEntry| {
                let mut after = at(&self.candidates_by_first, found.last.saturating_add(1));
                after.any(|after| after.previous == Some(found.digest))
            };
            let going_on: Vec<_> = candidates.iter().filter(goes_on).collect();
            let found = match (going_on.as_slice(), candidates.as_slice()) {
                ([only], _) => **only,
                ([], [only]) => *only,
                _ => break,
            };
            end = (found.last, Some(found.digest));
            run.push(found);
        }
        let Some(begin) = run.first().map(|entry| entry.first) else { return };
        let is_segment = |entry: &&ChainEntry| {
            at(&self.orphans_by_first, entry.first).any(|orphan| orphan == *entry)
        };
        let follows_outputs = self.evidence.merged.iter().any(|(last, _)| *last == begin - 1);
        let is_proven = run.iter().any(is_segment) && (run.len() > 1 || follows_outputs);
        if is_proven && self.evidence.head.is_none_or(|(last, _)| last < begin) {
            self.rebuilt.extend(run.into_iter().map(|entry| (entry.first, entry.clone())));
        }
    }

    /// Returns whether nothing that is known to be in the chain speaks against this segment.
    fn is_possible(&self, found: &ChainEntry) -> bool {
        let differs = |(last, digest)| last == found.last && digest != found.digest;
        !self.evidence.head.is_some_and(differs) && !self.contradicts_what_is_known(found)
    }

    fn is_at_the_end(&self, found: &ChainEntry) -> bool {
        let continues = match found.first {
            1 => found.previous.is_none(),
            first => self.known_near(first, first).any(|before| {
                let is_before = before.last == first - 1 && !self.unsure.contains(&before.first);
                is_before && found.previous == Some(before.digest)
            }),
        };
        let after = found.first.saturating_add(1)..;
        continues
            && self.evidence.entries.range(after.clone()).next().is_none()
            && self.rebuilt.range(after).next().is_none()
            && self.evidence.head.is_none_or(|(last, _)| last < found.first)
    }

    /// Returns the last sequence and digest of the chain, as far as it is known now.
    fn end(&self) -> (Sequence, Option<Digest>) {
        let all = self.evidence.readable().chain(self.rebuilt.values());
        let last = all.max_by_key(|entry| entry.last);
        last.map_or((0, None), |entry| (entry.last, Some(entry.digest)))
    }
}

/// Returns whether two entries cannot be in one chain.
fn contradict(one: &ChainEntry, other: &ChainEntry) -> bool {
    let overlap = one.first <= other.last && one.last >= other.first;
    let is_broken = |before: &ChainEntry, after: &ChainEntry| {
        after.first == before.last.saturating_add(1) && after.previous != Some(before.digest)
    };
    overlap || is_broken(one, other) || is_broken(other, one)
}

fn by<'a>(
    entries: impl Iterator<Item = &'a ChainEntry>,
    sequence: impl Fn(&ChainEntry) -> Sequence,
) -> By<'a> {
    let mut by = By::new();
    for entry in entries {
        by.entry(sequence(entry)).or_default().push(entry);
    }
    by
}

fn at<'a>(by: &By<'a>, sequence: Sequence) -> impl Iterator<Item = &'a ChainEntry> {
    by.get(&sequence).map_or(&[][..], Vec::as_slice).iter().copied()
}

/// Returns of falling entries those that begin at `first` or later, and the next one.
fn up_to_one_before<'a>(
    first: Sequence,
    entries: impl Iterator<Item = &'a ChainEntry>,
) -> impl Iterator<Item = &'a ChainEntry> {
    let mut is_done = false;
    entries.take_while(move |entry| {
        let take = !is_done;
        is_done = entry.first < first;
        take
    })
}
