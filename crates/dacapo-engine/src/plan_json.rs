//! Plans as JSON: what `dacapo plan --json` prints and `--out` saves. The only place where
//! plan and request meet their wire form.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dacapo_event::marking::Priority;
use dacapo_event::{Sequence, StreamName};
use dacapo_filter::{Binding, SelectionSpec, SequenceRange, WhereErrors};
use dacapo_republish::{Pace, Speed};
use serde::Serialize;
use serde_json::{Number, Value};

use self::wire::{
    FormatJson, GapJson, PaceJson, PlanJson, RequestJson, SegmentJson, SelectionJson,
    TargetFactsJson, TargetJson,
};
use crate::EngineError;
use crate::plan::{Plan, PlannedSegment};
use crate::request::{Request, Target};
use crate::survey::{Gap, TargetFacts};

mod blast;
mod preflight;
mod wire;

/// The version of a saved plan; a reader refuses a higher one.
const PLAN_FORMAT: u32 = 1;

/// A saved plan of more bytes is refused: 100,000 segments come to about 30 MB.
pub const PLAN_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Returns the plan as one JSON object.
pub fn to_json(plan: &Plan) -> Value {
    let hash = plan.hash();
    let json = PlanJson {
        format: PLAN_FORMAT,
        plan: hash.to_string(),
        events: plan.events,
        exact: plan.exact,
        by_type: plan.by_type.clone(),
        by_type_exact: plan.by_type_exact,
        bytes: plan.bytes,
        bytes_read: plan.bytes_read,
        bytes_full_scan: plan.bytes_full_scan,
        requests: plan.requests,
        seconds: number(plan.seconds),
        segments: plan.segments.len() as u64,
        first_time: plan.first_time.map(|time| time.to_string()),
        last_time: plan.last_time.map(|time| time.to_string()),
        times_exact: plan.times_exact,
        gaps: plan.gaps.iter().map(gap_to_json).collect(),
        target: TargetFactsJson {
            name: plan.request.target.to_string(),
            exists: plan.target.exists,
            depth: plan.target.depth,
            consumers: plan.target.consumers,
            warnings: plan.target.warnings.clone(),
        },
        exchanges: plan.exchanges.clone(),
        exchanges_exact: plan.exchanges_exact,
        preflight: preflight::to_wire(&plan.preflight),
        blast_radius: plan.blast_radius.as_ref().map(|blast| blast::to_wire(blast, &hash)),
        archive: plan.archive.clone(),
        made_at: plan.made_at.to_string(),
        request: request_json(&plan.request),
        reads: plan.segments.iter().map(segment_to_json).collect(),
    };
    value_of(&json)
}

/// Returns the plan that a saved JSON object is; `path` is named in errors.
///
/// # Errors
/// It is not a plan, of a newer format, or was changed since it was saved (its hash differs).
pub fn from_json(path: &str, text: &[u8]) -> Result<Plan, EngineError> {
    let unreadable = |problem: String| EngineError::Unreadable { path: path.to_owned(), problem };
    let not_a_plan =
        |error| unreadable(format!("it is not a plan of `dacapo plan --out`: {error}"));
    // Looked at first: what else a newer plan has is not known.
    let FormatJson { format } = serde_json::from_slice(text).map_err(not_a_plan)?;
    if format > PLAN_FORMAT {
        return Err(unreadable(format!(
            "plan format {format} is newer than this dacapo knows ({PLAN_FORMAT}); use a newer dacapo"
        )));
    }
    let json: PlanJson = serde_json::from_slice(text).map_err(not_a_plan)?;
    let parse = Parse { path };
    let plan = Plan {
        request: request_from_json(&parse, json.request)?,
        archive: json.archive,
        segments: json
            .reads
            .into_iter()
            .map(|segment| segment_from_json(&parse, segment))
            .collect::<Result<_, _>>()?,
        events: json.events,
        exact: json.exact,
        by_type: json.by_type,
        by_type_exact: json.by_type_exact,
        bytes: json.bytes,
        bytes_read: json.bytes_read,
        bytes_full_scan: json.bytes_full_scan,
        requests: json.requests,
        seconds: parse.number(&json.seconds)?,
        first_time: json.first_time.map(|time| parse.text(&time)).transpose()?,
        last_time: json.last_time.map(|time| parse.text(&time)).transpose()?,
        times_exact: json.times_exact,
        gaps: json
            .gaps
            .iter()
            .map(|gap| {
                let stream = parse.text(&gap.stream)?;
                Ok(Gap { stream, first: gap.first_sequence, last: gap.last_sequence })
            })
            .collect::<Result<_, EngineError>>()?,
        target: TargetFacts {
            exists: json.target.exists,
            depth: json.target.depth,
            consumers: json.target.consumers,
            warnings: json.target.warnings,
        },
        exchanges: json.exchanges,
        exchanges_exact: json.exchanges_exact,
        preflight: preflight::from_wire(&parse, json.preflight)?,
        blast_radius: json.blast_radius.map(|blast| blast::from_wire(&parse, blast)).transpose()?,
        made_at: parse.text(&json.made_at)?,
    };
    if plan.hash().to_string() != json.plan {
        return Err(unreadable(
            "it was changed after it was saved (its hash differs); make a new plan".to_owned(),
        ));
    }
    check_sequences(&parse, &plan.segments)?;
    Ok(plan)
}

/// Returns the part of a plan that says what is done: hashed, and kept with a replay.
pub fn request_to_json(request: &Request) -> Value {
    value_of(&request_json(request))
}

/// Returns what [`request_to_json`] made; `path` is named in errors.
pub(crate) fn request_from_value(path: &str, json: Value) -> Result<Request, EngineError> {
    let parse = Parse { path };
    let json = serde_json::from_value(json);
    request_from_json(&parse, json.map_err(|error| parse.refused(&error.to_string()))?)
}

fn value_of(json: &impl Serialize) -> Value {
    serde_json::to_value(json).expect("text, numbers and lists become JSON")
}

fn number(number: f64) -> Number {
    Number::from_f64(number).expect("a quotient of counts, a factor or a span is finite")
}

struct Parse<'a> {
    path: &'a str,
}

impl Parse<'_> {
    fn text<T>(&self, text: &str) -> Result<T, EngineError>
    where
        T: std::str::FromStr<Err = dacapo_event::ParseError>,
    {
        text.parse().map_err(|error: dacapo_event::ParseError| EngineError::Unreadable {
            path: self.path.to_owned(),
            problem: error.to_string(),
        })
    }

    /// serde_json's own reading of a fraction may be off in the last digit, and so the hash be
    /// another.
    fn number(&self, number: &Number) -> Result<f64, EngineError> {
        let parsed = number.to_string().parse();
        parsed.map_err(|_| self.refused(&format!("`{number}` is not a number")))
    }

    fn refused(&self, problem: &str) -> EngineError {
        EngineError::Unreadable { path: self.path.to_owned(), problem: problem.to_owned() }
    }
}

fn gap_to_json(gap: &Gap) -> GapJson {
    GapJson { stream: gap.stream.to_string(), first_sequence: gap.first, last_sequence: gap.last }
}

fn segment_to_json(segment: &PlannedSegment) -> SegmentJson {
    SegmentJson {
        segment: segment.key.to_string(),
        stream: segment.stream.to_string(),
        bytes: segment.size,
        digest: segment.digest.to_string(),
        first_sequence: segment.first,
        last_sequence: segment.last,
        time_min: segment.time_min.to_string(),
    }
}

/// Sequences begin at 1, and within a stream segments follow each other: what counts events or
/// begins after a checkpoint relies on it.
fn check_sequences(parse: &Parse<'_>, segments: &[PlannedSegment]) -> Result<(), EngineError> {
    let mut last: BTreeMap<&StreamName, Sequence> = BTreeMap::new();
    for segment in segments {
        let after = last.insert(&segment.stream, segment.last).unwrap_or(0);
        if segment.first <= after || segment.last < segment.first {
            let PlannedSegment { key, first, last, .. } = segment;
            let problem = format!("segment `{key}` cannot hold the sequences {first} to {last}");
            return Err(parse.refused(&problem));
        }
    }
    Ok(())
}

fn segment_from_json(parse: &Parse<'_>, json: SegmentJson) -> Result<PlannedSegment, EngineError> {
    Ok(PlannedSegment {
        stream: parse.text(&json.stream)?,
        key: parse.text(&json.segment)?,
        size: json.bytes,
        digest: parse.text(&json.digest)?,
        first: json.first_sequence,
        last: json.last_sequence,
        time_min: parse.text(&json.time_min)?,
    })
}

fn request_json(request: &Request) -> RequestJson {
    let selection = &request.selection;
    RequestJson {
        selection: SelectionJson {
            from: selection.from.map(|time| time.to_string()),
            to: selection.to.map(|time| time.to_string()),
            types: selection.types.clone(),
            routing_keys: selection.routing_keys.clone(),
            exchanges: selection.exchanges.clone(),
            keys: selection.keys.clone(),
            ids: selection.ids.clone(),
            places: selection
                .places
                .iter()
                .map(|(stream, sequence)| (stream.to_string(), *sequence))
                .collect(),
            ranges: selection
                .ranges
                .iter()
                .map(|range| (range.stream.to_string(), range.after, range.until))
                .collect(),
            bindings: selection
                .bindings
                .iter()
                .map(|binding| (binding.exchange.clone(), binding.pattern.clone()))
                .collect(),
            headers: selection.headers.clone(),
            where_: selection.where_.clone(),
            skip_where_errors: selection.where_errors == WhereErrors::Skip,
            descriptor_set_base64: selection.descriptor_set.as_ref().map(|set| BASE64.encode(set)),
            message: selection.message_type.clone(),
        },
        target: match request.target.clone() {
            Target::Queue { queue } => TargetJson::Queue { queue },
            Target::QueueViaDefaultExchange { queue } => {
                TargetJson::QueueViaDefaultExchange { queue }
            }
            Target::Exchange { exchange, routing_key } => {
                TargetJson::Exchange { exchange, routing_key }
            }
            Target::Original => TargetJson::Original,
            Target::File { path } => TargetJson::File {
                path: path.display().to_string(),
                path_base64: path
                    .to_str()
                    .is_none()
                    .then(|| BASE64.encode(path.as_os_str().as_bytes())),
            },
        },
        pace: PaceJson {
            rate: request.pace.rate,
            byte_rate: request.pace.byte_rate,
            speed: request.pace.speed.map(|speed| number(speed.factor())),
            ramp_seconds: request.pace.ramp.map(|ramp| number(ramp.as_secs_f64())),
            queue_depth_max: request.pace.queue_depth_max,
        },
        window: request.window,
        keep_priority: request.priority == Priority::Keep,
    }
}

fn request_from_json(parse: &Parse<'_>, json: RequestJson) -> Result<Request, EngineError> {
    let selection = json.selection;
    let descriptor_set = selection
        .descriptor_set_base64
        .map(|text| BASE64.decode(text).map(Into::into))
        .transpose()
        .map_err(|_| parse.refused("its descriptor set is not base64"))?;
    let speed = json.pace.speed.map(|factor| parse.number(&factor)).transpose()?;
    let speed = speed.map(Speed::new).transpose();
    let speed = speed.map_err(|error| parse.refused(&error.to_string()))?;
    let ramp = json
        .pace
        .ramp_seconds
        .map(|seconds| parse.number(&seconds))
        .transpose()?
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|_| parse.refused("its ramp is not a number of seconds"))?;
    Ok(Request {
        selection: SelectionSpec {
            from: selection.from.map(|time| parse.text(&time)).transpose()?,
            to: selection.to.map(|time| parse.text(&time)).transpose()?,
            types: selection.types,
            routing_keys: selection.routing_keys,
            exchanges: selection.exchanges,
            keys: selection.keys,
            ids: selection.ids,
            places: selection
                .places
                .into_iter()
                .map(|(stream, sequence)| Ok((parse.text(&stream)?, sequence)))
                .collect::<Result<_, EngineError>>()?,
            ranges: selection
                .ranges
                .into_iter()
                .map(|(stream, after, until)| {
                    Ok(SequenceRange { stream: parse.text(&stream)?, after, until })
                })
                .collect::<Result<_, EngineError>>()?,
            bindings: selection
                .bindings
                .into_iter()
                .map(|(exchange, pattern)| Binding { exchange, pattern })
                .collect(),
            headers: selection.headers,
            where_: selection.where_,
            where_errors: match selection.skip_where_errors {
                true => WhereErrors::Skip,
                false => WhereErrors::Stop,
            },
            descriptor_set,
            message_type: selection.message,
        },
        target: match json.target {
            TargetJson::Queue { queue } => Target::Queue { queue },
            TargetJson::QueueViaDefaultExchange { queue } => {
                Target::QueueViaDefaultExchange { queue }
            }
            TargetJson::Exchange { exchange, routing_key } => {
                Target::Exchange { exchange, routing_key }
            }
            TargetJson::Original => Target::Original,
            TargetJson::File { path, path_base64: None } => Target::File { path: path.into() },
            TargetJson::File { path_base64: Some(bytes), .. } => {
                let bytes = BASE64.decode(bytes);
                let bytes = bytes.map_err(|_| parse.refused("its target's path is not base64"))?;
                Target::File { path: OsString::from_vec(bytes).into() }
            }
        },
        pace: Pace {
            rate: json.pace.rate,
            byte_rate: json.pace.byte_rate,
            speed,
            ramp,
            queue_depth_max: json.pace.queue_depth_max,
        },
        window: json.window,
        priority: match json.keep_priority {
            true => Priority::Keep,
            false => Priority::Neutralise,
        },
    })
}

#[cfg(test)]
mod tests;
