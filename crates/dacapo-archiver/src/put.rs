//! Makes a segment durable in spite of a store that fails now and then.

use std::sync::Arc;

use dacapo_archive::barrier::{self, Reached};
use dacapo_archive::store::{Store, StoreError};
use dacapo_archive::{ArchiveError, Sealed, StreamWriter};
use dacapo_event::barrier::BarrierId;
use dacapo_event::{Clock, Sequence, StreamName};

use crate::backoff::Backoff;
use crate::metrics::Metrics;

/// Where a stream is written.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) stream: StreamName,
    pub(crate) clock: Clock,
}

impl Place {
    pub(crate) async fn open(&self) -> Result<StreamWriter, ArchiveError> {
        StreamWriter::open(Arc::clone(&self.store), self.stream.clone(), self.clock).await
    }

    /// Appends the segment once. `writer` is absent after a failed attempt: then the stream's end
    /// is looked up again, and if it is this very segment, the attempt before did it.
    ///
    /// # Errors
    /// As [`StreamWriter::append`].
    pub(crate) async fn append(
        &self,
        writer: Option<StreamWriter>,
        sealed: &Sealed,
    ) -> Result<StreamWriter, ArchiveError> {
        let mut writer = match writer {
            Some(writer) => writer,
            None => {
                let writer = self.open().await?;
                if writer.tip() == Some(sealed.summary.digest) {
                    return Ok(writer);
                }
                writer
            }
        };
        writer.append(sealed).await?;
        Ok(writer)
    }

    /// Finds the end of the stream, however long the store is down.
    ///
    /// # Errors
    /// What waiting does not mend ([`waits_out`]).
    pub(crate) async fn open_patiently(
        &self,
        metrics: &Metrics,
    ) -> Result<StreamWriter, ArchiveError> {
        let mut backoff = Backoff::new();
        loop {
            match self.open().await {
                Ok(writer) => {
                    metrics.store_answers();
                    return Ok(writer);
                }
                Err(error) if waits_out(&error) => metrics.store_fails(&error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Appends the segment, however long the store is down.
    ///
    /// # Errors
    /// `Fenced`, and what waiting does not mend ([`waits_out`]).
    pub(crate) async fn append_patiently(
        &self,
        writer: StreamWriter,
        sealed: &Sealed,
        metrics: &Metrics,
    ) -> Result<StreamWriter, ArchiveError> {
        let (mut writer, mut backoff) = (Some(writer), Backoff::new());
        loop {
            match self.append(writer.take(), sealed).await {
                Ok(writer) => {
                    metrics.store_answers();
                    return Ok(writer);
                }
                Err(error) if waits_out(&error) => {
                    metrics.put_failed();
                    metrics.store_fails(&error);
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Puts the answer to a barrier, however long the store is down.
    ///
    /// # Errors
    /// What waiting does not mend ([`waits_out`]).
    pub(crate) async fn answer_patiently(
        &self,
        barrier: &BarrierId,
        sequence: Sequence,
        metrics: &Metrics,
    ) -> Result<(), ArchiveError> {
        let mut backoff = Backoff::new();
        loop {
            let (stream, answered_at) = (self.stream.clone(), (self.clock)());
            let reached = Reached { stream, sequence, answered_at };
            match barrier::answer(&*self.store, barrier, &reached).await {
                Ok(()) => {
                    metrics.store_answers();
                    return Ok(());
                }
                Err(error) if waits_out(&error) => metrics.store_fails(&error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }
}

/// Returns whether the archiver waits for this to pass.
///
/// Refused credentials and a missing bucket are waited for too: an operator mends them, and until
/// then the events are safest in the queue. An object that should be there and is not is damage.
pub(crate) fn waits_out(error: &ArchiveError) -> bool {
    match error {
        ArchiveError::Store(error) => !matches!(error, StoreError::NotFound { .. }),
        ArchiveError::Damaged { .. }
        | ArchiveError::NewerFormat { .. }
        | ArchiveError::Fenced { .. }
        | ArchiveError::NotWriteOnce { .. }
        | ArchiveError::Unwritable { .. } => false,
    }
}
