//! What a selection can find in events that nobody has read yet.
//!
//! Each flag is weighed by itself: of so many events at least `least` and at most `most`
//! pass it. All that is said of the selection follows from these.

use std::collections::{BTreeMap, HashSet};
use std::ops::AddAssign;

use dacapo_event::{Sequence, Timestamp};

use crate::runs::{Bindings, Patterns, Ranges};
use crate::selection::{Ids, Places, is_place_in};
use crate::{Bounds, Place, Selection, TextBounds, TextFacts, TopicPattern};

/// Whether a run of events has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It holds no selected event.
    None,
    /// It may hold selected events and others.
    Some,
    /// Every event in it is selected.
    All,
}

/// How many events of a run are selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The number if `exact`, else an estimate.
    pub events: u64,
    /// Whether `events` is the number that reading would find.
    pub exact: bool,
    /// No more than this many are selected, in any case.
    pub at_most: u64,
    /// Selected events by type, as far as types were told apart.
    pub by_type: BTreeMap<String, u64>,
    /// Whether `by_type` is complete and what reading would find.
    pub by_type_exact: bool,
}

impl Default for Count {
    /// Returns an exact nothing.
    fn default() -> Self {
        Count { events: 0, exact: true, at_most: 0, by_type: BTreeMap::new(), by_type_exact: true }
    }
}

/// Adds what is selected of another run; exact only if both are.
impl AddAssign<&Count> for Count {
    fn add_assign(&mut self, other: &Count) {
        self.events = self.events.saturating_add(other.events);
        self.at_most = self.at_most.saturating_add(other.at_most);
        self.exact &= other.exact;
        self.by_type_exact &= other.by_type_exact;
        for (kind, events) in &other.by_type {
            match self.by_type.get_mut(kind) {
                Some(sum) => *sum = sum.saturating_add(*events),
                None => drop(self.by_type.insert(kind.clone(), *events)),
            }
        }
    }
}

/// How many of the events pass one flag.
#[derive(Debug, Clone, Copy)]
struct Share {
    least: u64,
    most: u64,
    /// Between the two.
    guess: u64,
}

impl Share {
    fn exactly(events: u64) -> Self {
        Share { least: events, most: events, guess: events }
    }

    fn up_to(events: u64) -> Self {
        Share { least: 0, most: events, guess: events }
    }

    fn is_exact(self) -> bool {
        self.least == self.most
    }
}

/// The shares of all flags; `kind` apart from the others, for the sake of counts by type.
struct Shares {
    kind: Share,
    others: Vec<Share>,
}

impl Selection {
    /// Returns whether a run of events has to be read.
    pub fn prune(&self, bounds: &Bounds<'_>) -> Verdict {
        let shares = self.shares(bounds);
        let mut all = shares.others.iter().chain([&shares.kind]);
        if all.clone().any(|share| share.most == 0) {
            Verdict::None
        } else if all.all(|share| share.least == bounds.events) {
            Verdict::All
        } else {
            Verdict::Some
        }
    }

    /// Returns how many events of a run are selected.
    pub fn count(&self, bounds: &Bounds<'_>) -> Count {
        let n = bounds.events;
        let shares = self.shares(bounds);
        let every = || shares.others.iter().chain([&shares.kind]);
        if every().any(|share| share.most == 0) {
            return Count::default();
        }
        // If all flags but one pass everything, that one decides.
        let narrowing: Vec<&Share> = every().filter(|share| share.least < n).collect();
        let (events, exact) = match narrowing.as_slice() {
            [] => (n, true),
            [one] => (one.guess, one.is_exact()),
            several => (product(n, several.iter().map(|share| share.guess)), false),
        };
        let others_pass_all = shares.others.iter().all(|share| share.least == n);
        let fraction =
            shares.others.iter().filter(|share| share.least < n).map(|share| share.guess);
        let (by_type, by_type_exact) = self.count_by_type(bounds, |counted| {
            if others_pass_all { counted } else { scale(counted, n, product(n, fraction.clone())) }
        });
        Count {
            events,
            exact,
            at_most: every().map(|share| share.most).min().unwrap_or(n),
            by_type,
            by_type_exact: by_type_exact && others_pass_all,
        }
    }

    fn count_by_type(
        &self,
        bounds: &Bounds<'_>,
        estimate: impl Fn(u64) -> u64,
    ) -> (BTreeMap<String, u64>, bool) {
        let Some((counts, rest)) = sound_counts(&bounds.kind, bounds.events) else {
            return (BTreeMap::new(), false);
        };
        let asked = |kind: &String| self.types.as_ref().is_none_or(|types| types.contains(kind));
        let by_type = counts
            .iter()
            .filter(|(kind, _)| asked(kind))
            .map(|(kind, events)| (kind.clone(), estimate(*events)))
            .filter(|(_, events)| *events > 0)
            .collect();
        (by_type, rest == 0)
    }

    fn shares(&self, bounds: &Bounds<'_>) -> Shares {
        let n = bounds.events;
        let everything = Share::exactly(n);
        let values = |asked: &Option<HashSet<String>>, facts: &TextFacts<'_>| match asked {
            Some(asked) => values_share(asked, facts, n),
            None => everything,
        };
        // What cannot be known without reading; nothing suggests how many pass.
        let unread = |asks: bool| if asks { Share::up_to(n) } else { everything };
        Shares {
            kind: values(&self.types, &bounds.kind),
            others: vec![
                time_share(self.from, self.to, bounds.time, n),
                values(&self.exchanges, &bounds.exchange),
                values(&self.keys, &bounds.key),
                patterns_share(&self.routing_keys, &bounds.routing_key, n),
                self.ids.as_ref().map_or(everything, |ids| ids_share(ids, bounds)),
                self.places.as_ref().map_or(everything, |places| places_share(places, bounds)),
                self.ranges.as_ref().map_or(everything, |ranges| ranges_share(ranges, bounds)),
                self.bindings.as_ref().map_or(everything, |all| bindings_share(all, bounds)),
                unread(!self.headers.is_empty()),
                unread(self.where_.is_some()),
            ],
        }
    }
}

/// How many events have one of the values.
fn values_share(asked: &HashSet<String>, facts: &TextFacts<'_>, n: u64) -> Share {
    if let Some((counts, rest)) = sound_counts(facts, n) {
        return counted(counts, rest, |value| asked.contains(value));
    }
    // A list of many ids or keys is asked of the filter one by one; the first that may be there
    // is enough.
    if asked.iter().any(|value| facts.may_have(value)) {
        Share::up_to(n)
    } else {
        Share::exactly(0)
    }
}

/// How many events have a routing key that one of the patterns matches.
fn patterns_share(patterns: &[TopicPattern], facts: &TextFacts<'_>, n: u64) -> Share {
    if patterns.is_empty() {
        return Share::exactly(n);
    }
    if let Some((counts, rest)) = sound_counts(facts, n) {
        return counted(counts, rest, |key| {
            patterns.iter().any(|pattern| pattern.matches(key.as_bytes()))
        });
    }
    let may_match = |pattern: &TopicPattern| match pattern.literal() {
        Some(key) => facts.may_have(key),
        None => facts.may_have_prefix(pattern.prefix()),
    };
    if patterns.iter().any(may_match) { Share::up_to(n) } else { Share::exactly(0) }
}

/// Returns the counts of a column and how many events they leave out; nothing if they do not go
/// with the number of events.
fn sound_counts<'a>(facts: &TextFacts<'a>, n: u64) -> Option<(&'a BTreeMap<String, u64>, u64)> {
    let TextBounds::Counts { counts, other } = facts.bounds else { return None };
    let sum = counts.values().try_fold(0_u64, |sum, events| sum.checked_add(*events))?;
    let rest = n.checked_sub(sum)?;
    (rest >= other).then_some((counts, rest))
}

/// How many of the counted events pass; `rest` were not told apart. A text with U+FFFD may stand
/// for bytes that are not UTF-8, which no value that was asked for equals, so it is left open.
fn counted(counts: &BTreeMap<String, u64>, rest: u64, passes: impl Fn(&str) -> bool) -> Share {
    let (mut certain, mut open) = (0, rest);
    for (value, events) in counts.iter().filter(|(value, _)| passes(value)) {
        if value.contains(char::REPLACEMENT_CHARACTER) {
            open += events;
        } else {
            certain += events;
        }
    }
    Share { least: certain, most: certain + open, guess: certain + open / 2 }
}

fn time_share(
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    bounds: Option<(Timestamp, Timestamp)>,
    n: u64,
) -> Share {
    if from.is_none() && to.is_none() {
        return Share::exactly(n);
    }
    let Some((min, max)) = bounds.filter(|(min, max)| min <= max) else { return Share::up_to(n) };
    let begin = from.map_or(min, |from| from.max(min)).as_micros();
    // The last moment that is part of the range.
    let end = to.map_or(max.as_micros(), |to| (to.as_micros() - 1).min(max.as_micros()));
    if begin > end {
        return Share::exactly(0);
    }
    let moments = |first: i64, last: i64| last.abs_diff(first) + 1;
    let (wanted, there) = (moments(begin, end), moments(min.as_micros(), max.as_micros()));
    if wanted == there {
        Share::exactly(n)
    } else {
        Share { least: 0, most: n, guess: scale(n, there, wanted) }
    }
}

/// How many events are at one of the places.
fn places_share(places: &Places, bounds: &Bounds<'_>) -> Share {
    match bounds.place {
        Some(place) => {
            let sequences = places.get(place.stream).map_or(&[][..], Vec::as_slice);
            within(sequences, &place, bounds.events)
        }
        None => Share::up_to(bounds.events),
    }
}

/// How many events are in one of the ranges.
fn ranges_share(ranges: &Ranges, bounds: &Bounds<'_>) -> Share {
    let n = bounds.events;
    let Some(place) = bounds.place else { return Share::up_to(n) };
    let Some(sequences) = place.last.checked_sub(place.first).and_then(|gaps| gaps.checked_add(1))
    else {
        return Share::up_to(n);
    };
    let here = ranges.sequences_within(place.stream, place.first, place.last);
    match (here, sequences == n) {
        (0, _) => Share::exactly(0),
        (here, _) if here == sequences => Share::exactly(n),
        (here, true) => Share::exactly(here),
        // Of the sequences that are left out nothing tells where they were.
        (here, false) => {
            Share { least: 0, most: here.min(n), guess: scale(n, sequences, here).min(here) }
        }
    }
}

/// How many events one of the bindings would route: the sum over their exchanges, for an event has
/// one.
fn bindings_share(bindings: &Bindings, bounds: &Bounds<'_>) -> Share {
    let n = bounds.events;
    let mut sum = Share::exactly(0);
    for (exchange, patterns) in bindings.by_exchange() {
        let from = values_share(&HashSet::from([exchange.to_owned()]), &bounds.exchange, n);
        let routed = match patterns {
            Patterns::Everything => Share::exactly(n),
            Patterns::Some(patterns) => patterns_share(patterns, &bounds.routing_key, n),
        };
        sum.least += (from.least + routed.least).saturating_sub(n);
        sum.most += from.most.min(routed.most);
        sum.guess += scale(from.guess, n, routed.guess);
    }
    let most = sum.most.min(n);
    Share { least: sum.least, most, guess: sum.guess.clamp(sum.least, most) }
}

/// How many of `n` events in this place have one of the sequences, which are in order.
fn within(sequences: &[Sequence], place: &Place<'_>, n: u64) -> Share {
    let begin = sequences.partition_point(|sequence| *sequence < place.first);
    let end = sequences.partition_point(|sequence| *sequence <= place.last);
    let here = (end.saturating_sub(begin) as u64).min(n);
    let contiguous =
        place.last.checked_sub(place.first).is_some_and(|gaps| gaps.checked_add(1) == Some(n));
    if contiguous { Share::exactly(here) } else { Share::up_to(here) }
}

/// How many events have one of the ids: those at the places meant for certain, if the place is
/// known, and those whose id is one of the other texts.
fn ids_share(ids: &Ids, bounds: &Bounds<'_>) -> Share {
    let n = bounds.events;
    let Some(place) = bounds.place else {
        return if ids.places.is_empty() {
            by_text(&mut ids.texts.iter().map(String::as_str), bounds)
        } else {
            Share::up_to(n)
        };
    };
    let sequences = ids.places.get(place.stream.as_str()).map_or(&[][..], Vec::as_slice);
    let Share { least: certain, most: possible, .. } = within(sequences, &place, n);
    let mut texts =
        ids.texts.iter().map(String::as_str).filter(|id| !is_place_in(id, place.stream));
    let rest = by_text(&mut texts, bounds);
    Share {
        least: certain.max(rest.least),
        most: possible.saturating_add(rest.most).min(n),
        guess: possible.saturating_add(rest.guess).min(n),
    }
}

/// An id is rare: of the events that may have one of these, guess one for each.
fn by_text(texts: &mut dyn Iterator<Item = &str>, bounds: &Bounds<'_>) -> Share {
    let n = bounds.events;
    let possible =
        texts.filter(|id| bounds.id.may_have(id)).take(usize::try_from(n).unwrap_or(usize::MAX));
    match possible.count() as u64 {
        0 => Share::exactly(0),
        some => Share { least: 0, most: n, guess: some },
    }
}

/// Returns `of` times `part` divided by `whole`, rounded.
fn scale(of: u64, whole: u64, part: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let scaled = (u128::from(of) * u128::from(part) + u128::from(whole / 2)) / u128::from(whole);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Returns how many of `n` events pass several flags if these have nothing to do with another.
fn product(n: u64, passing: impl Iterator<Item = u64>) -> u64 {
    passing.fold(n, |left, pass| scale(left, n, pass))
}

#[cfg(test)]
mod tests;
