//! What is known of many events without reading them: a segment, a row group, a page.

use std::collections::BTreeMap;

use dacapo_event::{Sequence, StreamName, Timestamp};

/// What is known of a run of events. Nothing here may claim too much; what is unknown may be left
/// so (`..Bounds::unknown(events)`).
#[derive(Clone, Copy)]
pub struct Bounds<'a> {
    /// How many events there are.
    pub events: u64,
    /// Where they are in their stream.
    pub place: Option<Place<'a>>,
    /// The earliest and latest `time`, both included. Either may lie outside what really occurs.
    pub time: Option<(Timestamp, Timestamp)>,
    /// Values of `type`.
    pub kind: TextFacts<'a>,
    /// Values of `exchange`.
    pub exchange: TextFacts<'a>,
    /// Values of `routing_key`.
    pub routing_key: TextFacts<'a>,
    /// Values of `key`.
    pub key: TextFacts<'a>,
    /// Values of `id`.
    pub id: TextFacts<'a>,
}

/// The place of a run of events in its stream.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The stream.
    pub stream: &'a StreamName,
    /// Sequence of the first event.
    pub first: Sequence,
    /// Sequence of the last event.
    pub last: Sequence,
}

/// What is known of the values of one text column.
#[derive(Clone, Copy, Default)]
pub struct TextFacts<'a> {
    /// Which values can occur.
    pub bounds: TextBounds<'a>,
    /// Says of a value whether it may occur, for example by a bloom filter: false is certain.
    pub may_contain: Option<&'a dyn Fn(&str) -> bool>,
}

/// Which values of a text column can occur.
#[derive(Debug, Clone, Copy, Default)]
pub enum TextBounds<'a> {
    /// Nothing is known.
    #[default]
    Unknown,
    /// No event has a value.
    Absent,
    /// No value sorts (by its bytes) before `min` or after `max`. Both may be shortened, the
    /// latter also without being made greater. Events without a value may be among them.
    Range {
        /// Not after the least value.
        min: &'a [u8],
        /// Not before the greatest value, or the beginning of it.
        max: &'a [u8],
    },
    /// How many events have which value. Where the column is not UTF-8, its lossy text.
    Counts {
        /// Events by value.
        counts: &'a BTreeMap<String, u64>,
        /// Events whose value was not told apart; it may also be among `counts`.
        other: u64,
    },
}

impl Bounds<'_> {
    /// Returns what is known of so many events and nothing else.
    pub fn unknown(events: u64) -> Self {
        let unknown = TextFacts::default();
        Bounds {
            events,
            place: None,
            time: None,
            kind: unknown,
            exchange: unknown,
            routing_key: unknown,
            key: unknown,
            id: unknown,
        }
    }
}

impl<'a> TextFacts<'a> {
    /// Returns facts that are counts: `other` events have a value that was not told apart.
    pub fn counts(counts: &'a BTreeMap<String, u64>, other: u64) -> Self {
        TextFacts { bounds: TextBounds::Counts { counts, other }, may_contain: None }
    }

    /// Returns facts that are a range of bytes, as column statistics give it.
    pub fn range(min: &'a [u8], max: &'a [u8]) -> Self {
        TextFacts { bounds: TextBounds::Range { min, max }, may_contain: None }
    }

    /// Returns the same facts with a filter that can say for certain that a value is not there.
    #[must_use]
    pub fn with_filter(self, may_contain: &'a dyn Fn(&str) -> bool) -> Self {
        TextFacts { may_contain: Some(may_contain), ..self }
    }

    /// Returns whether an event with this value may be among them.
    pub(crate) fn may_have(&self, value: &str) -> bool {
        let bytes = value.as_bytes();
        let in_bounds = match self.bounds {
            TextBounds::Unknown => true,
            TextBounds::Absent => false,
            TextBounds::Range { min, max } => {
                bytes >= min && (bytes <= max || bytes.starts_with(max))
            }
            TextBounds::Counts { counts, other } => other > 0 || counts.contains_key(value),
        };
        in_bounds && self.may_contain.is_none_or(|may_contain| may_contain(value))
    }

    /// Returns whether an event whose value begins so may be among them.
    pub(crate) fn may_have_prefix(&self, prefix: &str) -> bool {
        let prefix = prefix.as_bytes();
        match self.bounds {
            TextBounds::Unknown => true,
            TextBounds::Absent => false,
            TextBounds::Range { min, max } => {
                (prefix >= min || min.starts_with(prefix))
                    && (prefix <= max || prefix.starts_with(max))
            }
            TextBounds::Counts { counts, other } => {
                other > 0 || counts.keys().any(|key| key.as_bytes().starts_with(prefix))
            }
        }
    }
}
