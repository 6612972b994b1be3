//! Asks what must be true after a restore, until it is or its time is over.

use std::time::Duration;

use dacapo_drill::description::{Check, Expect};
use dacapo_drill::report::CheckResult;
use tokio::time::Instant;

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

/// Returns what is known of a check that was not asked yet.
pub fn unasked(check: &Check) -> CheckResult {
    let expected = match &check.expect {
        Expect::Success => "an answer".to_owned(),
        Expect::Text(text) => format::one_line(text, ANSWER_CHARS_SHOWN),
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
    let mut tries = 0;
    loop {
        tries += 1;
        let (expected, found, green) = once(check, told).await;
        if green || Instant::now() >= deadline {
            return CheckResult { expected, found, green, tries, ..unasked(check) };
        }
        tokio::time::sleep(TRY_INTERVAL).await;
    }
}

/// Returns what was expected and what was found, as they are shown, and whether they agree.
async fn once(check: &Check, told: &Told) -> (String, String, bool) {
    let shown = |text: &str| format::one_line(text, ANSWER_CHARS_SHOWN);
    let answer = queries::ask(&check.query, told).await;
    let found = match &answer {
        Ok(answer) => shown(answer),
        Err(problem) => shown(&format!("no answer: {problem}")),
    };
    match &check.expect {
        Expect::Success => ("an answer".to_owned(), found, answer.is_ok()),
        Expect::Text(text) => (shown(text), found, answer.as_ref() == Ok(text)),
        Expect::Number(number) => {
            let agrees = answer.is_ok_and(|answer| answer.parse() == Ok(*number));
            (number.to_string(), found, agrees)
        }
        Expect::Production(query) => match queries::ask(query, told).await {
            Ok(expected) => {
                (format!("as production: {}", shown(&expected)), found, answer == Ok(expected))
            }
            Err(problem) => {
                (format!("as production, which gave no answer: {}", shown(&problem)), found, false)
            }
        },
    }
}
