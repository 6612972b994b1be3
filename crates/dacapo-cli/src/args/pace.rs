//! How fast.

use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args};
use dacapo_engine::request::WINDOW_DEFAULT;
use dacapo_republish::{Pace, Speed};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Pace")]
#[command(group = ArgGroup::new("rated").args(["rate", "byte_rate"]).multiple(true))]
pub struct PaceArgs {
    /// Events a second
    #[arg(long, value_name = "N", value_parser = parse_positive::<NonZeroU32>)]
    pub rate: Option<NonZeroU32>,
    /// Bytes of bodies a second, for example 500k or 10M
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub byte_rate: Option<NonZeroU64>,
    /// The original timing, this many times as fast (1 as it was, 60 an hour in a minute)
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub speed: Option<Speed>,
    /// Time over which the rate rises from nothing, for example 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "rated")]
    pub ramp: Option<Duration>,
    /// Wait while the target queue is this deep
    #[arg(long, value_name = "N", value_parser = parse_positive::<NonZeroU64>)]
    pub max_queue_depth: Option<NonZeroU64>,
    /// The most events published and not confirmed: what a crash repeats at the most; 1 is strict
    /// order
    #[arg(
        long,
        value_name = "N",
        value_parser = parse_positive::<NonZeroU32>,
        default_value_t = WINDOW_DEFAULT
    )]
    pub window: NonZeroU32,
}

impl PaceArgs {
    /// Returns what was meant.
    pub fn pace(&self) -> Pace {
        Pace {
            rate: self.rate,
            byte_rate: self.byte_rate,
            speed: self.speed,
            ramp: self.ramp,
            queue_depth_max: self.max_queue_depth,
        }
    }
}

/// Parses a whole number above 0.
pub fn parse_positive<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number above 0, or is too large"))
}

/// Parses a duration such as `30s`, `5m` or `1h 30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    /// A day without a calendar.
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let wrong = || format!("`{text}` is not a duration (for example `30s`, `1h 30m` or `7d`)");
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) if days.parse::<u32>().is_ok() => {
            (days.parse().unwrap_or(0), rest.trim())
        }
        _ => (0, text),
    };
    let days = DAY.checked_mul(days).ok_or_else(wrong)?;
    if rest.is_empty() && !text.is_empty() {
        return Ok(days);
    }
    let span: jiff::SignedDuration = rest.parse().map_err(|_| wrong())?;
    let span = Duration::try_from(span).map_err(|_| format!("`{text}` is negative"))?;
    days.checked_add(span).ok_or_else(wrong)
}

/// Parses a number of bytes with an optional `k`, `M` or `G` (powers of 1,000) or `Ki`, `Mi`, `Gi`.
pub fn parse_bytes(text: &str) -> Result<NonZeroU64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "k" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.and_then(NonZeroU64::new).ok_or_else(|| {
        format!("`{text}` is not a number of bytes above 0 (for example 500k, 10M or 1Gi)")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn bytes_are_written_as_people_write_them() {
        for (text, expected) in [("1", 1), ("500k", 500_000), ("10MB", 10_000_000), ("2Ki", 2_048)]
        {
            assert_eq!(parse_bytes(text).map(NonZeroU64::get), Ok(expected), "{text}");
        }
        for bad in ["", "0", "k", "-1", "1.5M", "5x", "99999999999G"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_go_together_and_a_ramp_needs_one() {
        #[derive(clap::Parser)]
        struct Paced {
            #[command(flatten)]
            pace: PaceArgs,
        }
        let parse =
            |args: &str| Paced::try_parse_from(args.split(' ')).map(|paced| paced.pace.pace());
        let both = parse("x --rate 5 --byte-rate 10k --ramp 5s").unwrap();
        assert_eq!(both.byte_rate, NonZeroU64::new(10_000));
        assert!(parse("x --ramp 5s").is_err());
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        for bad in ["", "30", "-5s", "soon"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
