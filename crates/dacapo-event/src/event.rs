//! An archived event: a message, its attributes, and its place in a stream.

use crate::{Message, StreamName, Timestamp};

/// The place of an event in its stream, from 1; contiguous within a stream.
pub type Sequence = u64;

/// One message as it was on the bus, with its place in the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the stream, from 1.
    pub sequence: Sequence,
    /// When the archiver took it off the bus (an import: when it was read).
    pub archived_at: Timestamp,
    /// When it happened.
    pub time: Timestamp,
    /// Its id; `stream:sequence` if the platform gave it none.
    pub id: String,
    /// What happened; empty if nothing says so.
    pub kind: String,
    /// Which entity it happened to.
    pub key: Option<String>,
    /// The message.
    pub message: Message,
}

impl Event {
    /// Returns the id of an event that the platform gave none: `stream:sequence`.
    pub fn made_up_id(stream: &StreamName, sequence: Sequence) -> String {
        format!("{stream}:{sequence}")
    }

    /// Returns roughly how many bytes the event takes in memory.
    pub fn weight(&self) -> usize {
        /// Fixed fields, allocation overhead and a typical handful of short properties.
        const FIXED_BYTES: usize = 512;
        let headers = self.message.properties.headers.as_ref().map_or(0, |table| table.len() * 96);
        FIXED_BYTES
            + headers
            + self.message.body.len()
            + self.id.len()
            + self.kind.len()
            + self.key.as_ref().map_or(0, String::len)
    }
}
