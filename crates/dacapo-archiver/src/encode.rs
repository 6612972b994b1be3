//! The CPU work of a segment, done on a blocking thread: attributes, encoding, compression,
//! digest.

use std::sync::Arc;

use dacapo_archive::{ArchiveError, Sealed, SegmentBuilder};
use dacapo_event::attributes::AttributeRules;
use dacapo_event::{Digest, Message, Sequence, StreamName, Timestamp};
use tokio::task::JoinHandle;

/// A message as it was taken off the bus.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) message: Message,
    pub(crate) archived_at: Timestamp,
}

/// A segment that is being filled.
pub(crate) struct Draft {
    builder: Box<SegmentBuilder>,
    /// When its first event was taken: the hour that it is filed under.
    partition: Timestamp,
    newest: Timestamp,
}

/// A segment that only has to be put.
pub(crate) struct Finished {
    pub(crate) sealed: Box<Sealed>,
    /// The newest of its events by `time`; a time that is in the future when the event is taken
    /// counts as that moment.
    pub(crate) newest: Timestamp,
}

/// Events to add to a segment.
pub(crate) struct Encode {
    pub(crate) stream: StreamName,
    pub(crate) rules: Arc<AttributeRules>,
    pub(crate) draft: Option<Draft>,
    /// The sequence of the segment's first event, if there is no draft yet.
    pub(crate) first: Sequence,
    pub(crate) batch: Vec<Taken>,
}

/// What a blocking thread has made.
pub(crate) enum Encoded {
    Draft(Draft),
    Finished(Finished),
}

impl Draft {
    /// Returns about how many bytes the object has so far; more than any policy allows if it is full
    /// for another reason.
    pub(crate) fn bytes(&self) -> usize {
        match self.builder.is_full() {
            true => usize::MAX,
            false => self.builder.bytes(),
        }
    }
}

impl Encode {
    /// Encodes the events on a blocking thread.
    pub(crate) fn start(self) -> JoinHandle<Result<Encoded, ArchiveError>> {
        tokio::task::spawn_blocking(move || {
            Ok(Encoded::Draft(self.add()?.expect("a batch that is sent has events")))
        })
    }

    /// Encodes the events and seals the segment on a blocking thread.
    pub(crate) fn start_sealing(
        self,
        previous: Option<Digest>,
    ) -> JoinHandle<Result<Encoded, ArchiveError>> {
        tokio::task::spawn_blocking(move || {
            let draft = self.add()?.expect("a segment that is sealed has events");
            let sealed = Box::new(draft.builder.seal(previous, draft.partition, None)?);
            Ok(Encoded::Finished(Finished { sealed, newest: draft.newest }))
        })
    }

    /// Adds the batch to the draft; returns nothing only if there was neither.
    fn add(self) -> Result<Option<Draft>, ArchiveError> {
        let mut draft = self.draft;
        for Taken { message, archived_at } in self.batch {
            let draft = draft.get_or_insert_with(|| Draft {
                builder: Box::new(SegmentBuilder::new(self.stream.clone(), self.first)),
                partition: archived_at,
                newest: Timestamp::MIN,
            });
            let sequence = draft.builder.next();
            let event = self.rules.event(message, &self.stream, sequence, archived_at);
            draft.newest = draft.newest.max(event.time.min(archived_at));
            draft.builder.push(event)?;
        }
        Ok(draft)
    }
}
