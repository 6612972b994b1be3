//! The where expression: CEL, checked when it is compiled, evaluated on one event at a time.
//!
//! What a person may type is bounded in length and nesting; it is parsed on a stack of
//! its own, because the parser recurses as deep as the text tells it to. What an evaluation may
//! take is bounded too ([`meter`]), whatever the event holds.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use cel::common::ast::{IdedExpr, SourceInfo};
use cel::common::types::{CelBool, STRING_TYPE};
use cel::{Context, Env, ExecutionError, ParseErrors, Value};
use dacapo_event::{Event, StreamName};

use crate::{FilterError, WhereError};
use body::BodyDecoder;
pub use body::BodyEncoder;
use scope::Scope;

pub(crate) mod body;
mod meter;
mod regexes;
mod scope;
mod tree;
mod values;

/// The variables of a where expression.
pub const VARIABLES: [&str; 12] = [
    "id",
    "time",
    "type",
    "key",
    "exchange",
    "routing_key",
    "content_type",
    "stream",
    "sequence",
    "headers",
    "properties",
    "body",
];

/// The most bytes of an expression: a screenful; lists of ids and keys have flags of their own.
const BYTES_MAX: usize = 8 * 1024;

/// How deep an expression may nest once parsed. Evaluation recurses as deep; the default stack of
/// a thread (2 MiB) holds several times as much even without optimisation.
const NESTING_MAX: usize = 64;

/// Stack for parsing: the worst texts of [`BYTES_MAX`] bytes (thousands of brackets, or of
/// selections in a chain) took less than 4 MiB. Only what is used becomes resident.
const PARSER_STACK_BYTES: usize = 64 * 1024 * 1024;

/// The most characters of an evaluation error: CEL's messages may quote a whole body.
const MESSAGE_CHARS_MAX: usize = 300;

/// A compiled expression.
#[derive(Clone)]
pub(crate) struct Where {
    source: String,
    env: Arc<Env>,
    whole: IdedExpr,
    /// The parts joined by `&&` that do not look at the body: if one is false, so is the whole.
    without_body: Vec<IdedExpr>,
    /// Variables in `without_body`.
    variables: BTreeSet<String>,
    body: Option<BodyDecoder>,
}

impl Where {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It is not CEL, names a variable or function that is not there, holds a bad regular
    /// expression, or is too long or too deep.
    pub(crate) fn compile(source: &str, decoder: BodyDecoder) -> Result<Self, FilterError> {
        if source.len() > BYTES_MAX {
            return Err(whole(format!(
                "it has {} bytes, and {BYTES_MAX} are allowed; give lists of ids or keys with their own flags",
                source.len()
            )));
        }
        let env = Arc::new(environment());
        let (mut parsed, places) = parse(&env, source)?;
        let free = tree::check(&env, source, &places, &mut parsed)?;
        let looks_at_body = free.contains("body");
        let mut without_body = tree::parts_without(&parsed, "body");
        let variables = without_body.iter().flat_map(tree::variables).collect();
        without_body.iter_mut().for_each(meter::install);
        meter::install(&mut parsed);
        let body = looks_at_body.then_some(decoder);
        Ok(Where { source: source.to_owned(), env, whole: parsed, without_body, variables, body })
    }

    /// Returns whether the expression looks at the body.
    pub(crate) fn needs_body(&self) -> bool {
        self.body.is_some()
    }

    /// Returns whether the parts that need no body look at this variable.
    pub(crate) fn needs_before_body(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Evaluates what needs no body. With a body still to come, a part that fails decides nothing:
    /// another part may be false, which makes the whole false.
    pub(crate) fn before_body(
        &self,
        stream: &StreamName,
        event: &Event,
    ) -> Result<bool, WhereError> {
        if !self.needs_body() {
            return self.on(stream, event);
        }
        let scope = Scope::new(stream, event, None);
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.set_variable_resolver(&scope);
        Ok(self.without_body.iter().all(|part| truth(part, &context).unwrap_or(true)))
    }

    /// Evaluates the whole expression.
    pub(crate) fn on(&self, stream: &StreamName, event: &Event) -> Result<bool, WhereError> {
        let failed = |message: String| WhereError { event: event.id.clone(), message };
        let body = self.body.as_ref().map(|decoder| decoder.decode(&event.message.body));
        let scope = Scope::new(stream, event, body.transpose().map_err(failed)?);
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.set_variable_resolver(&scope);
        truth(&self.whole, &context).map_err(failed)
    }
}

impl fmt::Debug for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Where").field(&self.source).finish()
    }
}

fn environment() -> Env {
    let mut env = Env::stdlib();
    env.add_overload(
        regexes::MATCHES,
        "matches_string",
        vec![STRING_TYPE, STRING_TYPE],
        regexes::matches,
    )
    .expect("nothing else has this name");
    env.add_member_overload(
        regexes::MATCHES,
        "string_matches",
        STRING_TYPE,
        vec![STRING_TYPE],
        regexes::matches,
    )
    .expect("nothing else has this name");
    meter::declare(&mut env);
    env
}

/// Evaluates within the steps that one evaluation may take.
fn truth(expression: &IdedExpr, context: &Context<'_, '_>) -> Result<bool, String> {
    meter::begin();
    let value = Value::resolve_val(expression, context);
    if meter::overdrawn() {
        return Err(meter::too_many());
    }
    let value = value.map_err(|error| explain(&error))?;
    match value.downcast_ref::<CelBool>() {
        Some(truth) => Ok(*truth.inner()),
        None => Err(format!("it gave a {}, not true or false", value.get_type().name())),
    }
}

fn explain(error: &ExecutionError) -> String {
    let message = match error {
        ExecutionError::NoSuchKey(name) => {
            return format!("there is no field `{name}`; ask with `has(…)` first");
        }
        ExecutionError::FunctionError { function, message } => format!("`{function}`: {message}"),
        other => other.to_string().replace(regexes::MATCHES, "matches"),
    };
    let mut shortened: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    if shortened.len() < message.len() {
        shortened.push('…');
    }
    shortened
}

fn whole(reason: impl Into<String>) -> FilterError {
    FilterError::WhereWhole { reason: reason.into() }
}

fn too_deep() -> FilterError {
    whole(format!("it nests deeper than {NESTING_MAX} levels; write it flatter"))
}

/// Parses on a large stack and hands back only what later recursion can hold.
fn parse(env: &Arc<Env>, source: &str) -> Result<(IdedExpr, SourceInfo), FilterError> {
    let env = Arc::clone(env);
    let text = source.to_owned();
    let work = move || -> Result<(IdedExpr, SourceInfo), FilterError> {
        let (expression, places) =
            env.parser().parse_with_source_info(&text).map_err(|errors| mistake(&text, &errors))?;
        if tree::nesting(&expression) > NESTING_MAX {
            Err(too_deep())
        } else {
            Ok((expression, places))
        }
    };
    let thread = std::thread::Builder::new()
        .name("where-parser".to_owned())
        .stack_size(PARSER_STACK_BYTES)
        .spawn(work)
        .map_err(|error| whole(format!("no thread to parse it on: {error}")))?;
    thread.join().unwrap_or_else(|_| Err(whole("the parser gave up on it; write it differently")))
}

/// Turns the parser's first complaint into one of ours.
fn mistake(source: &str, errors: &ParseErrors) -> FilterError {
    let Some(first) = errors.errors.iter().find(|error| error.pos.0 > 0) else {
        return match errors.errors.first() {
            Some(error)
                if error.source.as_ref().is_some_and(|e| e.to_string().contains("Recursion")) =>
            {
                too_deep()
            }
            _ => whole("it is not a CEL expression"),
        };
    };
    if first.msg.contains("Recursion limit") {
        return too_deep();
    }
    let line = usize::try_from(first.pos.0).unwrap_or(1);
    let column = usize::try_from(first.pos.1).unwrap_or(1).max(1);
    let reason = first.msg.strip_prefix("Syntax error: ").unwrap_or(&first.msg);
    let reason = match reason.strip_prefix("token recognition error at: '=") {
        Some(_) => "`=` is no operator; compare with `==`",
        None => reason,
    };
    at(source, line, column, reason)
}

fn at(source: &str, line: usize, column: usize, reason: impl Into<String>) -> FilterError {
    // A tab would push the caret away from its place.
    let source_line = source.lines().nth(line - 1).unwrap_or_default().replace('\t', " ");
    FilterError::Where { line, column, reason: reason.into(), source_line }
}

#[cfg(test)]
mod tests;
