//! `matches` with patterns that are compiled once.
//!
//! CEL's own compiles the pattern anew for every event, which takes longer than all the
//! rest of an evaluation.

use std::cell::RefCell;
use std::collections::HashMap;

use cel::ExecutionError;
use cel::common::types::{CelBool, CelString};
use cel::common::value::CowVal;
use regex::Regex;

/// What `matches` is called after compilation; nobody can type it.
pub(crate) const MATCHES: &str = "@matches";

/// Patterns kept per thread: more than one expression holds, unless it computes them, and then
/// keeping them gains nothing.
const KEPT_MAX: usize = 32;

thread_local! {
    static KEPT: RefCell<HashMap<String, Regex>> = RefCell::new(HashMap::new());
}

/// Checks a pattern that is written out in an expression.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    Regex::new(pattern).map(drop).map_err(|error| reason(&error))
}

/// Implements `text.matches(pattern)` and `matches(text, pattern)`.
pub(crate) fn matches<'b, 'v>(
    arguments: Vec<CowVal<'b, 'v>>,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = |at: usize| {
        let argument = arguments.get(at).and_then(|value| value.downcast_ref::<CelString<'_>>());
        argument.map(CelString::inner).ok_or_else(ExecutionError::missing_argument_or_target)
    };
    let (text, pattern) = (text(0)?, text(1)?);
    let matched = KEPT.with_borrow_mut(|kept| -> Result<bool, ExecutionError> {
        if let Some(regex) = kept.get(pattern) {
            return Ok(regex.is_match(text));
        }
        let regex = Regex::new(pattern)
            .map_err(|error| ExecutionError::function_error("matches", reason(&error)))?;
        if kept.len() == KEPT_MAX {
            kept.clear();
        }
        Ok(kept.entry(pattern.to_owned()).or_insert(regex).is_match(text))
    })?;
    Ok(CowVal::owned(CelBool::from(matched)))
}

/// The last line of the library's message says what; the lines before draw the pattern.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
