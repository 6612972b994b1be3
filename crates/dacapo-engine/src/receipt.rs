//! What a replay did, exactly.

use serde_json::{Value, json};

use crate::blast::Approval;
use crate::journal::{Counts, Phase, Standing};
use crate::plan::Plan;
use crate::preflight::Check;
use crate::state::{ReplayId, State};

/// The outcome of a replay over all its runs so far.
///
/// It balances: `selected = confirmed + rejected + remaining`.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// The replay.
    pub id: ReplayId,
    /// How it stands.
    pub phase: Phase,
    /// How many events are selected.
    pub selected: u64,
    /// Whether `selected` and `remaining` are exact; they are once the replay has completed, or if
    /// the plan was.
    pub selected_exact: bool,
    /// Events that the target refused: those passed over, and the one that the replay stands at.
    pub rejected: u64,
    /// The file in which these are recorded, if there are any.
    pub rejects: Option<String>,
    /// The counts.
    pub counts: Counts,
    /// What a full scan of the archive would have read.
    pub bytes_full_scan: u64,
    /// The hash of the plan.
    pub plan: String,
    /// Where the events went.
    pub target: String,
    /// Checks of the target that found something, and that the operator overrode.
    pub overridden: Vec<String>,
    /// That its operator approved of more than one queue, if that was asked.
    pub approval: Option<Approval>,
    /// The event that was refused and why, if one was.
    pub refusal: Option<String>,
}

impl Receipt {
    /// Returns the receipt of a plan that has come so far.
    pub fn new(state: &State, id: ReplayId, plan: &Plan, standing: &Standing) -> Self {
        let (phase, counts, rejected) = (standing.phase, standing.counts, standing.rejected());
        let done = counts.confirmed.saturating_add(rejected);
        let (selected, selected_exact) = match phase {
            Phase::Completed => (done, true),
            // An estimate cannot be less than what was there.
            _ => (plan.events.max(done), plan.exact && counts.where_skipped == 0),
        };
        let rejects = state.rejects_path(&id).display().to_string();
        Receipt {
            id,
            phase,
            selected,
            selected_exact,
            rejected,
            rejects: (rejected > 0).then_some(rejects),
            counts,
            bytes_full_scan: plan.bytes_full_scan,
            plan: plan.hash().to_string(),
            target: plan.request.target.to_string(),
            overridden: plan.preflight.overridden().iter().map(Check::to_string).collect(),
            approval: plan.blast_radius.as_ref().and_then(|blast| blast.approval.clone()),
            refusal: None,
        }
    }

    /// Returns how many events are selected and neither confirmed nor rejected.
    pub fn remaining(&self) -> u64 {
        self.selected.saturating_sub(self.counts.confirmed).saturating_sub(self.rejected)
    }

    /// Returns the receipt as one JSON object.
    pub fn to_json(&self) -> Value {
        let counts = &self.counts;
        json!({
            "replay": self.id.as_str(),
            "state": self.phase.as_str(),
            "selected": self.selected,
            "selected_exact": self.selected_exact,
            "confirmed": counts.confirmed,
            "rejected": self.rejected,
            "rejects": self.rejects,
            "remaining": self.remaining(),
            "possible_repeats": counts.possible_repeats,
            "reordered": counts.reordered,
            "where_skipped": counts.where_skipped,
            "bytes": counts.bytes,
            "bytes_read": counts.bytes_read,
            "bytes_full_scan": self.bytes_full_scan,
            "requests": counts.requests,
            "seconds": counts.seconds,
            "runs": counts.runs,
            "target": self.target,
            "plan": self.plan,
            "overridden": self.overridden,
            "approval": self.approval.as_ref().map(|approval| {
                json!({ "hash": approval.hash.to_string(), "by": approval.by.as_str() })
            }),
            "refusal": self.refusal,
        })
    }
}
