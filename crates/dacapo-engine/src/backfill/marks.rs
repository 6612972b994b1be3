//! The marks of a backfill in its holding queue: messages that keep their place among the events.

use dacapo_event::{DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr};

use super::{BackfillId, Past};

/// Header: which mark of which backfill a message is.
const MARK: ShortStr = ShortStr::from_static("x-dacapo-backfill-mark");

/// A moment in the holding queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Everything that can be in history lies before it.
    History,
    /// Everything before it is held only: the target is not bound yet.
    Open,
    /// Everything after it has come live.
    Close,
}

impl Mark {
    const ALL: [Mark; 3] = [Mark::History, Mark::Open, Mark::Close];

    fn as_str(self) -> &'static str {
        match self {
            Mark::History => "history",
            Mark::Open => "open",
            Mark::Close => "close",
        }
    }

    /// Returns what lies behind whoever has passed it.
    pub(super) fn past(self) -> Past {
        match self {
            Mark::History => Past::History,
            Mark::Open => Past::Opened,
            Mark::Close => Past::Closed,
        }
    }
}

fn text(id: &BackfillId, mark: Mark) -> String {
    format!("{id}/{}", mark.as_str())
}

/// Returns the mark to publish into a holding queue, through the default exchange.
pub fn mark_message(id: &BackfillId, mark: Mark, holding: ShortStr) -> Message {
    let mut headers = FieldTable::new();
    headers.insert(MARK, FieldValue::text(text(id, mark)));
    Message {
        routing_key: holding,
        properties: Properties {
            headers: Some(headers),
            delivery_mode: Some(DeliveryMode::Persistent),
            ..Properties::default()
        },
        ..Message::default()
    }
}

/// Returns the mark of this backfill that a message is, if it is one. No event is: one comes through
/// an exchange that can be bound.
pub(super) fn mark_of(id: &BackfillId, message: &Message) -> Option<Mark> {
    if !message.exchange.is_empty() || !message.body.is_empty() {
        return None;
    }
    let found = message.properties.header(MARK.as_str()?)?.as_text()?;
    Mark::ALL.into_iter().find(|mark| found == text(id, *mark))
}
