//! What must be true after a fault, however it struck: plain functions of what was published, what
//! the archive holds, what the target got and what the receipt says. Each returns what is wrong,
//! and nothing if nothing is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// How many offending ids a finding names; the rest is counted.
const NAMED_MAX: usize = 5;

/// An event of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its stream.
    pub stream: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// Its id.
    pub id: String,
}

/// A message that the target got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The event id in its marking, empty if it has none.
    pub event: String,
    /// The id that the publisher gave it.
    pub message: String,
}

/// An object under `segments/`, by its name and a digest of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// The same for the same bytes.
    pub digest: String,
}

/// What was done to an archive.
#[derive(Debug, Clone, Copy)]
pub struct Archived<'a> {
    /// Ids whose publishing the broker has confirmed.
    pub published: &'a [String],
    /// What the archive holds, in order of streams and sequences.
    pub rows: &'a [Row],
    /// How many of them are repeats that an earlier look has allowed.
    pub repeats_before: u64,
    /// How often the archiver was interrupted since then.
    pub interruptions: u64,
    /// How many deliveries it holds at the most.
    pub window: u64,
}

/// Returns how many rows hold an event that an earlier one holds.
pub fn repeats(rows: &[Row]) -> u64 {
    let held: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    (rows.len() - held.len()) as u64
}

/// Returns what is wrong with what an archive holds.
pub fn check_archive(archived: &Archived<'_>) -> Vec<String> {
    let mut findings = Vec::new();
    let published: BTreeSet<&str> = archived.published.iter().map(String::as_str).collect();
    let held: BTreeSet<&str> = archived.rows.iter().map(|row| row.id.as_str()).collect();
    find(&mut findings, "lost: published and not in the archive", published.difference(&held));
    find(&mut findings, "in the archive and never published", held.difference(&published));
    let repeats = repeats(archived.rows).saturating_sub(archived.repeats_before);
    let most = archived.interruptions * archived.window;
    if repeats > most {
        let interruptions = archived.interruptions;
        findings.push(format!(
            "{repeats} new repeats in the archive, more than the {most} of {interruptions} \
             interruptions"
        ));
    }
    let mut next = BTreeMap::new();
    for row in archived.rows {
        let expected = next.entry(row.stream.as_str()).or_insert(1);
        if row.sequence != *expected {
            let Row { stream, sequence, .. } = row;
            findings.push(format!("sequence {sequence} of `{stream}` where {expected} was due"));
        }
        *expected = row.sequence + 1;
    }
    findings
}

/// Returns what is wrong with the objects of an archive: a segment that was put twice.
pub fn check_objects(objects: &[Object]) -> Vec<String> {
    let mut by_digest: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for object in objects {
        by_digest.entry(&object.digest).or_default().push(&object.key);
    }
    let twice = by_digest.into_values().filter(|keys| keys.len() > 1);
    twice.map(|keys| format!("one segment put under several names: {}", keys.join(", "))).collect()
}

/// What a replay was asked and did.
#[derive(Debug, Clone, Copy)]
pub struct Replayed<'a> {
    /// The selected events, in order of streams and sequences.
    pub rows: &'a [Row],
    /// What the target got, in order of arrival.
    pub arrived: &'a [Arrival],
    /// Its last receipt.
    pub receipt: &'a Value,
    /// Its window.
    pub window: u64,
    /// How often it was interrupted; absent where it interrupts itself (after a nack), and only its
    /// own count of possible repeats bounds them.
    pub interruptions: Option<u64>,
}

/// Returns what is wrong with a replay that has completed.
pub fn check_replay(replayed: &Replayed<'_>) -> Vec<String> {
    let mut findings = check_receipt(replayed);
    let selected: BTreeSet<&str> = replayed.rows.iter().map(|row| row.id.as_str()).collect();
    let got: BTreeSet<&str> = replayed.arrived.iter().map(|one| one.event.as_str()).collect();
    find(&mut findings, "lost: selected and never at the target", selected.difference(&got));
    find(&mut findings, "at the target and not selected", got.difference(&selected));
    let unlike = replayed.arrived.iter().filter(|one| one.event != one.message);
    find(&mut findings, "marked with another event's id", unlike.map(|one| &one.message));

    let count = |name: &str| replayed.receipt[name].as_u64().unwrap_or(0);
    let arrived = replayed.arrived.len() as u64;
    if count("confirmed") > arrived {
        let confirmed = count("confirmed");
        findings.push(format!("{confirmed} confirmed, and the target got {arrived}"));
    }
    let repeats = arrived.saturating_sub(replayed.rows.len() as u64);
    if repeats > count("possible_repeats") {
        let told = count("possible_repeats");
        findings.push(format!("{repeats} repeats, and the receipt says at most {told}"));
    }
    if let Some(interruptions) = replayed.interruptions {
        let (window, told) = (replayed.window, count("possible_repeats"));
        for (what, many) in [("repeats", repeats), ("possible repeats in the receipt", told)] {
            if many > interruptions * window {
                findings.push(format!("{many} {what}, {interruptions} interruptions of {window}"));
            }
        }
    }
    findings.extend(check_order(replayed.rows, replayed.arrived));
    findings
}

/// Returns what is wrong with a receipt of a completed replay.
fn check_receipt(replayed: &Replayed<'_>) -> Vec<String> {
    let receipt = replayed.receipt;
    let mut findings = check_balance(receipt);
    if receipt["state"] != "completed" {
        findings.push(format!("the replay is {} at its end", receipt["state"]));
    }
    let selected = replayed.rows.len() as u64;
    for (name, due) in [("selected", selected), ("confirmed", selected), ("rejected", 0)] {
        if receipt[name].as_u64() != Some(due) {
            findings.push(format!("the receipt says {} {name}, not {due}", receipt[name]));
        }
    }
    findings
}

/// Returns what is wrong with the sums of a receipt, at any time.
pub fn check_balance(receipt: &Value) -> Vec<String> {
    let count = |name: &str| receipt[name].as_u64();
    let sum = || Some(count("confirmed")? + count("rejected")? + count("remaining")?);
    match (count("selected"), sum()) {
        (Some(selected), Some(sum)) if selected == sum => Vec::new(),
        _ => vec![format!("the receipt does not balance: {receipt}")],
    }
}

/// Returns what is wrong with a checkpoint: an event up to it that the target has not got, or
/// another count than that of the events up to it.
pub fn check_checkpoint(status: &Value, rows: &[Row], arrived: &[Arrival]) -> Vec<String> {
    let upto = |row: &&Row| {
        let position = status["positions"][&row.stream].as_u64();
        position.is_some_and(|position| row.sequence <= position)
    };
    let got: BTreeSet<&str> = arrived.iter().map(|one| one.event.as_str()).collect();
    let passed: Vec<&Row> = rows.iter().filter(upto).collect();
    let mut findings = Vec::new();
    let missing = passed.iter().filter(|row| !got.contains(row.id.as_str()));
    find(&mut findings, "up to a checkpoint and not at the target", missing.map(|row| &row.id));
    if status["confirmed"].as_u64() != Some(passed.len() as u64) {
        let (confirmed, passed) = (&status["confirmed"], passed.len());
        findings.push(format!("a checkpoint says {confirmed} confirmed, and is after {passed}"));
    }
    findings
}

/// Returns what is wrong with the order within each stream, judged by the last delivery of each
/// event.
fn check_order(rows: &[Row], arrived: &[Arrival]) -> Vec<String> {
    let last: BTreeMap<&str, usize> =
        arrived.iter().enumerate().map(|(place, one)| (one.event.as_str(), place)).collect();
    let mut findings = Vec::new();
    let mut streams: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for row in rows {
        // An event that is in the stream twice is delivered twice; its last place counts.
        streams.entry(&row.stream).or_default().insert(&row.id, row.sequence);
    }
    for (stream, ids) in streams {
        let mut ids: Vec<(u64, &str)> = ids.into_iter().map(|(id, at)| (at, id)).collect();
        ids.sort_unstable();
        let places: Vec<_> = ids.iter().filter_map(|(_, id)| Some((*last.get(id)?, *id))).collect();
        let wrong = places.windows(2).filter(|pair| pair[0].0 > pair[1].0).map(|pair| pair[1].1);
        find(&mut findings, &format!("out of order in `{stream}`"), wrong);
    }
    findings
}

fn find(findings: &mut Vec<String>, what: &str, ids: impl IntoIterator<Item = impl AsRef<str>>) {
    let ids: Vec<String> = ids.into_iter().map(|id| id.as_ref().to_owned()).collect();
    if !ids.is_empty() {
        let named = ids[..ids.len().min(NAMED_MAX)].join(", ");
        findings.push(format!("{what}: {} ({named})", ids.len()));
    }
}

#[cfg(test)]
mod tests;
