//! The members of a saved plan, as they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::blast::BlastRadiusJson;
use super::preflight::PreflightJson;

#[derive(Deserialize)]
pub(super) struct FormatJson {
    pub(super) format: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PlanJson {
    pub(super) format: u32,
    pub(super) plan: String,
    pub(super) events: u64,
    pub(super) exact: bool,
    pub(super) by_type: BTreeMap<String, u64>,
    pub(super) by_type_exact: bool,
    pub(super) bytes: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_full_scan: u64,
    pub(super) requests: u64,
    pub(super) seconds: Number,
    pub(super) segments: u64,
    pub(super) first_time: Option<String>,
    pub(super) last_time: Option<String>,
    pub(super) times_exact: bool,
    pub(super) gaps: Vec<GapJson>,
    pub(super) target: TargetFactsJson,
    /// Since the checks of a target; a plan without has none.
    #[serde(default)]
    pub(super) exchanges: BTreeSet<String>,
    #[serde(default)]
    pub(super) exchanges_exact: bool,
    #[serde(default)]
    pub(super) preflight: PreflightJson,
    #[serde(default)]
    pub(super) blast_radius: Option<BlastRadiusJson>,
    pub(super) archive: String,
    pub(super) made_at: String,
    pub(super) request: RequestJson,
    pub(super) reads: Vec<SegmentJson>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct GapJson {
    pub(super) stream: String,
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TargetFactsJson {
    pub(super) name: String,
    pub(super) exists: Option<bool>,
    pub(super) depth: Option<u64>,
    pub(super) consumers: Option<u64>,
    pub(super) warnings: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SegmentJson {
    pub(super) segment: String,
    pub(super) stream: String,
    pub(super) bytes: u64,
    pub(super) digest: String,
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    pub(super) time_min: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct RequestJson {
    pub(super) selection: SelectionJson,
    pub(super) target: TargetJson,
    pub(super) pace: PaceJson,
    pub(super) window: NonZeroU32,
    pub(super) keep_priority: bool,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SelectionJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) types: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) routing_keys: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) exchanges: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) keys: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ids: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) places: Vec<(String, u64)>,
    /// Each a stream, the sequence before the run, and its last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ranges: Vec<(String, u64, u64)>,
    /// Each an exchange and a topic pattern.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) bindings: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) headers: Vec<(String, String)>,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub(super) where_: Option<String>,
    pub(super) skip_where_errors: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) descriptor_set_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum TargetJson {
    Queue {
        queue: String,
    },
    QueueViaDefaultExchange {
        queue: String,
    },
    Exchange {
        exchange: String,
        routing_key: Option<String>,
    },
    Original,
    File {
        path: String,
        /// The path's bytes where they are not UTF-8; `path` is then for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path_base64: Option<String>,
    },
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct PaceJson {
    pub(super) rate: Option<NonZeroU32>,
    pub(super) byte_rate: Option<NonZeroU64>,
    pub(super) speed: Option<Number>,
    pub(super) ramp_seconds: Option<Number>,
    pub(super) queue_depth_max: Option<NonZeroU64>,
}
