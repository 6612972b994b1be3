//! `matches` with patterns that are compiled once.
//!
//! CEL's own compiles the pattern anew for every event, which takes longer than all the
//! rest of an evaluation.

use std::cell::RefCell;
use std::collections::HashMap;

use cel::ExecutionError;
use cel::common::types::{CelBool, CelString};
use cel::common::value::CowVal;
use regex::{Regex, RegexBuilder};

use super::meter;

/// What `matches` is called after compilation; nobody can type it.
pub(crate) const MATCHES: &str = "@matches";

/// Patterns kept per thread: more than one expression holds, unless it computes them, and then
/// keeping them gains nothing.
const KEPT_MAX: usize = 32;

/// The largest compiled pattern: holds `\w{30}`, which is 30 times 700 letters and digits in as many
/// alphabets. What is kept at once is at most 32 times as much.
const PROGRAM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How patterns are told apart by what they may cost: by the smallest of these in which they fit,
/// which `regex` does not tell otherwise.
const PROGRAM_BYTES: [usize; 7] =
    [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, PROGRAM_BYTES_MAX];

/// Bytes of a compiled pattern that count as a step for each byte of text. Those that are made to
/// be slow (`[ab]*a[ab]{1000}c`) take up to 15 times that, ordinary ones a hundredth of it.
const PROGRAM_BYTES_A_STEP: usize = 4096;

/// Bytes of a compiled pattern that count as a step while it is compiled.
const COMPILED_BYTES_A_STEP: usize = 8;

/// A compiled pattern, and at most how large it is.
struct Compiled {
    regex: Regex,
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<HashMap<String, Compiled>> = RefCell::new(HashMap::new());
}

/// Checks a pattern that is written out in an expression.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    compile(pattern, |_| Ok(())).map(drop).map_err(|error| match error {
        ExecutionError::FunctionError { message, .. } => message,
        other => other.to_string(),
    })
}

/// Compiles a pattern as small as it can be; `before` is asked before each try of a size.
fn compile(
    pattern: &str,
    before: impl Fn(u64) -> Result<(), ExecutionError>,
) -> Result<Compiled, ExecutionError> {
    let refused = |reason: String| Err(ExecutionError::function_error("matches", reason));
    for bytes in PROGRAM_BYTES {
        before((bytes / COMPILED_BYTES_A_STEP) as u64)?;
        match RegexBuilder::new(pattern).size_limit(bytes).build() {
            Ok(regex) => return Ok(Compiled { regex, bytes }),
            Err(regex::Error::CompiledTooBig(_)) => {}
            Err(error) => return refused(reason(&error)),
        }
    }
    refused(format!("it takes more than {PROGRAM_BYTES_MAX} bytes once compiled; repeat less"))
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
        if let Some(compiled) = kept.get(pattern) {
            return compiled.is_match(text);
        }
        let compiled = compile(pattern, meter::take)?;
        if kept.len() == KEPT_MAX {
            kept.clear();
        }
        kept.entry(pattern.to_owned()).or_insert(compiled).is_match(text)
    })?;
    Ok(CowVal::owned(CelBool::from(matched)))
}

impl Compiled {
    /// Looks for the pattern, once the steps that it may take are taken.
    fn is_match(&self, text: &str) -> Result<bool, ExecutionError> {
        let steps = (text.len() as u64).saturating_mul(self.bytes as u64);
        meter::take(1 + steps / PROGRAM_BYTES_A_STEP as u64)?;
        Ok(self.regex.is_match(text))
    }
}

/// The last line of the library's message says what; the lines before draw the pattern.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
