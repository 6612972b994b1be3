//! The message of an event for a file target: its JSON line, not marked as a replay.

use dacapo_event::{Message, ndjson};

use crate::merge::Selected;

/// Returns a message whose body is the event's JSON form, without a newline.
pub fn json_line(selected: &Selected) -> Message {
    let line = ndjson::event_to_json(&selected.stream, &selected.event).to_string();
    Message { body: line.into(), ..Message::default() }
}
