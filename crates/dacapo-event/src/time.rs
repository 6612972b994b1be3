//! Time on the bus and in the archive: microseconds, UTC.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::ParseError;

/// A moment in UTC, in microseconds since 1970; shown as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Tells the time; handed in by the composition root so that nothing else reads a clock.
pub type Clock = fn() -> Timestamp;

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Timestamp = Timestamp(0);
    /// 0001-01-01T00:00:00Z, the earliest that RFC 3339 and the readers of Parquet agree on.
    pub const MIN: Timestamp = Timestamp(-62_135_596_800_000_000);
    /// 9999-12-30T22:00:00Z, the latest that can be shown.
    pub const MAX: Timestamp = Timestamp(253_402_207_200_000_000);

    /// Returns the moment this many microseconds after 1970, held within [`Timestamp::MIN`] and
    /// [`Timestamp::MAX`]: publishers write nonsense, and every time must be showable.
    pub fn from_micros(micros: i64) -> Self {
        Timestamp(micros.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Returns the moment this many milliseconds after 1970, held within the showable range.
    pub fn from_millis(millis: i64) -> Self {
        Self::from_micros(millis.saturating_mul(1_000))
    }

    /// Returns the moment this many seconds after 1970, held within the showable range.
    pub fn from_secs(secs: u64) -> Self {
        Self::from_micros(i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1_000_000))
    }

    /// Returns the microseconds since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the time from `earlier` to this, zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Returns this moment moved later, held within the showable range.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// Returns this moment moved earlier, held within the showable range.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// Returns the UTC date and hour, as in `("2026-11-23", "08")`, for partition names.
    pub fn date_and_hour(self) -> (String, String) {
        let at = self.to_jiff();
        (at.strftime("%Y-%m-%d").to_string(), at.strftime("%H").to_string())
    }

    /// Returns the same moment for date arithmetic.
    pub fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).expect("held within jiff's range by construction")
    }

    /// Returns the moment of a date calculation, cut to microseconds.
    pub fn from_jiff(at: jiff::Timestamp) -> Self {
        Self::from_micros(at.as_microsecond())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().fmt(f)
    }
}

/// Parses RFC 3339 with any offset; a time in UTC after [`Timestamp::MAX`] is held to it.
impl FromStr for Timestamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // The last day of 9999 is meant as the end of time; jiff has room for no offset from it.
        let at_the_end = || {
            let civil: DateTime = text.strip_suffix(['Z', 'z'])?.parse().ok()?;
            civil.to_zoned(TimeZone::UTC).is_err().then_some(Timestamp::MAX)
        };
        let parsed = text.parse().map(Self::from_jiff).ok();
        parsed.or_else(at_the_end).ok_or_else(|| {
            ParseError::new(text, "a time in RFC 3339 (for example `2026-11-23T08:00:00Z`)")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_can_be_shown_and_parsed_again() {
        for micros in [i64::MIN, -1, 0, 1, 1_700_000_000_123_456, i64::MAX] {
            let time = Timestamp::from_micros(micros);
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    }

    #[test]
    fn the_last_second_that_can_be_written_is_the_last_that_can_be_shown() {
        for text in ["9999-12-31T23:59:59Z", "9999-12-31T00:00:00.5z", "9999-12-30T22:00:00Z"] {
            assert_eq!(text.parse(), Ok(Timestamp::MAX), "{text}");
        }
        for text in ["10000-01-01T00:00:00Z", "9999-12-32T00:00:00Z", "9999-12-31T24:00:00Z"] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn absurd_seconds_do_not_overflow() {
        assert_eq!(Timestamp::from_secs(u64::MAX), Timestamp::MAX);
    }

    #[test]
    fn partitions_are_utc() {
        let time: Timestamp = "2026-11-23T00:30:00+02:00".parse().unwrap();
        assert_eq!(time.date_and_hour(), ("2026-11-22".to_owned(), "22".to_owned()));
    }
}
