//! Which chain entries an archive proves that it had: a plain function of what was found in it.
//!
//! A segment names the digest of the one before it. So whatever is known to be in the chain (a
//! head, an entry that agrees with its segment) proves the segment before it, and that one the
//! next. Where nothing follows, an entry's own digest proves its segment.

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
}

/// A chain entry as it was found.
pub(super) struct Listed {
    /// What it says; absent if it is not readable.
    pub(super) entry: Option<ChainEntry>,
    /// Whether the footer of the segment that it names says the same.
    pub(super) confirmed: bool,
}

/// Returns the entries that are to be put, by sequence: they are missing, not readable, or not
/// what their segment says.
pub(super) fn rebuilt(evidence: &Evidence<'_>) -> Vec<ChainEntry> {
    let mut proof = Proof { evidence, rebuilt: BTreeMap::new() };
    if let Some((last, digest)) = evidence.head {
        proof.walk_back(last, Some(digest));
    }
    let named = |found: &&ChainEntry| evidence.named == Some(found.digest);
    if let Some(found) = evidence.orphans.iter().find(named) {
        proof.walk_back(found.last, Some(found.digest));
    }
    for entry in evidence.confirmed() {
        proof.walk_back(entry.first - 1, entry.previous);
    }
    for (first, listed) in evidence.entries.iter().rev().filter(|(_, listed)| !listed.confirmed) {
        proof.settle(*first, listed.entry.as_ref());
    }
    proof.extend_past_the_end();
    proof.rebuilt.into_values().collect()
}

impl Evidence<'_> {
    fn confirmed(&self) -> impl Iterator<Item = &ChainEntry> {
        self.entries.values().filter(|listed| listed.confirmed).filter_map(|l| l.entry.as_ref())
    }
}

struct Proof<'a> {
    evidence: &'a Evidence<'a>,
    rebuilt: BTreeMap<Sequence, ChainEntry>,
}

impl Proof<'_> {
    /// Follows the links from something that is proven to be in the chain to what it proves.
    fn walk_back(&mut self, mut last: Sequence, mut previous: Option<Digest>) {
        while let Some(digest) = previous.filter(|_| last > 0) {
            let is_named = |entry: &&ChainEntry| entry.last == last && entry.digest == digest;
            if self.evidence.confirmed().any(|entry| is_named(&entry)) {
                return;
            }
            let readable = self.evidence.entries.values().filter_map(|l| l.entry.as_ref());
            let there = readable.into_iter().find(is_named);
            let candidates = || self.evidence.orphans.iter().filter(is_named);
            // Copies of one segment are alike but for their place.
            let in_place = candidates().find(|c| there.is_some_and(|e| e.segment == c.segment));
            let (first, before) = match (in_place.or_else(|| candidates().next()), there) {
                (Some(found), _) => {
                    let links = (found.first, found.previous);
                    if self.rebuilt.insert(found.first, found.clone()).is_some() {
                        return;
                    }
                    links
                }
                // Its segment is lost, but it tells what came before.
                (None, Some(entry)) => (entry.first, entry.previous),
                (None, None) => return,
            };
            (last, previous) = (first - 1, before);
        }
    }

    /// Decides on an entry that is damaged or contradicts its segment, and that nothing behind it
    /// has proven.
    fn settle(&mut self, first: Sequence, says: Option<&ChainEntry>) {
        if self.rebuilt.contains_key(&first) {
            return;
        }
        let fits =
            |found: &&ChainEntry| found.first == first && self.contradicted_by(found).is_none();
        let candidates: Vec<&ChainEntry> = self.evidence.orphans.iter().filter(fits).collect();
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
    /// for all that is known, and is left to the next writer.
    fn extend_past_the_end(&mut self) {
        let orphans = self.evidence.orphans;
        let mut end = self.end();
        let mut run = Vec::new();
        loop {
            let (last, digest) = end;
            let continues = |found: &&ChainEntry| {
                found.first == last.saturating_add(1) && found.previous == digest
            };
            let candidates: Vec<&ChainEntry> = orphans.iter().filter(continues).collect();
            let goes_on = |found: &&&ChainEntry| {
                orphans.iter().any(|next| next.previous == Some(found.digest))
            };
            let going_on: Vec<_> = candidates.iter().filter(goes_on).collect();
            let found = match (going_on.as_slice(), candidates.as_slice()) {
                ([only], _) => **only,
                ([], [only]) => *only,
                _ => break,
            };
            end = (found.last, Some(found.digest));
            run.push(found.clone());
        }
        if run.len() > 1 && self.evidence.head.is_none_or(|(last, _)| last < run[0].first) {
            self.rebuilt.extend(run.into_iter().map(|entry| (entry.first, entry)));
        }
    }

    /// Returns what is known to be in the chain and cannot be together with this segment.
    fn contradicted_by(&self, found: &ChainEntry) -> Option<Sequence> {
        let other_head = self
            .evidence
            .head
            .filter(|(last, digest)| *last == found.last && *digest != found.digest)
            .map(|(last, _)| last);
        let others = self.evidence.confirmed().chain(self.rebuilt.values());
        let mut others = others.filter(|other| {
            let overlaps = other.first <= found.last && other.last >= found.first;
            let follows = other.first == found.last.saturating_add(1);
            let precedes = other.last == found.first - 1;
            overlaps
                || (follows && other.previous != Some(found.digest))
                || (precedes && found.previous != Some(other.digest))
        });
        other_head.or_else(|| others.next().map(|other| other.first))
    }

    fn is_at_the_end(&self, found: &ChainEntry) -> bool {
        let known: BTreeSet<Sequence> =
            self.evidence.entries.keys().chain(self.rebuilt.keys()).copied().collect();
        let continues = match found.first {
            1 => found.previous.is_none(),
            first => {
                let mut before = self.evidence.confirmed().chain(self.rebuilt.values());
                before.any(|e| e.last == first - 1 && found.previous == Some(e.digest))
            }
        };
        continues
            && known.range(found.first + 1..).next().is_none()
            && self.evidence.head.is_none_or(|(last, _)| last < found.first)
    }

    /// Returns the last sequence and digest of the chain, as far as it is known now.
    fn end(&self) -> (Sequence, Option<Digest>) {
        let readable = self.evidence.entries.values().filter_map(|l| l.entry.as_ref());
        let last = readable.chain(self.rebuilt.values()).max_by_key(|entry| entry.last);
        last.map_or((0, None), |entry| (entry.last, Some(entry.digest)))
    }
}
