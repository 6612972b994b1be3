//! Reads the selected events of one segment, in order, touching as little as it can.
//!
//! Row groups are pruned by statistics and bloom filters, then pages, then rows; bodies
//! are fetched only for rows that pass everything that needs no body.

use std::sync::Arc;

use dacapo_archive::store::{ObjectKey, Store};
use dacapo_archive::{
    Bloom, ColumnSet, PageBounds, PrunedBy, RowGroupFacts, Rows, Segment, TextRange,
};
use dacapo_event::{Digest, Event, Sequence};
use dacapo_filter::{Bounds, Place, Selection, TextFacts, Verdict, WhereErrors};

use crate::EngineError;

/// A segment to read, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentToRead {
    /// Where it is.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest, as the index or a plan has it.
    pub digest: Digest,
}

/// Reads one segment, batch by batch.
pub struct Scan {
    segment: Segment,
    selection: Arc<Selection>,
    after: Sequence,
    batch_bytes: u64,
    group: usize,
    pending: std::vec::IntoIter<(usize, Rows)>,
    /// Events that the expression failed on and that were left out.
    pub where_skipped: u64,
}

impl Scan {
    /// Opens a segment: one request for its footer.
    ///
    /// Gives events whose sequence is greater than `after`. `batch_bytes` bounds what one batch
    /// decodes to, but for a single page.
    ///
    /// # Errors
    /// `ArchiveChanged` if the segment is gone or another than expected.
    pub async fn open(
        store: Arc<dyn Store>,
        wanted: &SegmentToRead,
        selection: Arc<Selection>,
        after: Sequence,
        batch_bytes: u64,
    ) -> Result<Self, EngineError> {
        let segment = open_expected(store, wanted).await?;
        let pending = Vec::new().into_iter();
        Ok(Scan { segment, selection, after, batch_bytes, group: 0, pending, where_skipped: 0 })
    }

    /// Returns the next selected events in order of sequence, never an empty batch; nothing at the
    /// end.
    ///
    /// Not cancel-safe: a dropped call loses its batch.
    ///
    /// # Errors
    /// The archive fails, or the expression fails on an event and errors are not skipped.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, EngineError> {
        loop {
            if let Some((group, rows)) = self.pending.next() {
                let events = self.segment.read(group, &rows, ColumnSet::ALL).await?;
                let events = self.keep_matching(events)?;
                if !events.is_empty() {
                    return Ok(Some(events));
                }
                continue;
            }
            if self.group == self.segment.row_groups() {
                return Ok(None);
            }
            let group = self.group;
            self.group += 1;
            let rows = self.wanted_rows(group).await?;
            let batches = self.segment.batches(group, &rows, self.batch_bytes);
            let batches: Vec<_> = batches.into_iter().map(|rows| (group, rows)).collect();
            self.pending = batches.into_iter();
        }
    }

    /// Returns how many events are selected, reading bodies only if the selection needs them;
    /// calls `each` with every one (its body is blank if it was not needed).
    ///
    /// # Errors
    /// As [`Scan::next`].
    pub async fn count(mut self, mut each: impl FnMut(&Event)) -> Result<u64, EngineError> {
        /// What a count by type and a range of times needs.
        const COUNTED: ColumnSet = ColumnSet::TYPE;
        let mut total = 0;
        if self.selection.needs_body() {
            while let Some(events) = self.next().await? {
                total += events.len() as u64;
                events.iter().for_each(&mut each);
            }
            return Ok(total);
        }
        for group in 0..self.segment.row_groups() {
            let rows = self.wanted_rows(group).await?;
            total += rows.len() as u64;
            let columns = COUNTED | ColumnSet::TIME;
            self.segment.read(group, &rows, columns).await?.iter().for_each(&mut each);
        }
        Ok(total)
    }

    /// Returns the rows of a row group that pass everything that needs no body.
    async fn wanted_rows(&mut self, group: usize) -> Result<Rows, EngineError> {
        let facts = self.segment.facts(group);
        let rows = rows_after(&facts, self.after);
        if rows.is_empty() {
            return Ok(rows);
        }
        let verdict = self.prune(group, &facts).await?;
        match verdict {
            Verdict::None => return Ok(Rows::default()),
            Verdict::All => return Ok(rows),
            Verdict::Some => {}
        }
        let rows = rows.intersect(&self.rows_in_pages(group));
        let columns = columns_needed(&self.selection);
        if columns.is_empty() {
            return Ok(rows);
        }
        let stream = &self.segment.summary().stream;
        let partial = self.segment.read(group, &rows, columns).await?;
        let mut wanted = Vec::new();
        for (row, event) in rows.iter().zip(&partial) {
            match self.selection.matches_attributes(stream, event) {
                Ok(true) => wanted.push(row),
                Ok(false) => {}
                Err(_) if self.selection.where_errors() == WhereErrors::Skip => {
                    self.where_skipped += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Rows::from_sorted(wanted))
    }

    /// Prunes by statistics, and by bloom filters only where they could still decide.
    async fn prune(&self, group: usize, facts: &RowGroupFacts) -> Result<Verdict, EngineError> {
        let bounds = self.bounds(facts);
        let verdict = self.selection.prune(&bounds);
        if verdict != Verdict::Some {
            return Ok(verdict);
        }
        let nothing = |_: &str| false;
        let by_key = Bounds { key: bounds.key.with_filter(&nothing), ..bounds };
        let by_id = Bounds { id: bounds.id.with_filter(&nothing), ..bounds };
        let mut verdict = verdict;
        if self.selection.prune(&by_key) == Verdict::None
            && let Some(bloom) = self.segment.bloom(group, PrunedBy::Key).await?
        {
            let holds = |text: &str| Bloom::may_contain(&bloom, text);
            verdict = self.selection.prune(&Bounds { key: bounds.key.with_filter(&holds), ..bounds });
        }
        if verdict == Verdict::Some
            && self.selection.prune(&by_id) == Verdict::None
            && let Some(bloom) = self.segment.bloom(group, PrunedBy::Id).await?
        {
            let holds = |text: &str| Bloom::may_contain(&bloom, text);
            verdict = self.selection.prune(&Bounds { id: bounds.id.with_filter(&holds), ..bounds });
        }
        Ok(verdict)
    }

    fn bounds<'a>(&'a self, facts: &'a RowGroupFacts) -> Bounds<'a> {
        let range = |range: &'a Option<TextRange>| match range {
            Some(range) => TextFacts::range(&range.min, &range.max),
            None => TextFacts::default(),
        };
        Bounds {
            place: Some(Place {
                stream: &self.segment.summary().stream,
                first: facts.sequence.0,
                last: facts.sequence.1,
            }),
            time: facts.time,
            kind: range(&facts.kind),
            exchange: range(&facts.exchange),
            routing_key: range(&facts.routing_key),
            key: range(&facts.key),
            id: range(&facts.id),
            ..Bounds::unknown(facts.rows as u64)
        }
    }

    /// Returns the rows in pages that may hold a selected event, by the page index.
    fn rows_in_pages(&self, group: usize) -> Rows {
        let rows = self.segment.facts(group).rows;
        let text = |by: PrunedBy, set: &dyn for<'b> Fn(TextFacts<'b>) -> Bounds<'b>| {
            self.segment.rows_in_pages(group, by, &|page| match page {
                PageBounds::Text(min, max) => {
                    self.selection.prune(&set(TextFacts::range(min, max))) != Verdict::None
                }
                PageBounds::AllAbsent | PageBounds::Time(..) => true,
            })
        };
        let unknown = Bounds::unknown(1);
        let times = self.segment.rows_in_pages(group, PrunedBy::Time, &|page| match page {
            PageBounds::Time(min, max) => {
                let bounds = Bounds { time: Some((min, max)), ..unknown };
                self.selection.prune(&bounds) != Verdict::None
            }
            PageBounds::AllAbsent | PageBounds::Text(..) => true,
        });
        [
            times,
            text(PrunedBy::Type, &|facts| Bounds { kind: facts, ..unknown }),
            text(PrunedBy::Key, &|facts| Bounds { key: facts, ..unknown }),
            text(PrunedBy::Id, &|facts| Bounds { id: facts, ..unknown }),
            text(PrunedBy::Exchange, &|facts| Bounds { exchange: facts, ..unknown }),
            text(PrunedBy::RoutingKey, &|facts| Bounds { routing_key: facts, ..unknown }),
        ]
        .iter()
        .fold(Rows::all(rows), |wanted, pages| wanted.intersect(pages))
    }

    /// Holds whole events against what their attributes alone could not decide.
    fn keep_matching(&mut self, events: Vec<Event>) -> Result<Vec<Event>, EngineError> {
        let stream = self.segment.summary().stream.clone();
        let mut kept = Vec::with_capacity(events.len());
        for event in events {
            let message = &event.message;
            let undecided = self.selection.needs_body()
                || message.exchange.as_str().is_none()
                || message.routing_key.as_str().is_none();
            if !undecided {
                kept.push(event);
                continue;
            }
            match self.selection.matches(&stream, &event) {
                Ok(true) => kept.push(event),
                Ok(false) => {}
                Err(_) if self.selection.where_errors() == WhereErrors::Skip => {
                    self.where_skipped += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(kept)
    }
}

/// Opens a segment and makes sure it is the one that was planned.
///
/// # Errors
/// `ArchiveChanged` if it is gone or another.
pub async fn open_expected(
    store: Arc<dyn Store>,
    wanted: &SegmentToRead,
) -> Result<Segment, EngineError> {
    use dacapo_archive::ArchiveError;
    use dacapo_archive::store::StoreError;

    let changed = |how: &str| EngineError::ArchiveChanged {
        segment: wanted.key.to_string(),
        how: how.to_owned(),
    };
    match Segment::open(store, &wanted.key, Some(wanted.size)).await {
        Ok(segment) if segment.summary().digest == wanted.digest => Ok(segment),
        Ok(_) => Err(changed("is another than before (its digest differs)")),
        Err(ArchiveError::Store(StoreError::NotFound { .. })) => Err(changed("is gone")),
        Err(error) => Err(error.into()),
    }
}

fn rows_after(facts: &RowGroupFacts, after: Sequence) -> Rows {
    let (first, last) = facts.sequence;
    let mut rows = Rows::default();
    if last > after {
        let skipped = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        rows.extend_to(skipped.min(facts.rows)..facts.rows);
    }
    rows
}

fn columns_needed(selection: &Selection) -> ColumnSet {
    let needed = selection.columns();
    let mut columns = ColumnSet::NONE;
    for (flag, column) in [
        (needed.sequence, ColumnSet::SEQUENCE),
        (needed.time, ColumnSet::TIME),
        (needed.id, ColumnSet::ID),
        (needed.kind, ColumnSet::TYPE),
        (needed.key, ColumnSet::KEY),
        (needed.exchange, ColumnSet::EXCHANGE),
        (needed.routing_key, ColumnSet::ROUTING_KEY),
        (needed.properties || needed.content_type, ColumnSet::PROPERTIES),
    ] {
        if flag {
            columns = columns | column;
        }
    }
    columns
}
