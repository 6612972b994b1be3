//! Asks what must be true after a restore, until it is or its time is over.

use std::time::Duration;

use dacapo_drill::description::{Check, Expect};
use dacapo_drill::report::CheckResult;
use tokio::time::{Instant, timeout};

use super::queries::{self, Told};
use crate::format;

/// Between two tries of one check: soon enough not to blur a recovery time of seconds.
const TRY_INTERVAL: Duration = Duration::from_millis(500);

/// What is shown of an answer.
const ANSWER_CHARS_SHOWN: usize = 200;

/// Asks one after the other; all of them, also after one that is not green.
pub async fn run(checks: &[Check], told: &Told) -> Vec<CheckResult> {
    let mut results = Vec::new();
    for check in checks {
        results.push(one(check, told).await);
    }
    results
}

/// Asks each that was green once more: it must still be.
pub async fn again(checks: &[Check], told: &Told, results: &mut [CheckResult]) {
    for (check, result) in checks.iter().zip(results) {
        if !result.green {
            continue;
        }
        let (expected, found, green) = bounded(check, check.within, told).await;
        if !green {
            let found = format!("green before everything was acked, not after it: {found}");
            *result = CheckResult { expected, found, green, ..result.clone() };
        }
    }
}

/// Returns what is known of a check that was not asked yet.
pub fn unasked(check: &Check) -> CheckResult {
    let expected = match &check.expect {
        Expect::Success => "an answer".to_owned(),
        Expect::Text(text) => format::one_line(text, ANSWER_CHARS_SHOWN),
        Expect::Integer(number) => number.to_string(),
        Expect::Number(number) => number.to_string(),
        Expect::Production(_) => "as production".to_owned(),
    };
    CheckResult {
        name: check.name.clone(),
        asked: check.query.to_string(),
        expected,
        found: "not asked".to_owned(),
        green: false,
        tries: 0,
    }
}

async fn one(check: &Check, told: &Told) -> CheckResult {
    let deadline = Instant::now() + check.within;
    let mut tries = 1;
    let (mut expected, mut found, mut green) = bounded(check, check.within, told).await;
    while !green {
        tokio::time::sleep(TRY_INTERVAL).await;
        let left = deadline.saturating_duration_since(Instant::now());
        // A try that is cut short says less than the one before.
        let Ok(told) = timeout(left, once(check, told)).await else { break };
        tries += 1;
        (expected, found, green) = told;
    }
    CheckResult { expected, found, green, tries, ..unasked(check) }
}

async fn bounded(check: &Check, within: Duration, told: &Told) -> (String, String, bool) {
    let late = |_| (unasked(check).expected, format!("no answer within {within:?}"), false);
    timeout(within, once(check, told)).await.unwrap_or_else(late)
}

/// Returns what was expected and what was found, as they are shown, and whether they agree.
async fn once(check: &Check, told: &Told) -> (String, String, bool) {
    let shown = |text: &str| format::one_line(&told.hide(text), ANSWER_CHARS_SHOWN);
    let answer = queries::ask(&check.query, told).await;
    let found = match &answer {
        Ok(answer) => shown(answer),
        Err(problem) => shown(&format!("no answer: {problem}")),
    };
    match &check.expect {
        Expect::Success => ("an answer".to_owned(), found, answer.is_ok()),
        Expect::Text(text) => (shown(text), found, answer.as_ref() == Ok(text)),
        Expect::Integer(number) => {
            let agrees = answer.is_ok_and(|answer| is_integer(&answer, *number));
            (number.to_string(), found, agrees)
        }
        Expect::Number(number) => {
            let agrees = answer.is_ok_and(|answer| answer.parse() == Ok(*number));
            (number.to_string(), found, agrees)
        }
        Expect::Production(query) => match queries::ask(query, told).await {
            Ok(expected) if expected.is_empty() => {
                ("as production, which gave an empty answer".to_owned(), found, false)
            }
            Ok(expected) => {
                (format!("as production: {}", shown(&expected)), found, answer == Ok(expected))
            }
            Err(problem) => {
                (format!("as production, which gave no answer: {}", shown(&problem)), found, false)
            }
        },
    }
}

/// Whether an answer is this whole number; `5.0` is 5, as far as a float can tell.
fn is_integer(answer: &str, number: i64) -> bool {
    /// Up to here each whole number is a float of its own.
    const EXACT_MAX: u64 = 1 << f64::MANTISSA_DIGITS;
    match answer.parse::<i64>() {
        Ok(answer) => answer == number,
        Err(_) if number.unsigned_abs() > EXACT_MAX => false,
        Err(_) => answer.parse() == Ok(number as f64),
    }
}

#[cfg(test)]
mod tests {
    use dacapo_drill::description::{How, Query};

    use super::*;

    #[test]
    fn whole_numbers_are_compared_as_such() {
        assert!(is_integer("9007199254740993", 9_007_199_254_740_993));
        assert!(!is_integer("9007199254740992", 9_007_199_254_740_993));
        assert!(is_integer("5.0", 5) && is_integer("-5", -5));
        assert!(!is_integer("9007199254740993.0", 9_007_199_254_740_993));
        assert!(!is_integer("", 0) && !is_integer("5.5", 5));
    }

    fn told() -> Told {
        let folder = std::env::temp_dir();
        Told { variables: Vec::new(), secrets: vec!["sesame".to_owned()], folder }
    }

    fn check(command: &str, expect: Expect, within: Duration) -> Check {
        let words = ["sh", "-c", command].map(str::to_owned).to_vec();
        let query = Query { how: How::Command(words), timeout: Duration::from_secs(60) };
        Check { name: "c".to_owned(), query, expect, within }
    }

    #[tokio::test]
    async fn nothing_is_not_as_production_and_a_secret_is_not_shown() {
        let nothing = |how| Expect::Production(Query { how, timeout: Duration::from_secs(60) });
        let empty = nothing(How::Command(vec!["true".to_owned()]));
        let moment = Duration::from_millis(1);
        let (_, _, green) = once(&check("true", empty, moment), &told()).await;
        assert!(!green);
        let shows = check("echo it is sesame", Expect::Success, Duration::from_secs(60));
        let result = one(&shows, &told()).await;
        assert!(result.green && !result.found.contains("sesame"), "{}", result.found);
    }

    #[tokio::test]
    async fn a_check_is_asked_for_no_longer_than_its_time() {
        let late = check("sleep 600", Expect::Success, Duration::from_millis(50));
        let result = one(&late, &told()).await;
        assert_eq!((result.green, result.tries), (false, 1));
        assert_eq!(result.found, "no answer within 50ms");
    }

    #[tokio::test]
    async fn a_check_that_was_green_must_still_be() {
        let red = check("exit 1", Expect::Success, Duration::from_secs(60));
        let green = CheckResult { green: true, tries: 1, ..unasked(&red) };
        let mut results = [green];
        again(&[red], &told(), &mut results).await;
        assert!(!results[0].green && results[0].found.starts_with("green before"));
    }
}
