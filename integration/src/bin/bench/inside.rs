//! Sides of a pair that are no command of dacapo: its libraries alone, and S3 alone. Each is run as
//! a process of its own, so that it costs what a command does.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dacapo_amqp::{AmqpConnect, AmqpTarget, Broker};
use dacapo_archive::chain;
use dacapo_archive::store::file::FileStore;
use dacapo_archive::store::{ByteRange, Store};
use dacapo_bus::Outcome;
use dacapo_engine::scan::{Scan, SegmentToRead};
use dacapo_event::marking::{self, Priority};
use dacapo_event::{DeliveryMode, Event, Message, Properties, ShortStr, Timestamp};
use dacapo_filter::{Selection, SelectionSpec};
use dacapo_s3::{S3Options, S3Store};
use tokio::task::JoinSet;

use crate::{EVENTS, events};

/// Segments that are read, and ranges that are fetched, at the same time.
const AT_ONCE: usize = 4;

/// Messages that the sink is given at a time, and that are not answered for at the most: as the
/// reference publisher has it.
const BATCH: usize = 64;
const WINDOW: usize = 1_000;

/// Bytes of one range.
const RANGE_BYTES: u64 = 4 * 1024 * 1024;

/// What a batch of a scan takes, about: as much as a replay's.
const BATCH_BYTES: u64 = 5 * 1024 * 1024;

/// Reads and decodes every event of an archive, bodies and all, and asks of each whether it has one
/// of the types that all have.
pub(crate) fn scan(archive: &str) -> Result<()> {
    run(async {
        let store = open(archive).await?;
        let types = events::KINDS.map(str::to_owned).to_vec();
        let spec = SelectionSpec { types, ..SelectionSpec::default() };
        let selection = Arc::new(Selection::compile(spec)?);
        let mut events = 0;
        let each = |segment| count(Arc::clone(&store), segment, Arc::clone(&selection));
        at_once(segments(&*store).await?.into_iter().map(each), |found| events += found).await?;
        ensure!(events == EVENTS, "{events} events are in the archive, not {EVENTS}");
        Ok(())
    })
}

async fn count(
    store: Arc<dyn Store>,
    segment: SegmentToRead,
    selection: Arc<Selection>,
) -> Result<u64> {
    let mut scan = Scan::open(store, &segment, selection, 0, BATCH_BYTES).await?;
    let mut events = 0;
    while let Some(found) = scan.next().await? {
        events += found.len() as u64;
    }
    Ok(events)
}

/// Gets every byte of an archive's segments, in ranges.
pub(crate) fn fetch(archive: &str) -> Result<()> {
    run(async {
        let store = open(archive).await?;
        let mut ranges = Vec::new();
        for SegmentToRead { key, size, .. } in segments(&*store).await? {
            for start in (0..size).step_by(RANGE_BYTES as usize) {
                ranges.push((key.clone(), ByteRange::Span(start, size.min(start + RANGE_BYTES))));
            }
        }
        let fetches = ranges.into_iter().map(|(key, range)| {
            let store = Arc::clone(&store);
            async move { Ok(store.get(&key, range).await?) }
        });
        at_once(fetches, drop).await
    })
}

/// Publishes as many events as [`dacapo_integration::reference::publish_nowhere`] does through the
/// sink alone, to the same exchange.
pub(crate) fn sink(url: &str, exchange: &str, events: u64, body_bytes: usize) -> Result<()> {
    run(async {
        let target = AmqpTarget::Exchange { exchange: exchange.to_owned(), routing_key: None };
        let broker =
            Broker { url: url.parse()?, tls: Default::default(), client_name: "bench".to_owned() };
        let mut sink = AmqpConnect { broker, target }.open_losing().await?;
        let batch = vec![replayed(body_bytes)?; BATCH];
        let (mut left, mut unanswered) = (events as usize, 0);
        while left > 0 || unanswered > 0 {
            let count = BATCH.min(left);
            if count > 0 && unanswered + count <= WINDOW {
                sink.send(&batch[..count]).await?;
                left -= count;
                unanswered += count;
                continue;
            }
            let outcomes = sink.outcomes().await?;
            ensure!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "not confirmed");
            unanswered -= outcomes.len();
        }
        Ok(sink.close().await?)
    })
}

/// Returns a message as a replay publishes it.
fn replayed(body_bytes: usize) -> Result<Message> {
    let short = |text: &str| Ok::<_, anyhow::Error>(ShortStr::try_from(text)?);
    let properties = Properties {
        content_type: Some(short("application/json")?),
        delivery_mode: Some(DeliveryMode::Persistent),
        message_id: Some(short(&"0".repeat(32))?),
        kind: Some(short("order.placed")?),
        ..Properties::default()
    };
    let (exchange, routing_key) = (short("shop")?, short("order.placed")?);
    let body = vec![b'x'; body_bytes].into();
    let now = Timestamp::from_secs(1_800_000_000);
    let event = Event {
        sequence: 1,
        archived_at: now,
        time: now,
        id: "0".repeat(32),
        kind: "order.placed".to_owned(),
        key: None,
        message: Message { exchange, routing_key, properties, body },
    };
    Ok(marking::mark(&event, &short("bench")?, Priority::Neutralise))
}

/// Runs some at the same time, on this thread, as a replay does.
async fn at_once<T, F>(work: impl Iterator<Item = F>, mut each: impl FnMut(T)) -> Result<()>
where
    T: 'static,
    F: Future<Output = Result<T>> + 'static,
{
    let mut running = JoinSet::new();
    for next in work {
        if running.len() == AT_ONCE
            && let Some(done) = running.join_next().await
        {
            each(done??);
        }
        running.spawn_local(next);
    }
    while let Some(done) = running.join_next().await {
        each(done??);
    }
    Ok(())
}

async fn segments(store: &dyn Store) -> Result<Vec<SegmentToRead>> {
    let mut segments = Vec::new();
    for stream in chain::streams(store).await? {
        for (_, first) in chain::committed(store, &stream, None).await? {
            let entry = chain::entry(store, &stream, first).await?;
            let entry = entry.context("a committed segment has an entry")?;
            let (key, size, digest) = (entry.segment, entry.size, entry.digest);
            segments.push(SegmentToRead { key, size, digest });
        }
    }
    Ok(segments)
}

async fn open(archive: &str) -> Result<Arc<dyn Store>> {
    Ok(match S3Options::from_url(archive) {
        Some(options) => Arc::new(S3Store::connect(options).await?),
        None => Arc::new(FileStore::open(archive).await?),
    })
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}
