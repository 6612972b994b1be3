//! What a backfill did, and what may have come twice or out of order at the most.

use serde_json::{Value, json};

use super::{BackfillId, Description, Stage, Standing};

/// The outcome of a backfill over all its runs so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt<'a> {
    /// The backfill.
    pub id: &'a BackfillId,
    /// What was asked of it.
    pub description: &'a Description,
    /// How it stands.
    pub standing: &'a Standing,
}

impl Receipt<'_> {
    /// Returns its word for how the backfill stands.
    pub fn state(&self) -> &'static str {
        match self.standing.stage {
            Stage::Completed => "completed",
            Stage::Cancelled => "cancelled",
            _ => "interrupted",
        }
    }

    /// Returns the receipt as one JSON object.
    pub fn to_json(&self) -> Value {
        let Receipt { id, description, standing } = self;
        let counts = &standing.counts;
        let bindings = description.bindings.iter();
        let overridden = description.wishes.overrides.iter().map(|check| check.as_str());
        json!({
            "backfill": id.as_str(),
            "state": self.state(),
            "stage": standing.stage.as_str(),
            "phase": standing.stage.phase(),
            "queue": description.queue(),
            "bindings": bindings
                .map(|bound| json!({ "exchange": bound.exchange, "key": bound.key }))
                .collect::<Vec<_>>(),
            "archiver_queues": description.archiver_queues,
            "began_at": standing.began_at.map(|at| at.to_string()),
            "runs": standing.runs,
            "history": {
                "rounds": standing.rounds,
                "played_to": standing.played_to.map(|at| at.to_string()),
                "round": standing.round.as_ref().map(|round| round.replay.as_str()),
                "events": counts.history.events,
                "bytes": counts.history.bytes,
                "possible_repeats": counts.history.possible_repeats,
                "reordered": counts.history.reordered,
            },
            "between_barriers": {
                "events": counts.between_barriers,
                "not_remembered": counts.not_remembered,
            },
            "held": {
                "forwarded": counts.forwarded,
                "bytes": counts.forwarded_bytes,
                "dropped_as_repeats": counts.dropped,
                "replays": counts.replays,
                "passed_again": counts.passed_again,
            },
            "switch": {
                "live_as_well": counts.live_as_well,
                "reordered": counts.reordered,
                "came_live": counts.came_live,
            },
            "possible_repeats": counts.possible_repeats(),
            "possibly_reordered": counts.possibly_reordered(),
            "unchecked": description.unchecked,
            "overrides": overridden.collect::<Vec<_>>(),
        })
    }
}
