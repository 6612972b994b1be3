//! The times that a person may type.

use dacapo_event::{ParseError, Timestamp};
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan as _, Zoned};

const EXPECTED: &str = "a time (for example `2026-11-23T08:00:00Z`, `2026-11-23 08:00`, \
     `2026-11-23`, `2h ago`, `3 days ago`, `now`, `today` or `yesterday`)";

/// Returns the moment that `text` means: RFC 3339; a date or a date with a time, in UTC; a span
/// before `now` such as `2h ago`; `now`, or the midnight (UTC) of `today` or `yesterday`.
///
/// # Errors
/// The text is none of these, or leaves the years 1 to 9999.
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, ParseError> {
    let text = text.trim();
    let refused = || ParseError::new(text, EXPECTED);
    let now = now.to_jiff().to_zoned(TimeZone::UTC);
    let midnight = |at: Zoned| at.with().time(Time::midnight()).build();
    let at = match text.to_ascii_lowercase().as_str() {
        "now" => Ok(now),
        "today" => midnight(now),
        "yesterday" => now.checked_sub(1.day()).and_then(midnight),
        lower => {
            if let Ok(at) = text.parse::<Timestamp>() {
                return Ok(at);
            }
            // A bare number would pass for a date of ISO 8601's short form.
            if text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(refused());
            }
            match text.parse::<DateTime>() {
                Ok(civil) => civil.to_zoned(TimeZone::UTC),
                // Without "ago" a span would reach into the future, which no archive holds.
                Err(_) if !lower.ends_with("ago") => return Err(refused()),
                Err(_) => lower.parse::<Span>().and_then(|span| now.checked_add(span)),
            }
        }
    };
    at.map(|at| Timestamp::from_jiff(at.timestamp())).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-23T08:30:15.5Z".parse().unwrap()
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let parsed = parse_time(text, now()).map(|at| at.to_string());
        assert_eq!(parsed.as_deref().map_err(ToString::to_string), Ok(expected), "{text}");
    }

    #[test]
    fn exact_times() {
        check("2026-11-23T08:00:00Z", "2026-11-23T08:00:00Z");
        check("2026-11-23T08:00:00.123456+02:00", "2026-11-23T06:00:00.123456Z");
        check("9999-12-31T23:59:59Z", "9999-12-30T22:00:00Z");
        check("2026-11-23T08:00:00", "2026-11-23T08:00:00Z");
        check("2026-11-23 08:00", "2026-11-23T08:00:00Z");
        check("2026-11-23", "2026-11-23T00:00:00Z");
        check(" 2026-11-23 ", "2026-11-23T00:00:00Z");
    }

    #[test]
    fn times_relative_to_now() {
        check("now", "2026-11-23T08:30:15.5Z");
        check("today", "2026-11-23T00:00:00Z");
        check("Yesterday", "2026-11-22T00:00:00Z");
        check("2h ago", "2026-11-23T06:30:15.5Z");
        check("90 minutes ago", "2026-11-23T07:00:15.5Z");
        check("3 days ago", "2026-11-20T08:30:15.5Z");
        check("1 day 2h ago", "2026-11-22T06:30:15.5Z");
        check("1 month ago", "2026-10-23T08:30:15.5Z");
    }

    #[test]
    fn what_is_no_time_is_refused_with_examples() {
        for text in
            ["", "tomorrowish", "2h", "20261123", "1700000000", "2026-13-01", "9999999 years ago"]
        {
            let error = parse_time(text, now()).unwrap_err().to_string();
            assert!(error.contains("`2h ago`"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_shown_times_come_back(text in "\\PC{0,40}", micros in any::<i64>()) {
            if let Ok(at) = parse_time(&text, now()) {
                prop_assert_eq!(parse_time(&at.to_string(), now()), Ok(at));
            }
            let at = Timestamp::from_micros(micros);
            prop_assert_eq!(parse_time(&at.to_string(), now()), Ok(at));
        }
    }
}
