//! Compaction keeps every event and the proof of what was there, whenever it is killed.

use std::cell::Cell;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_event::{Message, Sequence, Timestamp};

use super::*;
use crate::compaction::{self, Compaction, Repeat};
use crate::store::metered::Metered;
use crate::store::{ListPage, ObjectKey, Put};
use crate::verify::verify;
use crate::{SegmentBuilder, StreamWriter, layout};

thread_local! {
    /// What the clock of one test says.
    static CLOCK: Cell<Timestamp> = const { Cell::new(Timestamp::EPOCH) };
}

/// When the events were archived.
const BEGIN: u64 = 1_800_000_000;

/// Two days later: everything is old enough.
fn noon() -> Timestamp {
    Timestamp::from_secs(BEGIN + 2 * 86_400)
}

/// After the grace period.
fn later() -> Timestamp {
    Timestamp::from_secs(BEGIN + 10 * 86_400)
}

fn options(clock: Clock) -> Options {
    Options {
        streams: Vec::new(),
        older_than: OLDER_THAN,
        grace: GRACE,
        output_bytes: 60_000,
        memory: MemoryBudget::DEFAULT,
        mode: Mode::Apply,
        clock,
    }
}

fn event(id: &str, body: &str, minutes: u64) -> Event {
    let at = Timestamp::from_secs(BEGIN + minutes * 60);
    Event {
        sequence: 0,
        archived_at: at,
        time: Timestamp::from_secs(BEGIN),
        id: id.to_owned(),
        kind: "t".to_owned(),
        key: None,
        message: Message { body: body.to_owned().into(), ..Message::default() },
    }
}

/// Appends a segment to a stream; an empty id becomes that of the event's place.
async fn append(store: &Arc<dyn Store>, stream: &str, events: Vec<Event>) {
    append_in_groups(store, stream, events, 8 << 20).await;
}

/// Appends a segment with row groups of so many bytes.
async fn append_in_groups(
    store: &Arc<dyn Store>,
    stream: &str,
    events: Vec<Event>,
    group_bytes: usize,
) {
    let stream: StreamName = stream.parse().unwrap();
    let mut writer = StreamWriter::open(Arc::clone(store), stream.clone(), noon).await.unwrap();
    let mut builder =
        SegmentBuilder::with_row_groups_of(stream.clone(), writer.next(), group_bytes);
    let partition = events[0].archived_at;
    for mut event in events {
        event.sequence = builder.next();
        if event.id.is_empty() {
            event.id = Event::made_up_id(&stream, event.sequence);
        }
        builder.push(event).unwrap();
    }
    let sealed = builder.seal(writer.tip(), partition, None).unwrap();
    writer.append(&sealed).await.unwrap();
}

/// Bytes that do not compress (xorshift, Marsaglia 2003).
fn noise(seed: u64, bytes: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes.div_ceil(8)).flatten().collect()
}

/// Appends a segment of about so many bytes, in four events.
async fn append_large(store: &Arc<dyn Store>, n: u64, bytes: usize) {
    let events = (0..4).map(|part| {
        let body = noise(n * 4 + part, bytes / 4);
        let event = event(&format!("large-{n}-{part}"), "", n);
        Event { message: Message { body, ..Message::default() }, ..event }
    });
    append(store, "shop", events.collect()).await;
}

/// An archive of one stream with segments of three events, the third a repeat of the first of the
/// segment before.
async fn archive(segments: u64) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for segment in 0..segments {
        let id = |n: u64| format!("e-{n}");
        let repeated = segment.saturating_sub(1);
        let events = vec![
            event(&id(segment), "first", segment),
            event("", "no id", segment),
            event(&id(repeated), "first", segment),
        ];
        append(&store, "shop", events).await;
    }
    store
}

fn shop() -> StreamName {
    "shop".parse().unwrap()
}

async fn all_of(segment: Segment) -> Vec<Event> {
    let mut events = Events::of(segment);
    let mut all = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        all.push(event);
    }
    all
}

async fn open(store: &Arc<dyn Store>, entry: &ChainEntry) -> Segment {
    Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await.unwrap()
}

/// Returns the events of the stream as readers see them, and the sequences that were dropped.
async fn archived(store: &Arc<dyn Store>) -> (Vec<Event>, Vec<Repeat>) {
    let (mut events, mut dropped, mut next) = (Vec::new(), Vec::new(), 1);
    for first in compaction::entries_of(&**store, &shop()).await.unwrap() {
        assert_eq!(first, next, "outputs follow each other");
        let entry = compaction::entry(&**store, &shop(), first).await.unwrap().unwrap().output;
        let output = open(store, &entry).await;
        dropped.extend(output.compaction().cloned().unwrap_or_default().dropped);
        events.extend(all_of(output).await);
        next = entry.last + 1;
    }
    while let Some(entry) = chain::entry(&**store, &shop(), next).await.unwrap() {
        events.extend(all_of(open(store, &entry).await).await);
        next = entry.last + 1;
    }
    (events, dropped)
}

async fn run(store: &Arc<dyn Store>, clock: Clock) -> Report {
    compact(Arc::clone(store), &options(clock), |_| {}).await.unwrap()
}

async fn problems(store: &Arc<dyn Store>) -> Vec<String> {
    let report = verify(Arc::clone(store), &[], |_| {}).await.unwrap();
    report.problems.iter().map(|found| format!("{}: {}", found.key, found.problem)).collect()
}

async fn sound(store: &Arc<dyn Store>) -> verify::Report {
    let report = verify(Arc::clone(store), &[], |_| {}).await.unwrap();
    assert_eq!(report.problems, []);
    report
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<ObjectKey> {
    let objects = chain::list_all(&**store, prefix, None).await.unwrap();
    objects.into_iter().map(|object| object.key).collect()
}

/// Checks that the archive has exactly these events but for exact repeats, which it lists.
async fn check_events(store: &Arc<dyn Store>, expected: &[Event]) {
    let (events, dropped) = archived(store).await;
    let mut all = events.clone();
    for repeat in &dropped {
        let first = events.iter().find(|event| event.sequence == repeat.repeat_of).unwrap();
        let gone = &expected[usize::try_from(repeat.sequence).unwrap() - 1];
        assert_eq!((gone.identity(), gone.sequence), (first.identity(), repeat.sequence));
        all.push(gone.clone());
    }
    all.sort_by_key(|event| event.sequence);
    assert_eq!(all, expected);
    assert!(events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
}

#[tokio::test]
async fn small_segments_become_one_with_the_same_events_and_the_list_of_what_was_merged() {
    let store = archive(10).await;
    let (before, _) = archived(&store).await;
    let report = run(&store, noon).await;
    assert!(report.problems.is_empty(), "{report:?}");
    let done = &report.streams[0];
    assert_eq!((done.merged, done.outputs, done.dropped, done.waiting), (9, 1, 9, 9), "{done:?}");
    check_events(&store, &before).await;
    let entry = compaction::entry(&*store, &shop(), 1).await.unwrap().unwrap();
    let output = open(&store, &entry.output).await;
    let made = output.compaction().unwrap();
    for input in &made.inputs {
        let entry = chain::entry(&*store, &shop(), input.first).await.unwrap().unwrap();
        assert_eq!((input.last, input.digest), (entry.last, entry.digest));
    }
    // The last segment is its writer's.
    assert_eq!(made.inputs.iter().map(|input| input.last).max(), Some(27));
    assert_eq!(made.dropped[0], Repeat { sequence: 3, repeat_of: 1 });
    let verified = sound(&store).await;
    assert_eq!((verified.segments, verified.outputs, verified.compacted), (10, 1, 0));
    assert_eq!((verified.events, verified.dropped), (21, 9));
    // Nothing is left to do.
    let again = run(&store, noon).await;
    assert_eq!((again.streams[0].merged, again.streams[0].deleted), (0, 0));
}

/// Some larger than a chain entry may be, one larger than what is read at once, and so is the output.
#[tokio::test]
async fn segments_of_megabytes_are_merged_and_deleted() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let sizes = [70_000, 1_000, 5_000_000, 900_000, 70_000];
    for (n, bytes) in sizes.into_iter().enumerate() {
        append_large(&store, n as u64, bytes).await;
    }
    let (before, _) = archived(&store).await;
    let large = |clock| Options { output_bytes: 48_000_000, ..options(clock) };
    let report = compact(Arc::clone(&store), &large(noon), |_| {}).await.unwrap();
    assert_eq!(report.problems, []);
    assert_eq!((report.streams[0].merged, report.streams[0].outputs), (4, 1), "{report:?}");
    let report = compact(Arc::clone(&store), &large(later), |_| {}).await.unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(report.streams[0].deleted, 4, "{report:?}");
    check_events(&store, &before).await;
    assert_eq!(sound(&store).await.compacted, 4);
}

/// What lies in the place of a segment is not read further than the segment went.
#[tokio::test]
async fn a_larger_or_smaller_object_in_the_place_of_a_segment_is_named() {
    for bytes in [1_000, 5_000_000] {
        for larger in [true, false] {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            for n in 0..4 {
                append_large(&store, n, bytes).await;
            }
            let large = |clock| Options { output_bytes: 48_000_000, ..options(clock) };
            compact(Arc::clone(&store), &large(noon), |_| {}).await.unwrap();
            let output = keys(&store, "compacted/").await.remove(0);
            change(&store, &output, |bytes| match larger {
                true => bytes.push(0),
                false => bytes.truncate(bytes.len() - 1),
            })
            .await;
            let report = compact(Arc::clone(&store), &large(later), |_| {}).await.unwrap();
            named_in(&report, &output, "another size");
            assert_eq!(keys(&store, "segments/").await.len(), 4);
        }
    }
}

#[track_caller]
fn named_in(report: &Report, key: &ObjectKey, problem: &str) {
    let lines: Vec<String> =
        report.problems.iter().map(|found| format!("{}: {}", found.key, found.problem)).collect();
    named(&lines, key, problem);
}

/// Written anew they may come to three times as many, and no reader takes more than 1,024.
#[tokio::test]
async fn segments_of_many_row_groups_become_outputs_that_readers_take() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (n, groups) in [342, 200, 141, 1, 1].into_iter().enumerate() {
        let events = (0..groups).map(|at| event(&format!("{n}-{at}"), "x", n as u64));
        append_in_groups(&store, "shop", events.collect(), 1).await;
    }
    let (before, _) = archived(&store).await;
    let large = Options { output_bytes: 48_000_000, ..options(noon) };
    let report = compact(Arc::clone(&store), &large, |_| {}).await.unwrap();
    let done = &report.streams[0];
    assert_eq!((done.taken_over, done.merged, done.outputs), (1, 2, 1), "{report:?}");
    check_events(&store, &before).await;
}

#[tokio::test]
async fn only_exact_repeats_are_dropped() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let with_type = Event { kind: "u".to_owned(), ..event("a", "x", 2) };
    append(&store, "shop", vec![event("a", "x", 0), event("a", "y", 0), event("b", "x", 0)]).await;
    append(&store, "shop", vec![event("", "x", 1), event("", "x", 1), event("a", "x", 1)]).await;
    append(&store, "shop", vec![with_type, event("b", "x", 2), event("shop:4", "x", 2)]).await;
    append(&store, "shop", vec![event("last", "x", 3)]).await;
    let (before, _) = archived(&store).await;
    run(&store, noon).await;
    check_events(&store, &before).await;
    let dropped: Vec<(Sequence, Sequence)> =
        archived(&store).await.1.iter().map(|at| (at.sequence, at.repeat_of)).collect();
    // Not those without an id of their own, nor what has the id of such a one.
    assert_eq!(dropped, [(6, 1), (8, 3)]);
}

#[tokio::test]
async fn merged_segments_stay_for_the_grace_period_and_go_after_it() {
    let store = archive(10).await;
    let (before, _) = archived(&store).await;
    run(&store, noon).await;
    run(&store, noon).await;
    assert_eq!(keys(&store, "segments/").await.len(), 10);
    let report = run(&store, later).await;
    assert_eq!((report.streams[0].deleted, report.streams[0].waiting), (9, 0), "{report:?}");
    assert_eq!(keys(&store, "segments/").await.len(), 1);
    check_events(&store, &before).await;
    let verified = sound(&store).await;
    assert_eq!((verified.segments, verified.compacted, verified.events), (10, 9, 21));
    // The writer goes on where it was.
    append(&store, "shop", vec![event("new", "x", 99)]).await;
    sound(&store).await;
}

#[tokio::test]
async fn what_is_young_another_days_or_large_is_not_merged() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let noise = |n: u64| -> String {
        (0..1_100).map(|part| Digest::of(format!("{n} {part}").as_bytes()).to_string()).collect()
    };
    let day = 24 * 60;
    for minutes in [0, 1, day, day + 1] {
        append(&store, "shop", vec![event(&format!("e{minutes}"), "small", minutes)]).await;
    }
    append(&store, "shop", vec![event("large", &noise(1), day + 2)]).await;
    // Two days later is noon: these are too young.
    for minutes in [2 * day - 3, 2 * day - 2, 2 * day - 1] {
        append(&store, "shop", vec![event(&format!("e{minutes}"), "small", minutes)]).await;
    }
    let young = Options { older_than: Duration::from_secs(86_400 - 180), ..options(noon) };
    let (before, _) = archived(&store).await;
    let report = compact(Arc::clone(&store), &young, |_| {}).await.unwrap();
    let done = &report.streams[0];
    // Two on each day; the large one has nothing after it yet.
    assert_eq!((done.outputs, done.merged, done.taken_over), (2, 4, 0), "{done:?}");
    check_events(&store, &before).await;
    let report = run(&store, later).await;
    assert_eq!((report.streams[0].outputs, report.streams[0].taken_over), (1, 1), "{report:?}");
    check_events(&store, &before).await;
    sound(&store).await;
    // What is its own output is never deleted.
    assert_eq!(keys(&store, "segments/").await.len(), 4);
}

/// Run each hour of two days, as by cron, while a segment comes every ten minutes.
#[tokio::test]
async fn however_often_it_runs_a_day_becomes_one_output() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut outputs = 0;
    for hour in 0..60 {
        for minutes in [0, 10, 20, 30, 40, 50] {
            let minutes = hour * 60 + minutes;
            append(&store, "shop", vec![event(&format!("e{minutes}"), "x", minutes)]).await;
        }
        let now = Timestamp::from_secs(BEGIN + (hour + 2) * 3_600);
        let at = Options {
            older_than: Duration::from_secs(3_600),
            output_bytes: 48_000_000,
            ..options(|| CLOCK.with(Cell::get))
        };
        CLOCK.set(now);
        let report = compact(Arc::clone(&store), &at, |_| {}).await.unwrap();
        assert_eq!(report.problems, []);
        outputs += report.streams[0].outputs;
    }
    // It began at eight; of the third day only the morning is there.
    assert_eq!(outputs, 2);
    let dates: Vec<String> = keys(&store, "compacted/").await.iter().map(date_of).collect();
    assert_eq!(dates, ["date=2027-01-15", "date=2027-01-16"]);
    sound(&store).await;
}

fn date_of(key: &ObjectKey) -> String {
    key.as_str().split('/').nth(2).unwrap().to_owned()
}

#[tokio::test]
async fn what_is_compacted_costs_no_requests_at_a_later_run() {
    let requests = async |bytes: usize, segments: u64| {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        for n in 0..segments {
            append_large(&store, n, bytes).await;
        }
        let large = Options { output_bytes: 400_000, ..options(noon) };
        compact(Arc::clone(&store), &large, |_| {}).await.unwrap();
        let metered = Arc::new(Metered::new(store));
        let again = Arc::clone(&metered) as Arc<dyn Store>;
        let report = compact(again, &large, |_| {}).await.unwrap();
        let done = &report.streams[0];
        assert_eq!(done.waiting + done.merged, if bytes < 100_000 { segments - 1 } else { 0 });
        metered.totals().requests
    };
    // Taken over, and merged but in the grace period.
    for bytes in [120_000, 1_000] {
        assert_eq!(requests(bytes, 12).await, requests(bytes, 4).await, "{bytes}");
    }
}

#[tokio::test]
async fn a_dry_run_tells_and_changes_nothing() {
    let store = archive(10).await;
    let before = keys(&store, "").await;
    let dry = Options { mode: Mode::DryRun, ..options(noon) };
    let told = compact(Arc::clone(&store), &dry, |_| {}).await.unwrap();
    assert_eq!(keys(&store, "").await, before);
    let done = run(&store, noon).await;
    let of = |report: &Report| {
        let stream = &report.streams[0];
        (stream.merged, stream.merged_bytes, stream.outputs)
    };
    assert_eq!(of(&told), of(&done));
    let dry = Options { clock: later, ..dry };
    let told = compact(Arc::clone(&store), &dry, |_| {}).await.unwrap();
    assert_eq!((told.streams[0].deleted, keys(&store, "segments/").await.len()), (9, 10));
}

/// A store whose process ends at the nth call, before or after it was carried out; that can do
/// something else first when a compaction is committed; and in which one object is in cold storage.
struct Scripted {
    inner: Arc<dyn Store>,
    end: Option<(usize, bool)>,
    calls: AtomicUsize,
    overtaken_by: Mutex<Option<Options>>,
    cold: Option<ObjectKey>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn ending(inner: &Arc<dyn Store>, end: Option<(usize, bool)>) -> Arc<Self> {
        Arc::new(Scripted {
            inner: Arc::clone(inner),
            end,
            calls: AtomicUsize::new(0),
            overtaken_by: Mutex::default(),
            cold: None,
        })
    }

    fn freezing(inner: &Arc<dyn Store>, cold: ObjectKey) -> Arc<Self> {
        let store = Arc::into_inner(Self::ending(inner, None)).unwrap();
        Arc::new(Scripted { cold: Some(cold), ..store })
    }

    async fn call<T>(
        &self,
        key: &str,
        real: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let nth = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let ended = || StoreError::Unavailable {
            key: key.to_owned(),
            location: "memory:".to_owned(),
            reason: "the process has ended".to_owned(),
        };
        match self.end {
            Some((end, after)) if nth == end && after => real.await.and(Err(ended())),
            Some((end, _)) if nth >= end => Err(ended()),
            _ => real.await,
        }
    }
}

#[async_trait]
impl Store for Scripted {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        let other = self
            .overtaken_by
            .lock()
            .unwrap()
            .take_if(|_| layout::parse_compaction_entry(key).is_some());
        if let Some(other) = other {
            // Its futures are not to be sent between threads; nothing here is.
            let store = Arc::clone(&self.inner);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            std::thread::spawn(move || {
                runtime.block_on(compact(store, &other, |_| {})).unwrap();
            })
            .join()
            .unwrap();
        }
        self.call(key.as_str(), self.inner.put_new(key, bytes)).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.call(key.as_str(), self.inner.replace(key, bytes)).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        if self.cold.as_ref() == Some(key) {
            let (key, location) = (key.to_string(), self.location());
            return Err(StoreError::Cold { key, location, class: "GLACIER".to_owned() });
        }
        self.call(key.as_str(), self.inner.get(key, range)).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        self.call(prefix, self.inner.list(prefix, after)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.call(key.as_str(), self.inner.delete(key)).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[tokio::test]
async fn killed_at_any_store_call_and_run_again_nothing_is_lost_and_the_chain_is_one() {
    let small = |clock| Options { output_bytes: 17_000, ..options(clock) };
    let mut kills = 0;
    for nth in 1.. {
        let mut reached = false;
        for after in [false, true] {
            let inner = archive(8).await;
            let (before, _) = archived(&inner).await;
            let store = Scripted::ending(&inner, Some((nth, after)));
            // One run makes outputs, the next deletes what was merged; either may be killed.
            for clock in [noon as Clock, later] {
                let ended = compact(store.clone(), &small(clock), |_| {}).await;
                reached |= ended.is_err();
                kills += u32::from(ended.is_err());
                check_events(&inner, &before).await;
                sound(&inner).await;
            }
            let done = compact(Arc::clone(&inner), &small(noon), |_| {}).await.unwrap();
            assert!(done.problems.is_empty(), "{nth} {after}: {done:?}");
            compact(Arc::clone(&inner), &small(later), |_| {}).await.unwrap();
            check_events(&inner, &before).await;
            let report = sound(&inner).await;
            assert_eq!((report.compacted, &report.notes), (7, &vec![]), "{nth} {after}");
            assert!(report.outputs > 1, "{report:?}");
        }
        if !reached {
            break;
        }
    }
    assert!(kills > 100, "{kills}");
}

#[tokio::test]
async fn of_two_compactions_one_is_overtaken_and_goes_on_after_the_other() {
    let inner = archive(8).await;
    let (before, _) = archived(&inner).await;
    let store = Scripted::ending(&inner, None);
    // It makes smaller outputs, so that they end elsewhere.
    let other = Options { output_bytes: 17_000, ..options(noon) };
    *store.overtaken_by.lock().unwrap() = Some(other);
    let report = compact(store.clone(), &options(noon), |_| {}).await.unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    assert!(store.overtaken_by.lock().unwrap().is_none());
    check_events(&inner, &before).await;
    // What the slower one had put is nobody's, and is gone.
    assert_eq!(sound(&inner).await.notes, []);
    assert_eq!(keys(&inner, "compacted/").await.len(), 2);
}

async fn change(store: &Arc<dyn Store>, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = store.get(key, ByteRange::Full).await.unwrap().to_vec();
    change(&mut bytes);
    store.replace(key, bytes.into()).await.unwrap();
}

#[track_caller]
fn named(found: &[String], key: &ObjectKey, problem: &str) {
    let named = found.iter().any(|line| line.contains(key.as_str()) && line.contains(problem));
    assert!(named, "`{problem}` of {key} is not in {found:#?}");
}

mod damage;
