//! What speaks against a replay, found before anything is published.
//!
//! Pure: a plan's load and facts of the broker in, findings out. A finding refuses the replay unless
//! its operator overrides it by name; a warning is only told. What could not be asked is told, too:
//! a check that was not made is not one that was passed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use dacapo_bus::broker::{Node, Topology};
use dacapo_event::ParseError;

use crate::plan::Plan;
use crate::request::Target;

mod backfill;
mod broker;
mod queue;
mod routes;

pub use backfill::{archivers_of, check_archived, check_holding};

/// What an event takes on a broker's disk beside its body: headers of its own, the marking, and the
/// record that a quorum queue keeps of it.
const EVENT_BYTES: u64 = 1_024;

/// One thing that is looked at; its name is what `--override` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The queue or exchange is there.
    TargetMissing,
    /// The user may do what the replay does.
    NoPermission,
    /// The queue does not drop events after a time.
    QueueTtl,
    /// The queue does not drop its oldest events when it is full.
    QueueDropsHead,
    /// The queue is not deleted when nobody consumes it.
    QueueExpires,
    /// What the queue gives up does not come back to it, or to an archiver.
    DeadLetterLoop,
    /// The nodes have disk for the events.
    BrokerDiskLow,
    /// No node blocks publishers for want of memory.
    BrokerMemoryAlarm,
    /// Nothing that is published comes to an archiver again.
    FeedsArchiver,
    /// What no queue takes is seen as such.
    AlternateExchange,
    /// Somebody consumes the queue, if that was asked for.
    NoConsumer,
    /// What is asked of history is archived.
    NotArchived,
}

impl Check {
    /// All of them, in the order in which they are told.
    pub const ALL: [Check; 12] = [
        Check::TargetMissing,
        Check::NoPermission,
        Check::QueueTtl,
        Check::QueueDropsHead,
        Check::QueueExpires,
        Check::DeadLetterLoop,
        Check::BrokerDiskLow,
        Check::BrokerMemoryAlarm,
        Check::FeedsArchiver,
        Check::AlternateExchange,
        Check::NoConsumer,
        Check::NotArchived,
    ];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Check::TargetMissing => "target-missing",
            Check::NoPermission => "no-permission",
            Check::QueueTtl => "queue-ttl",
            Check::QueueDropsHead => "queue-drops-head",
            Check::QueueExpires => "queue-expires",
            Check::DeadLetterLoop => "dead-letter-loop",
            Check::BrokerDiskLow => "broker-disk-low",
            Check::BrokerMemoryAlarm => "broker-memory-alarm",
            Check::FeedsArchiver => "feeds-archiver",
            Check::AlternateExchange => "alternate-exchange",
            Check::NoConsumer => "no-consumer",
            Check::NotArchived => "not-archived",
        }
    }

    /// Returns what it finds, in a few words.
    pub fn finds(self) -> &'static str {
        match self {
            Check::TargetMissing => "the queue or exchange is not there",
            Check::NoPermission => "the user may not publish there",
            Check::QueueTtl => "the queue drops events after a time",
            Check::QueueDropsHead => {
                "the queue drops its oldest events when full, and may get full"
            }
            Check::QueueExpires => "the queue is deleted when nobody consumes it",
            Check::DeadLetterLoop => "what the queue gives up comes back to it or to an archiver",
            Check::BrokerDiskLow => "a node has too little disk for the events",
            Check::BrokerMemoryAlarm => "a node blocks publishers for want of memory",
            Check::FeedsArchiver => "the events would come to an archiver again",
            Check::AlternateExchange => "an alternate exchange hides events that no queue takes",
            Check::NoConsumer => "nobody consumes the queue (with --require-consumer)",
            Check::NotArchived => "no archiver is bound to what a backfill is to play",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Check {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Check::ALL.into_iter().find(|check| check.as_str() == text);
        found
            .ok_or_else(|| ParseError::new(text, "a check of the target (for example `queue-ttl`)"))
    }
}

/// What a finding does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It refuses the replay, unless it is overridden.
    Refusal,
    /// It is told.
    Warning,
}

/// Something that speaks against a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// What it does.
    pub severity: Severity,
    /// What was found, with the names of things.
    pub what: String,
    /// What can be done about it.
    pub next_step: String,
    /// Whether the operator overrode it.
    pub overridden: bool,
}

/// Checks that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchecked {
    /// Which.
    pub checks: Vec<Check>,
    /// Why not, and what would help.
    pub why: String,
}

/// What the operator decided beforehand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Refuse a queue that nobody consumes.
    pub require_consumer: bool,
    /// Findings that do not refuse.
    pub overrides: BTreeSet<Check>,
}

/// The outcome of all checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preflight {
    /// What the operator decided beforehand.
    pub wishes: Wishes,
    /// What was found, in the order of [`Check::ALL`].
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub unchecked: Vec<Unchecked>,
}

impl Preflight {
    /// Returns what refuses the replay.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        let refuses =
            |finding: &&Finding| finding.severity == Severity::Refusal && !finding.overridden;
        self.findings.iter().filter(refuses)
    }

    /// Returns the names of what was found and overridden.
    pub fn overridden(&self) -> BTreeSet<Check> {
        let overridden = self.findings.iter().filter(|finding| finding.overridden);
        overridden.map(|finding| finding.check).collect()
    }

    /// Keeps what an earlier look found and its operator overrode, so that the receipt of a resumed
    /// replay tells all of it.
    pub fn remember(&mut self, earlier: &Preflight) {
        let now = self.overridden();
        let gone = |finding: &&Finding| finding.overridden && !now.contains(&finding.check);
        let gone: Vec<Finding> = earlier.findings.iter().filter(gone).cloned().collect();
        self.findings.extend(gone);
    }
}

/// What a replay brings to its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load<'a> {
    /// Where to.
    pub target: &'a Target,
    /// The exchanges that the events came from, as far as the index knows.
    pub exchanges: &'a BTreeSet<String>,
    /// Whether these are all.
    pub exchanges_exact: bool,
    /// Events at the most.
    pub events: u64,
    /// Bytes of bodies, about.
    pub bytes: u64,
    /// Below this depth of the queue the replay waits.
    pub depth_max: Option<u64>,
}

impl<'a> Load<'a> {
    /// Returns what is left of a plan after so many events.
    pub fn of(plan: &'a Plan, confirmed: u64) -> Self {
        let at_most = match plan.exact {
            true => plan.events,
            false => plan
                .segments
                .iter()
                .map(|segment| segment.last.saturating_sub(segment.first).saturating_add(1))
                .fold(0, u64::saturating_add),
        };
        let events = at_most.saturating_sub(confirmed);
        let left = events as f64 / at_most.max(1) as f64;
        let window = u64::from(plan.request.window.get());
        let depth_max = plan.request.pace.queue_depth_max;
        Load {
            target: &plan.request.target,
            exchanges: &plan.exchanges,
            exchanges_exact: plan.exchanges_exact,
            events,
            bytes: (plan.bytes as f64 * left) as u64,
            depth_max: depth_max.map(|depth| depth.get().saturating_add(window)),
        }
    }
}

/// What is known of the broker; what is not has a reason, with the next step.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whether the queue or exchange is there, its depth and its consumers.
    pub exists: Option<bool>,
    /// Messages waiting in the queue.
    pub depth: Option<u64>,
    /// Consumers of the queue.
    pub consumers: Option<u64>,
    /// What the broker would refuse the user, in its words.
    pub denied: Result<Vec<String>, String>,
    /// Of the exchanges that the events came from, for a replay to these: those that are not there.
    pub missing: BTreeSet<String>,
    /// And those that the broker was not asked about.
    pub unasked: BTreeSet<String>,
    /// The nodes.
    pub nodes: Result<Vec<Node>, String>,
    /// What is in the virtual host.
    pub topology: Result<Topology, String>,
}

/// Looks at all there is to look at.
pub fn check(load: &Load<'_>, facts: &Facts, wishes: Wishes) -> Preflight {
    let mut found = Found::default();
    if !load.target.is_bus() {
        return Preflight { wishes, ..Preflight::default() };
    }
    reachable(load, facts, &mut found);
    match (&facts.topology, load.target.queue()) {
        (Ok(topology), Some(queue)) => {
            queue::check(load, facts, topology, queue, &mut found);
            routes::of_queue(load, topology, queue, &mut found);
        }
        (Ok(topology), None) => routes::of_exchanges(load, topology, &mut found),
        (Err(why), Some(_)) => found.unchecked(
            &[
                Check::QueueTtl,
                Check::QueueDropsHead,
                Check::QueueExpires,
                Check::DeadLetterLoop,
                Check::FeedsArchiver,
            ],
            why,
        ),
        (Err(why), None) => {
            found.unchecked(&[Check::FeedsArchiver, Check::AlternateExchange], why);
        }
    }
    match &facts.nodes {
        Ok(nodes) => broker::check(load, nodes, &mut found),
        Err(why) => found.unchecked(&[Check::BrokerDiskLow, Check::BrokerMemoryAlarm], why),
    }
    if wishes.require_consumer {
        consumed(load, facts, &mut found);
    }
    found.into_preflight(wishes)
}

/// Whether somebody consumes the target.
fn consumed(load: &Load<'_>, facts: &Facts, found: &mut Found) {
    match (facts.consumers, &facts.denied) {
        (Some(0), _) => found.refuse(
            Check::NoConsumer,
            format!("nobody consumes {}", load.target),
            "start its service, or leave --require-consumer out",
        ),
        (Some(_), _) => {}
        (None, Err(why)) => found.unchecked(&[Check::NoConsumer], why),
        (None, Ok(_)) => {
            let why = format!("the broker does not say who consumes {}", load.target);
            found.unchecked(&[Check::NoConsumer], &why);
        }
    }
}

/// What AMQP itself tells.
fn reachable(load: &Load<'_>, facts: &Facts, found: &mut Found) {
    if facts.exists == Some(false) {
        found.refuse(
            Check::TargetMissing,
            format!("{} does not exist on the broker", load.target),
            "check its name and the virtual host in --amqp, or let its service declare it first",
        );
    }
    if *load.target == Target::Original {
        originals(load, facts, found);
    }
    match &facts.denied {
        Ok(denied) => {
            for reason in denied {
                found.refuse(
                    Check::NoPermission,
                    format!("the broker refuses it: {reason}"),
                    "give the user the permission it lacks (`rabbitmqctl set_permissions`), or use \
                     another user",
                );
            }
        }
        Err(why) => found.unchecked(&[Check::NoPermission], why),
    }
    if facts.exists.is_none()
        && let Err(why) = &facts.denied
    {
        found.unchecked(&[Check::TargetMissing], why);
    }
}

/// Whether the exchanges that events came from are there.
fn originals(load: &Load<'_>, facts: &Facts, found: &mut Found) {
    let mut missing: BTreeSet<&str> = facts.missing.iter().map(String::as_str).collect();
    if !facts.unasked.is_empty() {
        let why =
            "AMQP is asked about the first exchanges only; publish by --exchange, some at a time";
        found.unchecked(&[Check::NoPermission], why);
        match &facts.topology {
            Ok(topology) => {
                let there = |name: &&str| name.is_empty() || topology.exchanges.contains_key(*name);
                let unasked = facts.unasked.iter().map(String::as_str);
                missing.extend(unasked.filter(|name| !there(name)));
            }
            Err(_) => found.unchecked(&[Check::TargetMissing], why),
        }
    }
    if !load.exchanges_exact {
        let why = "the archive's footers do not name every exchange that events came from; publish by \
                   --exchange, or to one queue (--to-queue)";
        let checks = [
            Check::TargetMissing,
            Check::NoPermission,
            Check::FeedsArchiver,
            Check::AlternateExchange,
        ];
        found.unchecked(&checks, why);
    }
    let Some(first) = missing.first() else { return };
    let others = match missing.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more like it)"),
    };
    found.refuse(
        Check::TargetMissing,
        format!(
            "exchange `{first}`{others}, to which events were first published, does not exist on the \
             broker"
        ),
        "declare it, leave its events out (--exchange), or publish to one queue (--to-queue)",
    );
}

/// Collects what is found.
#[derive(Debug, Default)]
struct Found {
    findings: Vec<Finding>,
    unchecked: Vec<Unchecked>,
}

impl Found {
    fn refuse(&mut self, check: Check, what: String, next_step: impl Into<String>) {
        self.add(Severity::Refusal, check, what, next_step.into());
    }

    fn warn(&mut self, check: Check, what: String, next_step: impl Into<String>) {
        self.add(Severity::Warning, check, what, next_step.into());
    }

    fn add(&mut self, severity: Severity, check: Check, what: String, next_step: String) {
        self.findings.push(Finding { check, severity, what, next_step, overridden: false });
    }

    fn unchecked(&mut self, checks: &[Check], why: &str) {
        match self.unchecked.iter_mut().find(|unchecked| unchecked.why == why) {
            Some(unchecked) => unchecked.checks.extend(checks),
            None => {
                let why = why.to_owned();
                self.unchecked.push(Unchecked { checks: checks.to_vec(), why });
            }
        }
    }

    fn into_preflight(mut self, wishes: Wishes) -> Preflight {
        for finding in &mut self.findings {
            finding.overridden =
                finding.severity == Severity::Refusal && wishes.overrides.contains(&finding.check);
        }
        self.findings.sort_by_key(|finding| finding.check);
        for unchecked in &mut self.unchecked {
            unchecked.checks.sort();
        }
        Preflight { wishes, findings: self.findings, unchecked: self.unchecked }
    }
}

#[cfg(test)]
mod tests;
