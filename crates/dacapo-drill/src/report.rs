//! The report of a drill: what was measured, and the verdict on it.
//!
//! A report is a document, so these types are its form in JSON as well ([`SCHEMA`]); whole
//! milliseconds, so that what is read is what was written. Names, counts, digests and times; never a
//! body, a password or a value of a service's environment.

mod forms;
mod reconciliation;

use std::time::Duration;

use dacapo_event::{Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::DrillError;
use crate::verdict::{Requirement, Verdict, judge};
use forms::{as_text, millis, millis_if_any, text_if_any};

pub use reconciliation::{Counted, Reconciliation, Row, ServiceSeen, TargetSeen};

/// The form of reports that this version writes and reads.
pub const SCHEMA: &str = "dacapo.drill/2";

/// The most bytes of a report: a thousand types and a hundred checks have less than 1 MB.
pub const REPORT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Whether everything was met.
    pub verdict: Verdict,
    /// What was to be met, and was or was not; follows from the facts.
    pub requirements: Vec<Requirement>,
    /// What was measured.
    pub facts: Facts,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The drill's id.
    pub id: String,
    /// What the description calls it.
    pub name: String,
    /// Who ran it.
    pub by: String,
    /// The version of dacapo that did.
    pub version: String,
    /// SHA-256 of the description.
    #[serde(with = "as_text")]
    pub description: Digest,
    /// When it began.
    #[serde(with = "as_text")]
    pub began: Timestamp,
    /// When everything was taken down again.
    #[serde(with = "as_text")]
    pub ended: Timestamp,
    /// What broke it off, if anything did.
    pub failure: Option<Failure>,
    /// Where it was done.
    pub environment: Environment,
    /// What it was done from.
    pub archive: Option<Archive>,
    /// What was to be replayed.
    pub plan: Option<Plan>,
    /// What was.
    pub replay: Option<Replay>,
    /// Archive, target and service side by side.
    pub reconciliation: Option<Reconciliation>,
    /// How the service did.
    pub service: Service,
    /// What the checks found.
    pub checks: Vec<CheckResult>,
    /// What the time went into, in order.
    pub parts: Vec<Part>,
    /// From the start until the checks were green (the queue was drained, where there are none) and
    /// everything was acked, to within the age of the broker's statistics.
    #[serde(rename = "rto_ms", with = "millis_if_any")]
    pub rto: Option<Duration>,
    /// What it must not exceed.
    #[serde(rename = "rto_target_ms", with = "millis_if_any")]
    pub rto_target: Option<Duration>,
    /// What would have been lost.
    pub rpo: Option<Rpo>,
    /// What that must not exceed.
    #[serde(rename = "rpo_target_ms", with = "millis_if_any")]
    pub rpo_target: Option<Duration>,
    /// The fingerprint of the key that signs, if one does.
    #[serde(with = "text_if_any")]
    pub signed_by: Option<Digest>,
}

/// What broke a drill off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// In which part.
    pub during: String,
    /// What kind of thing.
    pub cause: Cause,
    /// What happened.
    pub problem: String,
}

/// What kind of thing broke a drill off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Whoever ran it: by a signal.
    Signal,
    /// Something that went wrong.
    Trouble,
}

/// Where a drill was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Host, port and virtual host.
    pub broker: String,
    /// How far it is from production.
    pub isolation: Isolation,
    /// Host, port and virtual host of production, if it was named.
    pub production: Option<String>,
    /// Where its exchanges, queues and bindings were copied from.
    pub copied_from: Option<String>,
    /// How many exchanges, queues and bindings were made.
    pub made: Made,
    /// What of the definitions was not copied.
    pub left_out: Vec<String>,
    /// What was there already, and was left as it is.
    pub found: Vec<String>,
    /// What was made and could not be taken down again.
    pub left_behind: Vec<String>,
}

/// How many things were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Exchanges.
    pub exchanges: u64,
    /// Queues.
    pub queues: u64,
    /// Bindings.
    pub bindings: u64,
}

/// How far an environment is from production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// A virtual host that this drill made and deleted.
    Made,
    /// A virtual host that was there, on another broker than production's.
    Taken,
    /// Another virtual host of production's own broker, that was there.
    SameBroker,
    /// A virtual host that was there, while production was not named or did not answer; the description
    /// allowed it.
    Unknown,
    /// Production's own virtual host, which the description allowed.
    Shared,
}

/// What a drill was done from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Where it is.
    pub location: String,
    /// SHA-256 over its heads ([`manifest`]).
    #[serde(with = "as_text")]
    pub manifest: Digest,
    /// How many streams it has.
    pub streams: u64,
    /// What it lacks.
    pub gaps: Vec<String>,
}

/// What was to be replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its hash.
    #[serde(with = "as_text")]
    pub hash: Digest,
    /// The selection as the description has it; empty for all.
    pub selection: Vec<String>,
    /// Where to, in words.
    pub target: String,
    /// How many events.
    pub events: u64,
    /// Whether that is exact; else the index's estimate.
    pub exact: bool,
    /// How many segments it reads.
    pub segments: u64,
}

/// What was replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// The replay's id.
    pub id: String,
    /// Its state, as in its receipt.
    pub state: String,
    /// How many events it was to publish.
    pub selected: u64,
    /// How many the broker confirmed.
    pub confirmed: u64,
    /// How many the target refused.
    pub rejected: u64,
    /// How many were neither.
    pub remaining: u64,
    /// How many may have been published twice.
    pub possible_repeats: u64,
}

/// How the service did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The program that was started; nothing if it ran already.
    pub program: Option<String>,
    /// Whether it was ready in time.
    pub ready: bool,
    /// Whether its queue was drained in time.
    pub drained: Drained,
    /// How it ended, if it did before it was stopped.
    pub ended: Option<String>,
}

/// Whether a queue was drained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "how")]
pub enum Drained {
    /// Nobody came so far.
    #[default]
    NotReached,
    /// Nothing waits in it, and nothing that was delivered is not acked.
    Yes,
    /// Nothing waits in it; what is not acked is not known, for no management plugin was named.
    NothingWaits,
    /// It was not, and why.
    No(String),
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckResult {
    /// What it is called.
    pub name: String,
    /// What was asked.
    pub asked: String,
    /// What was expected.
    pub expected: String,
    /// What was found last.
    pub found: String,
    /// Whether they agree.
    pub green: bool,
    /// How often it was asked until it was green or its time was over; 0 if the drill did not come so
    /// far.
    pub tries: u64,
}

/// A part of the time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What was done.
    pub name: String,
    /// When it began, from the start.
    #[serde(rename = "from_ms", with = "millis")]
    pub from: Duration,
    /// How long it took.
    #[serde(rename = "took_ms", with = "millis")]
    pub took: Duration,
}

/// What would have been lost, had production been lost at the start of the drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rpo {
    /// How much time.
    #[serde(rename = "ms", with = "millis")]
    pub time: Duration,
    /// When the newest recovered event was archived.
    #[serde(with = "text_if_any")]
    pub newest: Option<Timestamp>,
    /// Who says so.
    pub source: RpoSource,
}

/// Who says what would have been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RpoSource {
    /// The archiver's own lag.
    ArchiverLag,
    /// The time since the newest recovered event was archived: no more than that, for on a quiet
    /// platform there was nothing to lose.
    UpperBound,
}

impl Environment {
    /// Returns how isolated it is, in two words.
    pub(crate) fn isolation_word(&self) -> &'static str {
        match self.isolation {
            Isolation::Made => "isolated, own host",
            Isolation::Taken => "isolated, taken host",
            Isolation::SameBroker => "production's broker",
            Isolation::Unknown => "isolation unknown",
            Isolation::Shared => "NOT isolated",
        }
    }

    /// Returns how isolated it was, in words.
    pub(crate) fn isolation_words(&self) -> &'static str {
        match self.isolation {
            Isolation::Made if self.left_behind.is_empty() => {
                "a virtual host of this drill's own, made for it and deleted after it"
            }
            Isolation::Made => {
                "a virtual host of this drill's own, made for it and not known to be deleted"
            }
            Isolation::Taken => {
                "a virtual host that was there, of another broker than production's"
            }
            Isolation::SameBroker => {
                "a virtual host that was there, another one of production's own broker"
            }
            Isolation::Unknown => {
                "a virtual host that was there, as the description allows; production was not named or did not answer, so that they were not compared: not known to be isolated"
            }
            Isolation::Shared => {
                "production's own virtual host, as the description allows: not isolated"
            }
        }
    }
}

impl Report {
    /// Returns the report of these facts, to the millisecond: what is judged is what is written.
    pub fn new(mut facts: Facts) -> Self {
        let whole = |time: &mut Duration| {
            *time -= Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000));
        };
        let times = [&mut facts.rto, &mut facts.rto_target, &mut facts.rpo_target];
        times.into_iter().flatten().for_each(whole);
        facts.rpo.iter_mut().for_each(|rpo| whole(&mut rpo.time));
        for part in &mut facts.parts {
            whole(&mut part.from);
            whole(&mut part.took);
        }
        let requirements = judge(&facts);
        let verdict = Verdict::of(&requirements);
        Report { schema: SCHEMA.to_owned(), verdict, requirements, facts }
    }

    /// Returns it as the bytes that are signed.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a report has no key but text");
        json.push(b'\n');
        json
    }

    /// Reads a report; what it says of requirements and verdict must follow from its facts.
    ///
    /// # Errors
    /// It is none, or one of another form, or its verdict is another than that of its facts.
    pub fn parse(bytes: &[u8]) -> Result<Self, DrillError> {
        let wrong = |problem: String| DrillError::Report { problem };
        if bytes.len() as u64 > REPORT_BYTES_MAX {
            return Err(wrong(format!("it has more than {REPORT_BYTES_MAX} bytes")));
        }
        #[derive(Deserialize)]
        struct Form {
            schema: String,
        }
        let form: Form = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if form.schema != SCHEMA {
            let Form { schema } = form;
            return Err(wrong(format!(
                "its schema is `{schema}`, and this version reads `{SCHEMA}`"
            )));
        }
        let report: Report =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if report != Report::new(report.facts.clone()) {
            return Err(wrong("its verdict does not follow from its facts".to_owned()));
        }
        Ok(report)
    }
}

/// Returns the manifest digest of an archive: SHA-256 over its heads, sorted, each as a line of
/// stream, last sequence and digest of the last segment.
pub fn manifest<'a>(heads: impl IntoIterator<Item = (&'a str, u64, Digest)>) -> Digest {
    let mut lines: Vec<String> = heads
        .into_iter()
        .map(|(stream, last, digest)| format!("{stream} {last} {digest}\n"))
        .collect();
    lines.sort();
    Digest::of(lines.concat().as_bytes())
}

#[cfg(test)]
pub(crate) mod tests;
