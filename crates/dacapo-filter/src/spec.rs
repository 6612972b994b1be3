//! A selection as a person states it.

use bytes::Bytes;
use dacapo_event::{Sequence, StreamName, Timestamp};

/// What to select, as typed: plain values, nothing checked yet.
///
/// Values of one field are alternatives; the fields must all hold. An empty field asks nothing.
/// Headers differ: values for one name are alternatives, different names must all hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SelectionSpec {
    /// Events at this `time` or later.
    pub from: Option<Timestamp>,
    /// Events before this `time`.
    pub to: Option<Timestamp>,
    /// Values of `type`.
    pub types: Vec<String>,
    /// AMQP topic patterns for the routing key.
    pub routing_keys: Vec<String>,
    /// Names of exchanges; empty for the default exchange.
    pub exchanges: Vec<String>,
    /// Values of `key`.
    pub keys: Vec<String>,
    /// Values of `id`. `stream:sequence` means, in the stream of that name, the event at that
    /// place.
    pub ids: Vec<String>,
    /// Places in streams: the event there and no other.
    pub places: Vec<(StreamName, Sequence)>,
    /// Runs of streams: the events in one of them, and of no other stream.
    pub ranges: Vec<SequenceRange>,
    /// Bindings: the events that one of them would route.
    pub bindings: Vec<Binding>,
    /// Names and values of headers, compared as text.
    pub headers: Vec<(String, String)>,
    /// A CEL expression over an event, true for those wanted.
    pub where_: Option<String>,
    /// What to do about an event that `where_` fails on.
    pub where_errors: WhereErrors,
    /// A serialised `google.protobuf.FileDescriptorSet` that says how bodies are to be decoded;
    /// without one they are JSON.
    pub descriptor_set: Option<Bytes>,
    /// The message in `descriptor_set` that bodies are; may be left out if there is only one.
    pub message_type: Option<String>,
}

/// A run of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRange {
    /// The stream.
    pub stream: StreamName,
    /// Events after this sequence; 0 for all from the first.
    pub after: Sequence,
    /// Events up to and including this sequence.
    pub until: Sequence,
}

/// What a binding of a topic exchange takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// An AMQP topic pattern for the routing key; `#` for all.
    pub pattern: String,
}

/// What to do about an event that the where expression fails on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhereErrors {
    /// Stop and name the event.
    #[default]
    Stop,
    /// Leave the event out and count it.
    Skip,
}
