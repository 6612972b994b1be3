//! What was to be met, and was or was not: a plain function of the measured facts.
//!
//! Invariant: what was not measured is not met.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::{
    Drained, Facts, Reconciliation, Replay, Row, RpoSource, ServiceSeen, TargetSeen,
};

/// Whether a drill met everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything.
    Met,
    /// Not everything.
    Missed,
}

/// One thing that was to be met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// What it is.
    pub name: String,
    /// What was to be.
    pub target: String,
    /// What was.
    pub measured: String,
    /// Whether they agree.
    pub outcome: Outcome,
}

/// How a requirement came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it was to be.
    Met,
    /// Otherwise.
    Missed,
    /// Nobody knows; not met.
    NotMeasured,
}

impl Verdict {
    /// Returns the verdict on what was to be met.
    pub fn of(requirements: &[Requirement]) -> Self {
        let met = |requirement: &Requirement| requirement.outcome == Outcome::Met;
        match requirements.iter().all(met) {
            true => Verdict::Met,
            false => Verdict::Missed,
        }
    }

    /// Returns it as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
        }
    }
}

/// Returns what was to be met, and was or was not.
pub fn judge(facts: &Facts) -> Vec<Requirement> {
    let mut all = vec![completed(facts)];
    if let Some(target) = facts.rto_target {
        all.push(within("recovery time (RTO)", target, facts.rto, ""));
    }
    if let Some(target) = facts.rpo_target {
        let source = match facts.rpo.as_ref().map(|rpo| rpo.source) {
            Some(RpoSource::UpperBound) => ", an upper bound",
            Some(RpoSource::ArchiverLag) => ", the archiver's lag",
            None => "",
        };
        let measured = facts.rpo.as_ref().map(|rpo| rpo.time);
        all.push(within("recovery point (RPO)", target, measured, source));
    }
    all.push(no_gaps(facts));
    all.push(replayed(facts.replay.as_ref()));
    all.push(drained(facts));
    all.push(target_agrees(facts));
    if facts.reconciliation.as_ref().is_some_and(|it| it.service != ServiceSeen::NotAsked) {
        all.push(service_agrees(facts.reconciliation.as_ref()));
    }
    all.extend(facts.checks.iter().map(|check| Requirement {
        name: format!("check: {}", check.name),
        target: check.expected.clone(),
        measured: check.found.clone(),
        outcome: match check.tries {
            0 => Outcome::NotMeasured,
            _ => met_if(check.green),
        },
    }));
    all.push(taken_down(facts));
    all
}

fn met_if(met: bool) -> Outcome {
    if met { Outcome::Met } else { Outcome::Missed }
}

fn requirement(
    name: &str,
    target: &str,
    measured: impl Into<String>,
    outcome: Outcome,
) -> Requirement {
    Requirement {
        name: name.to_owned(),
        target: target.to_owned(),
        measured: measured.into(),
        outcome,
    }
}

fn unmeasured(name: &str, target: &str) -> Requirement {
    requirement(name, target, "not measured", Outcome::NotMeasured)
}

fn completed(facts: &Facts) -> Requirement {
    let (name, target) = ("drill carried out", "to its end");
    match &facts.failure {
        None => requirement(name, target, "to its end", Outcome::Met),
        Some(failure) => {
            let measured = format!("broken off during {}: {}", failure.during, failure.problem);
            requirement(name, target, measured, Outcome::Missed)
        }
    }
}

fn within(name: &str, target: Duration, measured: Option<Duration>, source: &str) -> Requirement {
    let most = format!("at most {}", seconds(target));
    match measured {
        None => unmeasured(name, &most),
        Some(time) => {
            requirement(name, &most, format!("{}{source}", seconds(time)), met_if(time <= target))
        }
    }
}

fn no_gaps(facts: &Facts) -> Requirement {
    let (name, target) = ("archive without gaps", "none");
    match &facts.archive {
        None => unmeasured(name, target),
        Some(archive) if archive.gaps.is_empty() => requirement(name, target, "none", Outcome::Met),
        Some(archive) => requirement(name, target, archive.gaps.join("; "), Outcome::Missed),
    }
}

fn replayed(replay: Option<&Replay>) -> Requirement {
    let (name, target) = ("every selected event confirmed", "all, none rejected");
    let Some(replay) = replay else { return unmeasured(name, target) };
    let Replay { selected, confirmed, rejected, remaining, .. } = replay;
    let measured = format!("{confirmed} of {selected}, {rejected} rejected, {remaining} left");
    // A drill of nothing proves nothing.
    let all = *rejected == 0 && *remaining == 0 && confirmed == selected && *selected > 0;
    requirement(name, target, measured, met_if(all && replay.state == "completed"))
}

fn drained(facts: &Facts) -> Requirement {
    let (name, target) = ("service drained its queue", "nothing waits, nothing is unacked");
    let service = &facts.service;
    if let Some(ended) = &service.ended {
        let measured = format!("the service ended by itself: {ended}");
        return requirement(name, target, measured, Outcome::Missed);
    }
    match &service.drained {
        Drained::NotReached => unmeasured(name, target),
        Drained::Yes => requirement(name, target, "as it should be", Outcome::Met),
        Drained::NothingWaits => {
            let measured = "nothing waits; what is unacked is not known without --management";
            requirement(name, target, measured, Outcome::NotMeasured)
        }
        Drained::No(why) => requirement(name, target, why.clone(), Outcome::Missed),
    }
}

fn taken_down(facts: &Facts) -> Requirement {
    let (name, target) = ("environment taken down", "nothing of the drill is left");
    match facts.environment.left_behind.as_slice() {
        [] => requirement(name, target, "nothing is left", Outcome::Met),
        left => requirement(name, target, format!("left: {}", left.join("; ")), Outcome::Missed),
    }
}

fn target_agrees(facts: &Facts) -> Requirement {
    let (name, target) =
        ("target has what the archive gave", "the same counts and digests by type");
    let (Some(reconciliation), Some(replay)) = (&facts.reconciliation, &facts.replay) else {
        return unmeasured(name, target);
    };
    if reconciliation.target == TargetSeen::Receipt {
        // The replay's own requirement holds the receipt against the plan.
        let given: u64 = reconciliation.rows.iter().map(|row| row.archive.events).sum();
        let given = given + reconciliation.repeats[0];
        let measured = format!("by the receipt, {} of {given} confirmed", replay.confirmed);
        return requirement(name, target, measured, met_if(given == replay.confirmed));
    }
    let differs = |row: &&Row| row.target != Some(row.archive);
    compared(name, target, reconciliation.rows.iter().filter(differs), reconciliation.rows.len())
}

fn service_agrees(reconciliation: Option<&Reconciliation>) -> Requirement {
    let (name, target) = ("service has what the archive gave", "the same counts by type");
    let Some(reconciliation) = reconciliation else { return unmeasured(name, target) };
    if reconciliation.service == ServiceSeen::Failed {
        return unmeasured(name, target);
    }
    let differs = |row: &&Row| row.service != Some(row.archive.events);
    compared(name, target, reconciliation.rows.iter().filter(differs), reconciliation.rows.len())
}

fn compared<'a>(
    name: &str,
    target: &str,
    differing: impl Iterator<Item = &'a Row>,
    all: usize,
) -> Requirement {
    let differing: Vec<&str> = differing.map(|row| row.kind.as_str()).collect();
    match differing.first() {
        None => requirement(name, target, format!("{all} types agree"), Outcome::Met),
        Some(first) => {
            let measured =
                format!("{} of {all} types differ, the first is `{first}`", differing.len());
            requirement(name, target, measured, Outcome::Missed)
        }
    }
}

/// Returns a length of time as reports write it: `0.25 s`, `12.5 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    match whole {
        0..10 => format!("{:.2} s", time.as_secs_f64()),
        10..120 => format!("{:.1} s", time.as_secs_f64()),
        120..3_600 if whole.is_multiple_of(60) => format!("{} min", whole / 60),
        120..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ if whole.is_multiple_of(3_600) => format!("{} h", whole / 3_600),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests;
