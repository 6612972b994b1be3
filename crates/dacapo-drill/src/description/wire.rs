//! The form of a description in its file. Every key is known; the tables `selection`, `target` and
//! `pace` have those of the flags of `dacapo replay`, which judge their values.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use dacapo_event::ShortStr;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use super::{
    AMQP_VARIABLE, ANSWER_WITHIN, CHECK_WITHIN, CHECKS_MAX, Check, DESCRIPTION_BYTES_MAX,
    DRAIN_WITHIN, Definitions, DefinitionsFrom, Description, Environment, Expect, Flag, How,
    NAME_CHARS_MAX, Query, Queue, READY_WITHIN, STOP_WITHIN, Secret, Service, Shared, Stop,
    TIME_MAX, Targets, Vhost,
};
use crate::DrillError;
use crate::definitions::to_table;

/// The keys of each section that are flags of `dacapo replay`, with `_` for `-`.
const SELECTION: [&str; 12] = [
    "from",
    "to",
    "type",
    "routing_key",
    "exchange",
    "key",
    "id",
    "header",
    "where",
    "where_errors",
    "descriptor_set",
    "message",
];
const TARGET: [&str; 3] = ["via_default_exchange", "keep_priority", "override"];
const PACE: [&str; 6] = ["rate", "byte_rate", "speed", "ramp", "max_queue_depth", "window"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    name: Spanned<String>,
    #[serde(default)]
    environment: WireEnvironment,
    #[serde(default)]
    queue: Vec<WireQueue>,
    #[serde(default)]
    selection: Flags,
    target: Spanned<Flags>,
    #[serde(default)]
    pace: Flags,
    #[serde(default)]
    service: WireService,
    #[serde(default)]
    check: Vec<Spanned<WireCheck>>,
    counts: Option<Spanned<WireQuery>>,
    #[serde(default)]
    targets: WireTargets,
    #[serde(default)]
    rpo: WireRpo,
}

type Flags = BTreeMap<String, Spanned<toml::Value>>;
type Span = Option<Spanned<String>>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WireEnvironment {
    vhost: Option<String>,
    amqp: Option<String>,
    management: Option<Spanned<String>>,
    allow_shared: bool,
    definitions: Option<String>,
    definitions_vhost: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireQueue {
    name: Spanned<String>,
    #[serde(default)]
    arguments: serde_json::Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WireService {
    command: Option<Spanned<Vec<String>>>,
    env: BTreeMap<String, String>,
    ready: Option<Spanned<Vec<String>>>,
    ready_within: Span,
    stop: Span,
    stop_within: Span,
    drain_within: Span,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCheck {
    name: String,
    command: Option<Vec<String>>,
    sql: Option<String>,
    database: Option<String>,
    http: Option<String>,
    timeout: Span,
    expect: Option<String>,
    expect_number: Option<Spanned<toml::Value>>,
    production: Option<WireQuery>,
    within: Span,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireQuery {
    command: Option<Vec<String>>,
    sql: Option<String>,
    database: Option<String>,
    http: Option<String>,
    timeout: Span,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WireTargets {
    rto: Span,
    rpo: Span,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WireRpo {
    archiver_metrics: Option<Spanned<String>>,
}

/// Tells where in the text something is wrong.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl Text<'_> {
    fn wrong(self, span: &Range<usize>, problem: impl Into<String>) -> DrillError {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        DrillError::Description { line: 1 + before.matches('\n').count(), problem: problem.into() }
    }

    fn duration(self, text: &Span, default: Duration) -> Result<Duration, DrillError> {
        Ok(self.target(text)?.unwrap_or(default))
    }

    fn target(self, text: &Span) -> Result<Option<Duration>, DrillError> {
        let Some(text) = text else { return Ok(None) };
        let parsed: Option<SignedDuration> = text.get_ref().parse().ok();
        let parsed = parsed.and_then(|span| Duration::try_from(span).ok());
        match parsed.filter(|duration| !duration.is_zero() && *duration <= TIME_MAX) {
            Some(duration) => Ok(Some(duration)),
            None => {
                let problem = "this is no duration above zero and of a year at the most (for example `30s`, `1h 30m`)";
                Err(self.wrong(&text.span(), problem))
            }
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Description, DrillError> {
    if text.len() as u64 > DESCRIPTION_BYTES_MAX {
        let problem = format!("it has more than {DESCRIPTION_BYTES_MAX} bytes");
        return Err(DrillError::Description { line: 1, problem });
    }
    let wire: Wire = toml::from_str(text).map_err(|error| {
        Text(text).wrong(&error.span().unwrap_or(0..0), without_values(error.message()))
    })?;
    wire.typed(Text(text))
}

/// Returns the parser's words without what stands in the file: serde quotes a value of a wrong type,
/// and that may be a password.
fn without_values(message: &str) -> String {
    for begin in ["invalid type: ", "invalid value: ", "invalid length "] {
        if message.starts_with(begin)
            && let Some((_, expected)) = message.rsplit_once("expected ")
        {
            return format!("expected {expected}");
        }
    }
    message.lines().next().unwrap_or_default().to_owned()
}

impl Wire {
    fn typed(self, text: Text<'_>) -> Result<Description, DrillError> {
        let name = self.name.get_ref();
        if name.trim().is_empty() || name.chars().count() > NAME_CHARS_MAX {
            let problem = format!("a name has 1 to {NAME_CHARS_MAX} characters");
            return Err(text.wrong(&self.name.span(), problem));
        }
        if self.check.len() > CHECKS_MAX {
            let problem = format!("there are more than {CHECKS_MAX} checks");
            return Err(text.wrong(&self.check[CHECKS_MAX].span(), problem));
        }
        let span = self.target.span();
        let mut target = self.target.into_inner();
        let queue = match target.remove("queue").as_ref().map(Spanned::get_ref) {
            Some(toml::Value::String(queue)) if !queue.is_empty() => queue.clone(),
            _ => return Err(text.wrong(&span, "`target` needs `queue`, the name of one")),
        };
        Ok(Description {
            name: name.clone(),
            environment: self.environment.typed(self.queue, text)?,
            selection: flags(self.selection, "selection", &SELECTION, text)?,
            queue,
            target: flags(target, "target", &TARGET, text)?,
            pace: flags(self.pace, "pace", &PACE, text)?,
            service: self.service.typed(text)?,
            checks: self
                .check
                .into_iter()
                .map(|check| typed(check, text))
                .collect::<Result<_, _>>()?,
            counts: match self.counts {
                Some(counts) => {
                    let span = counts.span();
                    Some(counts.into_inner().typed(&span, text)?)
                }
                None => None,
            },
            targets: Targets {
                rto: text.target(&self.targets.rto)?,
                rpo: text.target(&self.targets.rpo)?,
            },
            archiver_metrics: match self.rpo.archiver_metrics {
                Some(url) => Some(http(url.get_ref(), &url.span(), text)?),
                None => None,
            },
        })
    }
}

impl WireEnvironment {
    fn typed(self, queues: Vec<WireQueue>, text: Text<'_>) -> Result<Environment, DrillError> {
        if let (None, Some(management)) = (&self.amqp, &self.management) {
            let problem = "`management` is that of `amqp`, which is missing; the command's own is \
                           --management";
            return Err(text.wrong(&management.span(), problem));
        }
        let definitions = match (self.definitions, self.definitions_vhost) {
            (None, None) => None,
            (None, Some(vhost)) => {
                let problem = "`definitions_vhost` needs `definitions`";
                return Err(text.wrong(&vhost.span(), problem));
            }
            (Some(from), vhost) => Some(Definitions {
                from: match from.as_str() {
                    "archive" => DefinitionsFrom::Archive,
                    _ => DefinitionsFrom::File(from),
                },
                vhost: vhost.map(Spanned::into_inner),
            }),
        };
        let queue = |queue: WireQueue| {
            if queue.name.get_ref().is_empty() || queue.name.get_ref().len() > ShortStr::BYTES_MAX {
                let problem = format!("a queue's name has 1 to {} bytes", ShortStr::BYTES_MAX);
                return Err(text.wrong(&queue.name.span(), problem));
            }
            let arguments = to_table(&queue.arguments);
            let arguments = arguments.map_err(|problem| text.wrong(&queue.name.span(), problem))?;
            Ok(Queue { name: queue.name.into_inner(), arguments })
        };
        Ok(Environment {
            vhost: match self.vhost.as_deref() {
                None | Some("new") => Vhost::New,
                Some(name) => Vhost::Taken(name.to_owned()),
            },
            amqp: self.amqp.map(Secret),
            management: self.management.map(|url| Secret(url.into_inner())),
            shared: if self.allow_shared { Shared::Allow } else { Shared::Refuse },
            definitions,
            queues: queues.into_iter().map(queue).collect::<Result<_, _>>()?,
        })
    }
}

impl WireService {
    fn typed(self, text: Text<'_>) -> Result<Service, DrillError> {
        let command = |command: Option<Spanned<Vec<String>>>| match command {
            Some(command) => {
                let span = command.span();
                argv(command.into_inner(), &span, text).map(Some)
            }
            None => Ok(None),
        };
        let stop = match self.stop.as_ref().map(|stop| stop.get_ref().as_str()) {
            None | Some("SIGTERM") => Stop::Terminate,
            Some("SIGINT") => Stop::Interrupt,
            Some("SIGKILL") => Stop::Kill,
            Some(_) => {
                let span = self.stop.as_ref().map_or(0..0, Spanned::span);
                return Err(text.wrong(&span, "`stop` is SIGTERM, SIGINT or SIGKILL"));
            }
        };
        Ok(Service {
            command: command(self.command)?,
            env: self.env.into_iter().map(|(name, value)| (name, Secret(value))).collect(),
            ready: command(self.ready)?,
            ready_within: text.duration(&self.ready_within, READY_WITHIN)?,
            stop,
            stop_within: text.duration(&self.stop_within, STOP_WITHIN)?,
            drain_within: text.duration(&self.drain_within, DRAIN_WITHIN)?,
        })
    }
}

fn typed(check: Spanned<WireCheck>, text: Text<'_>) -> Result<Check, DrillError> {
    let span = check.span();
    let WireCheck {
        name,
        command,
        sql,
        database,
        http,
        timeout,
        expect,
        expect_number,
        production,
        within,
    } = check.into_inner();
    if name.trim().is_empty() || name.chars().count() > NAME_CHARS_MAX {
        let problem = format!("a check's name has 1 to {NAME_CHARS_MAX} characters");
        return Err(text.wrong(&span, problem));
    }
    let query = WireQuery { command, sql, database, http, timeout }.typed(&span, text)?;
    let expect = match (expect, expect_number, production) {
        (None, None, None) => Expect::Success,
        (Some(expected), None, None) => Expect::Text(expected.trim().to_owned()),
        (None, Some(number), None) => match number.get_ref() {
            toml::Value::Integer(number) => Expect::Integer(*number),
            toml::Value::Float(number) if number.is_finite() => Expect::Number(*number),
            _ => return Err(text.wrong(&number.span(), "`expect_number` is a number")),
        },
        (None, None, Some(production)) => Expect::Production(production.typed(&span, text)?),
        _ => {
            let problem = "a check has one of `expect`, `expect_number` and `production`";
            return Err(text.wrong(&span, problem));
        }
    };
    Ok(Check { name, query, expect, within: text.duration(&within, CHECK_WITHIN)? })
}

impl WireQuery {
    fn typed(self, span: &Range<usize>, text: Text<'_>) -> Result<Query, DrillError> {
        let timeout = text.duration(&self.timeout, ANSWER_WITHIN)?;
        let how = match (self.command, self.sql, self.database, self.http) {
            (Some(command), None, None, None) => How::Command(argv(command, span, text)?),
            (None, Some(sql), Some(database), None) => match database.strip_prefix("sqlite:") {
                Some(path) => How::Sqlite { sql, path: path.to_owned() },
                None => {
                    let problem = "`database` is `sqlite:PATH`; ask another one by its own client \
                                   with `command` (`psql`, say)";
                    return Err(text.wrong(span, problem));
                }
            },
            (None, None, None, Some(url)) => How::Http(http(&url, span, text)?),
            _ => {
                let problem = "a question is one of `command`, `sql` with `database`, and `http`";
                return Err(text.wrong(span, problem));
            }
        };
        Ok(Query { how, timeout })
    }
}

/// Returns a command's words; all of them are seen by every user of the machine.
fn argv(
    words: Vec<String>,
    span: &Range<usize>,
    text: Text<'_>,
) -> Result<Vec<String>, DrillError> {
    if words.first().is_none_or(String::is_empty) {
        return Err(text.wrong(span, "a `command` needs a program"));
    }
    if words.iter().any(|word| word.contains(AMQP_VARIABLE)) {
        let problem = "`${DACAPO_DRILL_AMQP}` has a password, which everyone sees in a command's \
                       arguments; read DACAPO_DRILL_AMQP from its environment, or hand it on in \
                       `env`";
        return Err(text.wrong(span, problem));
    }
    Ok(words)
}

fn http(url: &str, span: &Range<usize>, text: Text<'_>) -> Result<String, DrillError> {
    let place = url.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or_default());
    match place {
        Some(place) if !place.is_empty() && !place.contains('@') => Ok(url.to_owned()),
        _ => {
            let problem = "this is no `http://HOST:PORT/PATH` without a login; for `https://` or a \
                           login use a `command` (`curl`, say)";
            Err(text.wrong(span, problem))
        }
    }
}

/// Returns what a section says as flags; their values are judged by whoever has the flags.
fn flags(
    section: Flags,
    name: &str,
    known: &[&str],
    text: Text<'_>,
) -> Result<Vec<Flag>, DrillError> {
    let mut flags = Vec::new();
    for (key, value) in section {
        let span = value.span();
        let key = key.replace('-', "_");
        if !known.contains(&key.as_str()) {
            let problem = format!("`{name}` has no `{key}`; there are {}", known.join(", "));
            return Err(text.wrong(&span, problem));
        }
        let flag = key.replace('_', "-");
        let values = match value.into_inner() {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            flags.push(match value {
                toml::Value::String(value) => Flag(format!("--{flag}={value}")),
                toml::Value::Integer(value) => Flag(format!("--{flag}={value}")),
                toml::Value::Float(value) => Flag(format!("--{flag}={value}")),
                toml::Value::Datetime(value) => Flag(format!("--{flag}={value}")),
                toml::Value::Boolean(true) => Flag(format!("--{flag}")),
                toml::Value::Boolean(false) => continue,
                toml::Value::Array(_) | toml::Value::Table(_) => {
                    let problem = format!("`{key}` is a text, a number or a list of them");
                    return Err(text.wrong(&span, problem));
                }
            });
        }
    }
    Ok(flags)
}
