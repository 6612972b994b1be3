//! Events that the bus will not take: what is known of one, and whether a run goes on after it.

use std::fmt;
use std::str::FromStr;

/// What a run does about an event that the bus will not take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnReject {
    /// It ends there: nothing after the event is published before the cause is mended.
    #[default]
    Stop,
    /// It records the event and goes on with the next.
    Skip {
        /// How many it passes over at the most; it stops at the next one after.
        most: u64,
    },
}

/// What is to be done about one event that the bus will not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Stop,
    Skip,
}

impl OnReject {
    /// Returns what is to be done about the next event, after so many were passed over.
    pub(crate) fn verdict(self, passed_over: u64) -> Verdict {
        match self {
            OnReject::Skip { most } if passed_over < most => Verdict::Skip,
            OnReject::Skip { .. } | OnReject::Stop => Verdict::Stop,
        }
    }
}

/// Why the bus will not take an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectKind {
    /// No queue was there to take it.
    Unroutable,
    /// It was nacked as often as is tried.
    Nacked,
    /// It is larger than the bus takes.
    TooLarge,
    /// It cannot be said in the bus's protocol, or the bus finds it wrong.
    Unsendable,
}

impl RejectKind {
    /// Returns the word for it in files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            RejectKind::Unroutable => "unroutable",
            RejectKind::Nacked => "nacked",
            RejectKind::TooLarge => "too-large",
            RejectKind::Unsendable => "unsendable",
        }
    }
}

impl fmt::Display for RejectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is none of [`RejectKind::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKind;

impl FromStr for RejectKind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        [Self::Unroutable, Self::Nacked, Self::TooLarge, Self::Unsendable]
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .ok_or(UnknownKind)
    }
}

/// An event that the bus would not take, as the journal is told of it.
#[derive(Debug)]
pub struct Reject<'a, P> {
    /// Where it stands in the input.
    pub position: &'a P,
    /// The event's id.
    pub id: &'a str,
    /// Why the bus would not take it.
    pub kind: RejectKind,
    /// The bus's words.
    pub reason: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipping_has_an_end() {
        let skip = OnReject::Skip { most: 2 };
        assert_eq!(
            [0, 1, 2, 3].map(|n| skip.verdict(n) == Verdict::Skip),
            [true, true, false, false]
        );
        assert_eq!(OnReject::Stop.verdict(0), Verdict::Stop);
    }

    #[test]
    fn a_kind_is_read_as_it_is_written() {
        for kind in [
            RejectKind::Unroutable,
            RejectKind::Nacked,
            RejectKind::TooLarge,
            RejectKind::Unsendable,
        ] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("lost".parse::<RejectKind>(), Err(UnknownKind));
    }
}
