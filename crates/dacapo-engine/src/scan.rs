//! Reads the selected events of one segment, in order, touching as little as it can.
//!
//! Row groups are pruned by statistics and bloom filters, then pages, then rows; bodies
//! are fetched only for rows that pass everything that needs no body.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use dacapo_archive::compaction;
use dacapo_archive::layout;
use dacapo_archive::store::{ObjectKey, Store, StoreError};
use dacapo_archive::{
    ArchiveError, Bloom, ColumnSet, PageBounds, Pages, PrunedBy, RowGroupFacts, Rows, Segment,
    TextRange,
};
use dacapo_event::{Digest, Event, Sequence};
use dacapo_filter::{Bounds, Place, Selection, TextBounds, TextFacts, Verdict, WhereErrors};

use crate::EngineError;

/// What an event takes in memory beside its body, about: `Event::weight` counts 512 bytes and what
/// its headers take, some 100 for each of the usual ones.
const ATTRIBUTE_BYTES: u64 = 768;

/// The pages of a row group are fetched together if, as they are stored, they take at most this part
/// of what a batch takes: bodies that compress well.
const STORED_PART: u64 = 2;

/// What a batch takes, about, of pages that were fetched before: what is held against its checksum
/// while it is in a processor's cache. Each batch wakes two threads.
const CACHED_BYTES: u64 = 2 * 1024 * 1024;

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
    /// Only events up to this sequence are read: more may be in the output that took the segment's
    /// place.
    until: Sequence,
    batch_bytes: u64,
    /// The next row group, and how many rows come before it.
    group: usize,
    rows_before: u64,
    pending: std::vec::IntoIter<(usize, Rows)>,
    /// What `pending` is decoded from, if it was fetched for all of them.
    pages: Option<Pages>,
    /// Events of the row group at hand that the expression failed on, still ahead.
    failed: VecDeque<Sequence>,
    /// Events that the expression failed on since the last one found.
    skipped: u64,
}

/// A selected event.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The event.
    pub event: Event,
    /// How many events between the one found before and this one the expression failed on, which
    /// therefore were left out.
    pub skipped: u64,
}

impl Scan {
    /// Opens a segment: one request for its footer.
    ///
    /// Gives events whose sequence is greater than `after`. `batch_bytes` bounds what one batch of
    /// events takes in memory, about, but for a single event; a page may be decoded on the way.
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
        let Opened { segment, from, until } = open_expected(store, wanted).await?;
        Ok(Scan {
            group: 0,
            rows_before: 0,
            until,
            pending: Vec::new().into_iter(),
            pages: None,
            failed: VecDeque::new(),
            skipped: 0,
            segment,
            selection,
            after: after.max(from.saturating_sub(1)),
            batch_bytes,
        })
    }

    /// Returns the next selected events in order of sequence, never an empty batch; nothing at the
    /// end.
    ///
    /// Not cancel-safe: a dropped call loses its batch.
    ///
    /// # Errors
    /// The archive fails, or the expression fails on an event and errors are not skipped.
    pub async fn next(&mut self) -> Result<Option<Vec<Found>>, EngineError> {
        loop {
            if let Some((group, rows)) = self.pending.next() {
                let events = match self.pages.take() {
                    Some(pages) => {
                        let (events, rest) = self.segment.decode(pages, &rows).await?;
                        self.pages = Some(rest);
                        events
                    }
                    None => self.segment.read(group, &rows, ColumnSet::ALL).await?,
                };
                let found = self.keep_matching(events)?;
                if !found.is_empty() {
                    return Ok(Some(found));
                }
                continue;
            }
            self.skipped += self.failed.drain(..).len() as u64;
            self.pages = None;
            let group = self.group;
            let Some(rows) = self.next_group().await? else { return Ok(None) };
            if rows.is_empty() {
                continue;
            }
            // Each batch alone would fetch a piece of every column, and pages that it shares with the
            // next one twice.
            let stored_max = self.batch_bytes / STORED_PART;
            self.pages = self.segment.pages(group, &rows, ColumnSet::ALL, stored_max).await?;
            let bytes = match self.pages {
                Some(_) => self.batch_bytes.min(CACHED_BYTES),
                None => self.batch_bytes,
            };
            self.pending = self.batches(group, &rows, bytes).into_iter();
        }
    }

    /// Returns how many events the expression failed on after the last one found; once
    /// [`Scan::next`] has given nothing, that is all of them.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Returns how many events are selected, reading bodies only if the selection needs them;
    /// calls `each` with every one, of which the type, the time and `columns` are as they were; the
    /// rest may be blank.
    ///
    /// # Errors
    /// As [`Scan::next`].
    pub async fn count(
        mut self,
        columns: ColumnSet,
        mut each: impl FnMut(&Event),
    ) -> Result<u64, EngineError> {
        let counted = ColumnSet::TYPE | ColumnSet::TIME | columns;
        let mut total = 0;
        if self.selection.needs_body() {
            while let Some(found) = self.next().await? {
                total += found.len() as u64;
                found.iter().for_each(|found| each(&found.event));
            }
            return Ok(total);
        }
        loop {
            let group = self.group;
            let Some(rows) = self.next_group().await? else { return Ok(total) };
            self.failed.clear();
            total += rows.len() as u64;
            self.segment.read(group, &rows, counted).await?.iter().for_each(&mut each);
        }
    }

    /// Splits the wanted rows of a group so that the events of each part take about so many bytes.
    fn batches(&self, group: usize, rows: &Rows, bytes: u64) -> Vec<(usize, Rows)> {
        let summary = self.segment.summary();
        let body = summary.body_bytes / summary.events();
        let rows_max = (bytes / (body + ATTRIBUTE_BYTES)).max(1);
        let parts = self.segment.batches(group, rows, rows_max * body);
        // A page that is fetched alone is decoded again for each part of it, so it is split only where
        // that matters.
        let rows_max = usize::try_from(rows_max * 2).unwrap_or(usize::MAX);
        let split = |part: Rows| -> Vec<Rows> {
            if part.len() <= rows_max {
                return vec![part];
            }
            let numbers: Vec<usize> = part.iter().collect();
            numbers.chunks(rows_max).map(|part| Rows::from_sorted(part.iter().copied())).collect()
        };
        parts.into_iter().flat_map(split).map(|rows| (group, rows)).collect()
    }

    /// Moves on to the next row group; returns its rows that pass everything that needs no body, or
    /// nothing at the end of the segment.
    async fn next_group(&mut self) -> Result<Option<Rows>, EngineError> {
        let group = self.group;
        if group == self.segment.row_groups() {
            return Ok(None);
        }
        let facts = self.segment.facts(group);
        let before = self.rows_before;
        self.group += 1;
        self.rows_before += facts.rows as u64;
        self.wanted_rows(group, before, &facts).await.map(Some)
    }

    async fn wanted_rows(
        &mut self,
        group: usize,
        before: u64,
        facts: &RowGroupFacts,
    ) -> Result<Rows, EngineError> {
        let rows = self.rows_between(before, facts.rows);
        if rows.is_empty() {
            return Ok(rows);
        }
        let verdict = self.prune(group, before, facts).await?;
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
                    self.failed.push_back(self.segment.sequence_at(before + row as u64));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Rows::from_sorted(wanted))
    }

    /// Prunes by statistics, and by bloom filters only where they could still decide.
    async fn prune(
        &self,
        group: usize,
        before: u64,
        facts: &RowGroupFacts,
    ) -> Result<Verdict, EngineError> {
        let bounds = self.bounds(before, facts);
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
            verdict =
                self.selection.prune(&Bounds { key: bounds.key.with_filter(&holds), ..bounds });
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

    /// Returns which of a row group's rows, before which there are so many, are after and up to the
    /// sequences asked for.
    fn rows_between(&self, before: u64, count: usize) -> Rows {
        let within = |sequence: Sequence| {
            let row = self.segment.rows_before(sequence).saturating_sub(before);
            usize::try_from(row).unwrap_or(usize::MAX).min(count)
        };
        let mut wanted = Rows::default();
        wanted
            .extend_to(within(self.after.saturating_add(1))..within(self.until.saturating_add(1)));
        wanted
    }

    fn bounds<'a>(&'a self, before: u64, facts: &'a RowGroupFacts) -> Bounds<'a> {
        let range = |range: &'a Option<TextRange>| match range {
            Some(range) => TextFacts::range(&range.min, &range.max),
            None => TextFacts::default(),
        };
        Bounds {
            place: Some(Place {
                stream: &self.segment.summary().stream,
                first: self.segment.sequence_at(before),
                last: self.segment.sequence_at(before + facts.rows as u64 - 1),
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
                PageBounds::AllAbsent => {
                    let absent = TextFacts { bounds: TextBounds::Absent, ..TextFacts::default() };
                    self.selection.prune(&set(absent)) != Verdict::None
                }
                PageBounds::Time(..) => true,
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
    fn keep_matching(&mut self, events: Vec<Event>) -> Result<Vec<Found>, EngineError> {
        let stream = &self.segment.summary().stream;
        let all = events.len();
        let mut kept = Vec::with_capacity(all);
        for event in events {
            while self.failed.front().is_some_and(|failed| *failed < event.sequence) {
                self.failed.pop_front();
                self.skipped += 1;
            }
            let message = &event.message;
            let undecided = self.selection.needs_body()
                || message.exchange.as_str().is_none()
                || message.routing_key.as_str().is_none();
            let matches = match undecided {
                true => self.selection.matches(stream, &event),
                false => Ok(true),
            };
            match matches {
                Ok(true) => kept.push(Found { event, skipped: std::mem::take(&mut self.skipped) }),
                Ok(false) => {}
                Err(_) if self.selection.where_errors() == WhereErrors::Skip => self.skipped += 1,
                Err(error) => return Err(error.into()),
            }
        }
        if kept.len() < all - all / 8 {
            // Bodies may be slices of their pages, and a few must not keep them in memory.
            for Found { event, .. } in &mut kept {
                event.message.body = Bytes::copy_from_slice(&event.message.body);
            }
        }
        Ok(kept)
    }
}

/// A segment that was planned, or the output of compaction that took its place.
#[derive(Debug)]
pub struct Opened {
    /// What is read.
    pub segment: Segment,
    /// The first sequence of the planned segment.
    pub from: Sequence,
    /// The last sequence of the planned segment.
    pub until: Sequence,
}

/// Opens a segment and makes sure it is the one that was planned; of one that is gone, the output
/// of compaction that says it was made of this very segment.
///
/// # Errors
/// `ArchiveChanged` if it is gone or another.
pub async fn open_expected(
    store: Arc<dyn Store>,
    wanted: &SegmentToRead,
) -> Result<Opened, EngineError> {
    let changed = |how: &str| EngineError::ArchiveChanged {
        segment: wanted.key.to_string(),
        how: how.to_owned(),
    };
    match Segment::open(Arc::clone(&store), &wanted.key, Some(wanted.size)).await {
        Ok(segment) if segment.summary().digest == wanted.digest => {
            let (from, until) = (segment.summary().first, segment.summary().last);
            Ok(Opened { segment, from, until })
        }
        Ok(_) => Err(changed("is another than before (its digest differs)")),
        Err(ArchiveError::Store(StoreError::NotFound { .. })) => {
            open_successor(&store, wanted).await?.ok_or_else(|| changed("is gone"))
        }
        // With another size nothing is where it was looked for, which reads like damage.
        Err(
            error @ (ArchiveError::Damaged { .. }
            | ArchiveError::Store(StoreError::Permanent { .. })),
        ) => {
            let page = store.list(wanted.key.as_str(), None).await.map_err(ArchiveError::from)?;
            match page.objects.iter().find(|object| object.key == wanted.key) {
                Some(object) if object.size == wanted.size => Err(error.into()),
                Some(_) => Err(changed("is another than before (its size differs)")),
                None => open_successor(&store, wanted).await?.ok_or_else(|| changed("is gone")),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the output that took the place of a segment, if there is one that says so.
async fn open_successor(
    store: &Arc<dyn Store>,
    wanted: &SegmentToRead,
) -> Result<Option<Opened>, EngineError> {
    let Some((stream, first)) = layout::parse_segment(&wanted.key) else { return Ok(None) };
    let found = compaction::successor(store, &stream, first, &wanted.digest).await?;
    Ok(found.map(|(segment, input)| Opened { segment, from: input.first, until: input.last }))
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

#[cfg(test)]
mod tests;
