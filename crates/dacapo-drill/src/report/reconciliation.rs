//! What the archive gave, what the target got and what the service has, by type, side by side.

use std::collections::{BTreeMap, BTreeSet};

use dacapo_event::Digest;
use serde::{Deserialize, Serialize};

use super::forms::as_text;
use crate::tally::Tallies;

/// Archive, target and service side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconciliation {
    /// Who says what the target got.
    pub target: TargetSeen,
    /// Whether the service was asked.
    pub service: ServiceSeen,
    /// Exact repeats that the archive gave, and that the target got.
    pub repeats: [u64; 2],
    /// One row a type.
    pub rows: Vec<Row>,
}

/// Who says what the target got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetSeen {
    /// A queue beside the target queue, which got what that got, and was read.
    Witness,
    /// The broker's confirms in the receipt, of all types together.
    Receipt,
}

/// Whether the service said what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceSeen {
    /// It did.
    Asked,
    /// The description does not ask it.
    NotAsked,
    /// It was asked and did not answer.
    Failed,
}

/// One type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the archive gave.
    pub archive: Counted,
    /// What the target got, if that is known by type.
    pub target: Option<Counted>,
    /// How many the service says it has.
    pub service: Option<u64>,
}

/// A count and a digest that no order changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// How many events.
    pub events: u64,
    /// See [`crate::tally::Tally::digest`].
    #[serde(with = "as_text")]
    pub digest: Digest,
}

impl Reconciliation {
    /// Sets what was counted side by side; without a witness nothing is known of the target by type.
    pub fn new(
        archive: &Tallies,
        target: Option<&Tallies>,
        service: ServiceSeen,
        counts: &BTreeMap<String, u64>,
    ) -> Self {
        let known = |tallies: &Tallies, kind: &str| {
            let tally = tallies.by_type().get(kind).copied().unwrap_or_default();
            Counted { events: tally.events, digest: tally.digest() }
        };
        let kinds: BTreeSet<&String> = archive
            .by_type()
            .keys()
            .chain(target.iter().flat_map(|target| target.by_type().keys()))
            .chain(counts.keys())
            .collect();
        let row = |kind: &String| Row {
            kind: kind.clone(),
            archive: known(archive, kind),
            target: target.map(|target| known(target, kind)),
            service: (service == ServiceSeen::Asked)
                .then(|| counts.get(kind).copied().unwrap_or_default()),
        };
        Reconciliation {
            target: if target.is_some() { TargetSeen::Witness } else { TargetSeen::Receipt },
            service,
            repeats: [archive.repeats(), target.map_or(0, Tallies::repeats)],
            rows: kinds.into_iter().map(row).collect(),
        }
    }
}
