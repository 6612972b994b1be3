//! The lines of a reject file, as they are written.

use serde::{Deserialize, Serialize};

use super::{Rejected, shortened};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectedJson {
    id: String,
    time: String,
    #[serde(rename = "type")]
    event_type: String,
    exchange: String,
    routing_key: String,
    kind: String,
    reason: String,
    replay: String,
    archive: String,
    stream: String,
    sequence: u64,
    body_digest: String,
    /// CRC-32 of the line without this member, 8 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<String>,
}

/// Returns the line of an event, with its newline.
pub(super) fn line(rejected: &Rejected) -> String {
    let mut json = RejectedJson {
        id: shortened(&rejected.id),
        time: rejected.time.to_string(),
        event_type: shortened(&rejected.event_type),
        exchange: shortened(&rejected.exchange),
        routing_key: shortened(&rejected.routing_key),
        kind: rejected.kind.as_str().to_owned(),
        reason: shortened(&rejected.reason),
        replay: rejected.replay.clone(),
        archive: rejected.archive.clone(),
        stream: rejected.stream.to_string(),
        sequence: rejected.sequence,
        body_digest: rejected.body_digest.to_string(),
        check: None,
    };
    json.check = Some(check_of(&json));
    text(&json) + "\n"
}

/// Returns the event of a line, which must end with its newline, or what is wrong with it.
///
/// Members may be in any order and spaced in any way: what `jq` and `grep` picked out is as good.
pub(super) fn parse(line: &[u8]) -> Result<Rejected, String> {
    let json = line.strip_suffix(b"\n").ok_or("it does not end, or is too long")?;
    let mut json: RejectedJson =
        serde_json::from_slice(json).map_err(|error| format!("it is no reject: {error}"))?;
    if json.check.take() != Some(check_of(&json)) {
        return Err("it was changed (its checksum differs)".to_owned());
    }
    let wrong = |error: dacapo_event::ParseError| error.to_string();
    Ok(Rejected {
        stream: json.stream.parse().map_err(wrong)?,
        time: json.time.parse().map_err(wrong)?,
        body_digest: json.body_digest.parse().map_err(wrong)?,
        kind: json.kind.parse().map_err(|_| format!("`{}` is no kind of reject", json.kind))?,
        replay: json.replay,
        archive: json.archive,
        sequence: json.sequence,
        id: json.id,
        event_type: json.event_type,
        exchange: json.exchange,
        routing_key: json.routing_key,
        reason: json.reason,
    })
}

fn check_of(json: &RejectedJson) -> String {
    format!("{:08x}", crc32fast::hash(text(json).as_bytes()))
}

fn text(json: &RejectedJson) -> String {
    serde_json::to_string(json).expect("text and numbers become JSON")
}
