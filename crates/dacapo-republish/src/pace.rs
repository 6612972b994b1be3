//! How fast to publish, as asked for.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use dacapo_event::ParseError;

/// How fast to publish; what is absent does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// The most events in a second.
    pub rate: Option<NonZeroU32>,
    /// The most bytes of bodies in a second. A body larger than that waits for its share and then
    /// goes in one piece.
    pub byte_rate: Option<NonZeroU64>,
    /// The original timing, this many times as fast, counted from the first event.
    pub speed: Option<Speed>,
    /// How long `rate` and `byte_rate` take to rise evenly from zero.
    pub ramp: Option<Duration>,
    /// Publishing waits while the target queue is this deep.
    pub queue_depth_max: Option<NonZeroU64>,
}

/// A factor of the original timing: 2 is twice as fast.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Speed(f64);

impl Speed {
    /// The slowest: a thousandth, so that ten thousand years of history still have a due time.
    pub const MIN: f64 = 0.001;
    /// The fastest: a year in half a minute; beyond it, leave the speed out.
    pub const MAX: f64 = 1_000_000.0;

    /// Returns the speed of this factor.
    ///
    /// # Errors
    /// Not a number between [`Speed::MIN`] and [`Speed::MAX`].
    pub fn new(factor: f64) -> Result<Self, ParseError> {
        if (Self::MIN..=Self::MAX).contains(&factor) {
            Ok(Speed(factor))
        } else {
            Err(refused(&factor.to_string()))
        }
    }

    /// Returns the factor.
    pub fn factor(self) -> f64 {
        self.0
    }

    /// Returns how long after the first event one is due that happened `original` after it.
    pub(crate) fn scale(self, original: Duration) -> Duration {
        original.div_f64(self.0)
    }
}

fn refused(text: &str) -> ParseError {
    ParseError::new(text, "a speed (a factor from 0.001 to 1000000, for example `2` or `0.5`)")
}

impl FromStr for Speed {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().map_err(|_| refused(text)).and_then(Speed::new)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_positive_finite_factor() {
        for bad in ["", "fast", "0", "-1", "NaN", "inf", "0.0001", "1e9"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
        for good in ["1", "0.001", "1000000", "2.5"] {
            let speed: Speed = good.parse().unwrap();
            assert_eq!(speed.to_string(), good);
        }
        let twice: Speed = "2".parse().unwrap();
        assert_eq!(twice.scale(Duration::from_secs(10)), Duration::from_secs(5));
    }
}
