//! Runs of streams, and bindings: what the rounds of a backfill select by.

use std::collections::BTreeMap;

use dacapo_event::{Message, Sequence, StreamName};

use crate::{Binding, FilterError, SequenceRange, TopicPattern};

/// The sequences asked for, by stream: first and last of each run, in order, none touching another.
#[derive(Debug, Clone)]
pub(crate) struct Ranges(BTreeMap<StreamName, Vec<(Sequence, Sequence)>>);

/// The bindings asked for, by exchange.
#[derive(Debug, Clone)]
pub(crate) struct Bindings(BTreeMap<String, Patterns>);

/// The routing keys that the bindings of one exchange take.
#[derive(Debug, Clone)]
pub(crate) enum Patterns {
    /// All, also those that are not UTF-8.
    Everything,
    /// Those that match one of the patterns.
    Some(Vec<TopicPattern>),
}

impl Ranges {
    /// Returns nothing if no range is asked for; empty ranges are asked for all the same.
    pub(crate) fn new(asked: Vec<SequenceRange>) -> Option<Self> {
        if asked.is_empty() {
            return None;
        }
        let mut ranges: BTreeMap<StreamName, Vec<(Sequence, Sequence)>> = BTreeMap::new();
        for SequenceRange { stream, after, until } in asked {
            if after < until {
                ranges.entry(stream).or_default().push((after + 1, until));
            }
        }
        for runs in ranges.values_mut() {
            runs.sort_unstable();
            runs.dedup_by(|next, kept| {
                let joined = next.0 <= kept.1.saturating_add(1);
                if joined {
                    kept.1 = kept.1.max(next.1);
                }
                joined
            });
        }
        Some(Ranges(ranges))
    }

    pub(crate) fn contain(&self, stream: &StreamName, sequence: Sequence) -> bool {
        self.sequences_within(stream, sequence, sequence) == 1
    }

    /// Returns how many sequences from `first` to `last` are asked for.
    pub(crate) fn sequences_within(
        &self,
        stream: &StreamName,
        first: Sequence,
        last: Sequence,
    ) -> u64 {
        let runs = self.0.get(stream).map_or(&[][..], Vec::as_slice);
        let from = runs.partition_point(|(_, until)| *until < first);
        let here = runs[from..].iter().take_while(|(begin, _)| *begin <= last);
        here.map(|(begin, until)| last.min(*until) - first.max(*begin) + 1).sum()
    }
}

impl Bindings {
    /// Returns nothing if no binding is asked for.
    pub(crate) fn new(asked: Vec<Binding>) -> Result<Option<Self>, FilterError> {
        let mut bindings: BTreeMap<String, Patterns> = BTreeMap::new();
        for Binding { exchange, pattern } in asked {
            let parsed: TopicPattern = pattern.parse().map_err(FilterError::RoutingKey)?;
            let patterns = bindings.entry(exchange).or_insert_with(|| Patterns::Some(Vec::new()));
            match patterns {
                _ if pattern == "#" => *patterns = Patterns::Everything,
                Patterns::Everything => {}
                Patterns::Some(patterns) => patterns.push(parsed),
            }
        }
        Ok((!bindings.is_empty()).then_some(Bindings(bindings)))
    }

    pub(crate) fn by_exchange(&self) -> impl Iterator<Item = (&str, &Patterns)> {
        self.0.iter().map(|(exchange, patterns)| (exchange.as_str(), patterns))
    }

    pub(crate) fn want_exchange(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns whether any of them looks at the routing key.
    pub(crate) fn ask_routing_keys(&self) -> bool {
        self.0.values().any(|patterns| matches!(patterns, Patterns::Some(_)))
    }

    pub(crate) fn route(&self, message: &Message) -> bool {
        let patterns = message.exchange.as_str().and_then(|exchange| self.0.get(exchange));
        match patterns {
            None => false,
            Some(Patterns::Everything) => true,
            Some(Patterns::Some(patterns)) => {
                let key = message.routing_key.as_bytes();
                patterns.iter().any(|pattern| pattern.matches(key))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(after: Sequence, until: Sequence) -> SequenceRange {
        SequenceRange { stream: "shop".parse().unwrap(), after, until }
    }

    #[test]
    fn no_range_asks_nothing_and_an_empty_one_selects_nothing() {
        assert!(Ranges::new(Vec::new()).is_none());
        let empty = Ranges::new(vec![range(5, 5), range(7, 3)]).unwrap();
        let stream = "shop".parse().unwrap();
        assert_eq!(empty.sequences_within(&stream, 1, Sequence::MAX), 0);
        let all = Ranges::new(vec![range(0, Sequence::MAX)]).unwrap();
        assert!(all.contain(&stream, 1) && all.contain(&stream, Sequence::MAX));
        assert!(!all.contain(&"other".parse().unwrap(), 1));
    }

    #[test]
    fn a_wildcard_on_one_exchange_is_none_on_another() {
        let binding = |exchange: &str, pattern: &str| Binding {
            exchange: exchange.to_owned(),
            pattern: pattern.to_owned(),
        };
        let asked = vec![binding("x", "a.*"), binding("x", "b"), binding("y", "#")];
        let bindings = Bindings::new(asked).unwrap().unwrap();
        let route = |exchange: &'static str, key: &'static [u8]| {
            let exchange = dacapo_event::ShortStr::from_static(exchange);
            let routing_key = dacapo_event::ShortStr::new(key).unwrap();
            bindings.route(&Message { exchange, routing_key, ..Message::default() })
        };
        assert!(route("x", b"a.b") && route("x", b"b") && route("y", b"\xff"));
        assert!(!route("x", b"a") && !route("", b"b") && !route("z", b"b"));
    }

    proptest! {
        #[test]
        fn ranges_hold_what_each_of_them_holds(
            runs in prop::collection::vec((0..30_u64, 0..30_u64), 1..6),
            first in 1..35_u64,
            length in 0..10_u64,
        ) {
            let stream = "shop".parse().unwrap();
            let asked = runs.iter().map(|(after, until)| range(*after, *until)).collect();
            let ranges = Ranges::new(asked).unwrap();
            let in_one = |at: u64| runs.iter().any(|(after, until)| at > *after && at <= *until);
            prop_assert_eq!(ranges.contain(&stream, first), in_one(first));
            let expected = (first..=first + length).filter(|at| in_one(*at)).count() as u64;
            prop_assert_eq!(ranges.sequences_within(&stream, first, first + length), expected);
        }
    }
}
