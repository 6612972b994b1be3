//! What a backfill is asked to do, as it is kept: written before anything else, and again if its
//! operator changes the pace or overrides a check when it goes on.

use std::time::Duration;

use dacapo_event::Timestamp;
use dacapo_event::attributes::{AttributeRules, Place};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::EngineError;
use crate::plan_json;
use crate::preflight::{Check, Wishes};
use crate::request::Request;

/// The version of a saved description; a reader refuses a higher one.
const FORMAT: u32 = 1;

/// How long after a binding what was routed without it may still come, if nothing else is asked: a
/// publisher's process looks up the queues and then delivers, within milliseconds unless it is
/// suspended or blocked by flow control; and from RabbitMQ 4.0 the other nodes of a cluster learn of a
/// binding a moment later. In an AMQP transaction it looks them up when it publishes and delivers when
/// it commits, so such publishers need a margin of their longest transaction.
pub const MARGIN_DEFAULT: Duration = Duration::from_secs(5);

/// What is asked of a backfill.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Which history goes where, and how fast. The selection has the bindings, and from when; each
    /// round adds its runs of streams.
    pub request: Request,
    /// What the queue is bound to in the end.
    pub bindings: Vec<Bound>,
    /// The archivers' queues.
    pub archiver_queues: Vec<String>,
    /// How old what is not played may be when live events begin to be held.
    pub behind_max: Duration,
    /// How long after a binding, or an expiration, what was on its way by then may still come.
    pub margin: Duration,
    /// Whether an archive that lacks events will do.
    pub accept_gaps: bool,
    /// Where an event's attributes are, as its archivers look for them.
    pub rules: AttributeRules,
    /// What the operator decided beforehand about the target.
    pub wishes: Wishes,
    /// Where the archive is.
    pub archive: String,
    /// The virtual host that it is in; an older dacapo did not write it down.
    pub vhost: Option<String>,
    /// What the broker calls its cluster, if it does.
    pub cluster: Option<String>,
    /// What was not looked at, one sentence each.
    pub unchecked: Vec<String>,
    /// When it was asked.
    pub made_at: Timestamp,
}

/// A binding to the live stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The exchange.
    pub exchange: String,
    /// The binding's key, as the broker has it.
    pub key: String,
}

impl Description {
    /// Returns the queue that is filled.
    pub fn queue(&self) -> &str {
        self.request.target.queue().expect("a backfill has a queue as its target")
    }
}

#[derive(Deserialize)]
struct FormatJson {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct DescriptionJson {
    format: u32,
    request: Value,
    bindings: Vec<(String, String)>,
    archiver_queues: Vec<String>,
    max_behind_ms: u64,
    margin_ms: Option<u64>,
    accept_gaps: bool,
    id_from: Vec<String>,
    time_from: Vec<String>,
    type_from: Vec<String>,
    key_from: Vec<String>,
    require_consumer: bool,
    overrides: Vec<String>,
    archive: String,
    vhost: Option<String>,
    cluster: Option<String>,
    unchecked: Vec<String>,
    made_at: String,
}

pub(super) fn to_json(description: &Description) -> Value {
    let texts = |places: &[Place]| places.iter().map(Place::to_string).collect();
    let Description { request, rules, wishes, .. } = description;
    let bound = |bound: &Bound| (bound.exchange.clone(), bound.key.clone());
    let json = DescriptionJson {
        format: FORMAT,
        request: plan_json::request_to_json(request),
        bindings: description.bindings.iter().map(bound).collect(),
        archiver_queues: description.archiver_queues.clone(),
        max_behind_ms: u64::try_from(description.behind_max.as_millis()).unwrap_or(u64::MAX),
        margin_ms: Some(u64::try_from(description.margin.as_millis()).unwrap_or(u64::MAX)),
        accept_gaps: description.accept_gaps,
        id_from: texts(&rules.id),
        time_from: texts(&rules.time),
        type_from: texts(&rules.kind),
        key_from: texts(&rules.key),
        require_consumer: wishes.require_consumer,
        overrides: wishes.overrides.iter().map(Check::to_string).collect(),
        archive: description.archive.clone(),
        vhost: description.vhost.clone(),
        cluster: description.cluster.clone(),
        unchecked: description.unchecked.clone(),
        made_at: description.made_at.to_string(),
    };
    serde_json::to_value(json).expect("text, numbers and lists become JSON")
}

pub(super) fn from_json(path: &str, text: &[u8]) -> Result<Description, EngineError> {
    let unreadable = |problem: String| EngineError::Unreadable { path: path.to_owned(), problem };
    let no_backfill = |error| unreadable(format!("it describes no backfill: {error}"));
    let FormatJson { format } = serde_json::from_slice(text).map_err(no_backfill)?;
    if format > FORMAT {
        return Err(unreadable(format!(
            "its format {format} is newer than this dacapo knows ({FORMAT}); use a newer dacapo"
        )));
    }
    let json: DescriptionJson = serde_json::from_slice(text).map_err(no_backfill)?;
    let parsed = |error: dacapo_event::ParseError| unreadable(error.to_string());
    let places = |texts: Vec<String>| {
        texts.iter().map(|text| text.parse()).collect::<Result<Vec<Place>, _>>().map_err(parsed)
    };
    let overrides = json.overrides.iter().map(|name| name.parse()).collect::<Result<_, _>>();
    let request = plan_json::request_from_value(path, json.request)?;
    if request.target.queue().is_none() {
        return Err(unreadable("its target is no queue".to_owned()));
    }
    Ok(Description {
        request,
        bindings: json
            .bindings
            .into_iter()
            .map(|(exchange, key)| Bound { exchange, key })
            .collect(),
        archiver_queues: json.archiver_queues,
        behind_max: Duration::from_millis(json.max_behind_ms),
        margin: json.margin_ms.map_or(MARGIN_DEFAULT, Duration::from_millis),
        accept_gaps: json.accept_gaps,
        rules: AttributeRules {
            id: places(json.id_from)?,
            time: places(json.time_from)?,
            kind: places(json.type_from)?,
            key: places(json.key_from)?,
        },
        wishes: Wishes {
            require_consumer: json.require_consumer,
            overrides: overrides.map_err(parsed)?,
        },
        archive: json.archive,
        vhost: json.vhost,
        cluster: json.cluster,
        unchecked: json.unchecked,
        made_at: json.made_at.parse().map_err(parsed)?,
    })
}
