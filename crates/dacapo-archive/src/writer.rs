//! Extends one stream: put, commit, move the head.
//!
//! Invariants: a stream has one segment for each sequence; a writer that was overtaken
//! learns it before it may ack ([`ArchiveError::Fenced`]).

use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Clock, Digest, Sequence, StreamName};

use crate::chain::{self, ChainEntry, Head};
use crate::store::{ByteRange, ObjectKey, Put, Store};
use crate::{ArchiveError, Sealed, Segment, SegmentSummary, layout};

/// The one writer of a stream, as far as it knows.
#[derive(Debug)]
pub struct StreamWriter {
    store: Arc<dyn Store>,
    stream: StreamName,
    clock: Clock,
    tip: Option<Tip>,
}

#[derive(Debug, Clone)]
struct Tip {
    segment: ObjectKey,
    last: Sequence,
    digest: Digest,
    source_mark: Option<Digest>,
}

impl StreamWriter {
    /// Finds the end of the stream, and first finishes what a killed writer left: adopts a segment
    /// that it put and did not commit, and moves a head that it did not move.
    ///
    /// # Errors
    /// The store fails, or the end of the stream is damaged.
    pub async fn open(
        store: Arc<dyn Store>,
        stream: StreamName,
        clock: Clock,
    ) -> Result<Self, ArchiveError> {
        let head = chain::head(&*store, &stream).await?;
        let known = head.as_ref().map_or(0, |head| head.last);
        let tip = head.map(|head| Tip {
            segment: head.segment,
            last: head.last,
            digest: head.digest,
            source_mark: head.source_mark,
        });
        let mut writer = StreamWriter { store, stream, clock, tip };
        let mut leftovers = None;
        let mut followed = None;
        loop {
            let next = writer.next();
            if let Some(entry) = chain::entry(&*writer.store, &writer.stream, next).await? {
                writer.follow(&entry);
                followed = Some(entry);
                continue;
            }
            // Of those before it nothing is needed: they may have been merged and deleted.
            if let Some(entry) = followed.take() {
                writer.read_end(&entry).await?;
            }
            // Listed at most once, and only after the chain is known to end here.
            let leftovers = match &mut leftovers {
                Some(known) => known,
                none => none.insert(
                    chain::list_all(&*writer.store, &layout::segments_of(&writer.stream), None)
                        .await?,
                ),
            };
            let mut adopted = false;
            for object in leftovers.iter() {
                if layout::parse_segment(&object.key).is_none_or(|(_, first)| first != next) {
                    continue;
                }
                let segment = writer.open_segment(&object.key, object.size).await?;
                let summary = segment.summary();
                if summary.previous == writer.tip.as_ref().map(|tip| tip.digest) {
                    tracing::info!(segment = %object.key, "adopting a segment that a killed writer left");
                    writer.commit(summary).await?;
                    writer.extend_to(summary);
                    adopted = true;
                    break;
                }
            }
            if !adopted {
                break;
            }
        }
        if writer.tip.as_ref().is_some_and(|tip| tip.last > known) {
            writer.move_head().await?;
        }
        Ok(writer)
    }

    /// Returns the sequence that the next segment begins with.
    pub fn next(&self) -> Sequence {
        self.tip.as_ref().map_or(1, |tip| tip.last + 1)
    }

    /// Returns the stream's name.
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// Returns the digest of the stream's last segment.
    pub fn tip(&self) -> Option<Digest> {
        self.tip.as_ref().map(|tip| tip.digest)
    }

    /// Returns the digest of an import's input up to the stream's end.
    pub fn source_mark(&self) -> Option<Digest> {
        self.tip.as_ref().and_then(|tip| tip.source_mark)
    }

    /// Makes a segment durable and part of the stream; only then may its events be acked.
    ///
    /// Not cancel-safe: after a dropped or failed call, open a new writer. A segment that it may
    /// have left is then adopted, and its events are archived twice at the most.
    ///
    /// # Errors
    /// `Fenced` if another writer has extended the stream; the store fails.
    pub async fn append(&mut self, sealed: &Sealed) -> Result<(), ArchiveError> {
        let summary = &sealed.summary;
        if summary.first != self.next() || summary.previous != self.tip() {
            return Err(self.fenced(summary.first));
        }
        self.put_once(&summary.key, sealed.bytes.clone(), summary.first).await?;
        self.commit(summary).await?;
        self.extend_to(summary);
        self.move_head().await
    }

    async fn commit(&self, summary: &SegmentSummary) -> Result<(), ArchiveError> {
        let key = layout::chain_entry(&self.stream, summary.first);
        self.put_once(&key, ChainEntry::of(summary).to_bytes(), summary.first).await
    }

    /// Puts an object, or finds that this very object is there already, from an attempt before.
    async fn put_once(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        sequence: Sequence,
    ) -> Result<(), ArchiveError> {
        match self.store.put_new(key, bytes.clone()).await? {
            Put::Created => Ok(()),
            Put::Exists if self.store.get(key, ByteRange::Full).await? == bytes => Ok(()),
            Put::Exists => Err(self.fenced(sequence)),
        }
    }

    async fn move_head(&self) -> Result<(), ArchiveError> {
        let tip = self.tip.as_ref().expect("a head is moved after a segment was added");
        let head = Head {
            stream: self.stream.clone(),
            last: tip.last,
            digest: tip.digest,
            segment: tip.segment.clone(),
            moved_at: (self.clock)(),
            source_mark: tip.source_mark,
        };
        Ok(self.store.replace(&layout::head(&self.stream), head.to_bytes()).await?)
    }

    /// Goes on along the chain, without looking at the segment.
    fn follow(&mut self, entry: &ChainEntry) {
        self.tip = Some(Tip {
            segment: entry.segment.clone(),
            last: entry.last,
            digest: entry.digest,
            source_mark: None,
        });
    }

    /// Reads what only the last segment tells.
    async fn read_end(&mut self, entry: &ChainEntry) -> Result<(), ArchiveError> {
        let segment = self.open_segment(&entry.segment, entry.size).await?;
        if ChainEntry::of(segment.summary()) != *entry {
            let problem = "its footer and its chain entry contradict each other";
            return Err(ArchiveError::damaged(&entry.segment, problem));
        }
        self.extend_to(segment.summary());
        Ok(())
    }

    fn extend_to(&mut self, summary: &SegmentSummary) {
        self.tip = Some(Tip {
            segment: summary.key.clone(),
            last: summary.last,
            digest: summary.digest,
            source_mark: summary.source_mark,
        });
    }

    async fn open_segment(&self, key: &ObjectKey, size: u64) -> Result<Segment, ArchiveError> {
        Segment::open(Arc::clone(&self.store), key, Some(size)).await
    }

    fn fenced(&self, sequence: Sequence) -> ArchiveError {
        ArchiveError::Fenced { stream: self.stream.to_string(), sequence }
    }
}

/// Proves that the store keeps write-once puts apart, with a probe object that is then deleted.
///
/// # Errors
/// `NotWriteOnce` if a second put of the same key succeeded or changed the object.
pub async fn probe_write_once(store: &dyn Store, clock: Clock) -> Result<(), ArchiveError> {
    // Two writers that start at once must not take each other's probe for a second put.
    let unique = format!("{}-{}", clock().as_micros(), std::process::id());
    let key: ObjectKey = format!("probe/{unique}").parse().expect("digits are a key");
    let (first, second) = (Bytes::from(unique.clone()), Bytes::from_static(b"second"));
    store.put_new(&key, first.clone()).await?;
    let put = store.put_new(&key, second).await?;
    let kept = store.get(&key, ByteRange::Full).await?;
    store.delete(&key).await?;
    if put == Put::Exists && kept == first {
        Ok(())
    } else {
        Err(ArchiveError::NotWriteOnce { location: store.location() })
    }
}

#[cfg(test)]
mod tests;
