//! `dacapo archive`: the archiver and the archive's upkeep.

use std::path::Path;
use std::sync::Arc;

use dacapo_amqp::{AmqpSubscribe, BlindSpot, blind_spots};
use dacapo_archive::chain::Head;
use dacapo_archive::store::ObjectKey;
use dacapo_archive::verified;
use dacapo_archive::verify::{Finding, verify};
use dacapo_archiver::{ArchiverConfig, Health, Metrics, RollPolicy, WriteOnce};
use dacapo_event::StreamName;
use futures::future::OptionFuture;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use self::definitions::Keeping;
use self::disk::Watching;
use self::limits::Limits;
use self::queue::Queue;
use super::import;
use crate::args::{ArchiveCommand, LsArgs, RunArgs, VerifyArgs};
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::{Output, words};
use crate::process;
use crate::progress::Steps;
use crate::serve;
use crate::settings::Settings;
use crate::signals::Signals;

mod compact;
pub(super) mod definitions;
mod disk;
mod limits;
mod queue;
mod repair;
mod watch_verified;

pub async fn run(
    command: ArchiveCommand,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    match command {
        ArchiveCommand::Run(args) => archiver(*args, settings, output).await,
        ArchiveCommand::Import(args) => import::run(&args, settings, output).await,
        ArchiveCommand::Ls(args) => ls(&args, settings, output).await,
        ArchiveCommand::Verify(args) => check(&args, settings, output).await,
        ArchiveCommand::Definitions(args) => definitions::show(&args, settings, output).await,
        ArchiveCommand::Repair(args) => repair::run(&args, settings, output).await,
        ArchiveCommand::Compact(args) => compact::run(&args, settings, output).await,
    }
}

async fn archiver(args: RunArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let broker = settings.broker(format!("dacapo archive {}", args.queue))?;
    let management = settings.management().cloned();
    let store = open::store(settings, Access::Write).await?;
    let mut signals = Signals::take()?;
    let blind = blind_spots(&broker, &args.bindings).await?;
    for spot in &blind {
        output.talk(&format!("note: not seen: {spot}"));
    }
    let stream = args.name.unwrap_or_else(|| StreamName::nearest(&args.queue));
    let mut registry = process::registry(settings.clock);
    register_facts(&mut registry, &stream, &args.queue, &blind);
    let metrics = Arc::new(Metrics::register(&mut registry, settings.clock));
    let keeping = management.clone().map(|management| {
        let vhost = broker.url.vhost().to_owned();
        Keeping::register(&mut registry, management, vhost, Arc::clone(&store), settings.clock)
    });
    let keeping = OptionFuture::from(keeping.map(Keeping::run));
    let limits = management.clone().map(|management| {
        let vhost = broker.url.vhost().to_owned();
        Limits::register(&mut registry, management, vhost, args.queue.clone())
    });
    let limits = OptionFuture::from(limits.map(Limits::run));
    let watching = management.map(|management| Watching::register(&mut registry, management));
    let watching = OptionFuture::from(watching.map(|watching| watching.run(&metrics)));
    let verified = watch_verified::follow(&mut registry, Arc::clone(&store));
    let serving = match args.metrics {
        None => None,
        Some(address) => {
            let metrics = Arc::clone(&metrics);
            let health: serve::Health = Arc::new(move || match metrics.health() {
                Health::Ok => Ok(()),
                Health::Failing(problem) => Err(problem),
            });
            let (bound, serving) = serve::listen(address, Arc::new(registry), health).await?;
            output.talk(&format!("metrics: http://{bound}/metrics, health: http://{bound}/health"));
            Some(serving)
        }
    };
    let config = ArchiverConfig {
        stream: stream.clone(),
        rules: args.attributes.rules(),
        roll: RollPolicy {
            bytes: settings.segment_bytes(args.roll_bytes),
            age: args.roll_age,
            ..RollPolicy::for_prefetch(args.prefetch.get())
        },
        clock: settings.clock,
        write_once: match args.single_writer {
            true => WriteOnce::SingleWriter,
            false => WriteOnce::Proven,
        },
    };
    let peer = broker.url.peer();
    let queue = AmqpSubscribe::new(
        broker,
        args.queue.clone(),
        args.bindings,
        args.prefetch,
        settings.memory.waiting(),
    );
    let bus = Queue { settings, queue };
    output.talk(&format!(
        "archiving queue `{}` on {peer} to {}, stream `{stream}`",
        args.queue,
        store.location()
    ));
    let archive = async {
        let shutdown = async {
            signals.next().await;
            output.talk("stopping: sealing what was taken");
        };
        dacapo_archiver::run(config, store, &bus, &metrics, shutdown).await
    };
    // All go on until the archiver ends; one that was not asked for is over at once.
    let serving = OptionFuture::from(serving);
    let beside = futures::future::join5(serving, watching, keeping, limits, verified);
    tokio::pin!(archive);
    let totals = tokio::select! {
        totals = &mut archive => totals?,
        _ = beside => archive.await?,
    };
    let json = json!({
        "stream": stream.as_str(),
        "events": totals.events,
        "segments": totals.segments,
        "bytes": totals.bytes,
        "skipped_replayed": totals.skipped,
        "parked": totals.parked,
    });
    output.result(&json, || {
        format!(
            "archived {} in {} ({}), {} replayed ones skipped, {} parked ones among them\n",
            format::counted(totals.events, "event"),
            format::counted(totals.segments, "segment"),
            format::bytes(totals.bytes),
            format::number(totals.skipped),
            format::number(totals.parked),
        )
    })?;
    Ok(Exit::Success)
}

/// Registers what does not change while the archiver runs.
fn register_facts(registry: &mut Registry, stream: &StreamName, queue: &str, blind: &[BlindSpot]) {
    let names = [("stream", stream.to_string()), ("queue", queue.to_owned())];
    registry.register(
        "dacapo_archiver",
        "Which stream it writes and which queue it empties; the archivers of one stream stand in for each other",
        Info::new(names),
    );
    let caught = |spot: &&BlindSpot| matches!(spot, BlindSpot::WildcardOnDirect(_));
    registry.register(
        "dacapo_archiver_blind_bindings",
        "Bindings asked for with a wildcard on a direct exchange, which takes it literally; what they were to catch is not archived",
        ConstGauge::new(i64::try_from(blind.iter().filter(caught).count()).unwrap_or(i64::MAX)),
    );
}

async fn ls(args: &LsArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let store = open::store(settings, Access::Read).await?;
    let (index, report) = open::synced_index(settings, &store, output, "archive ls").await?;
    let wanted = |stream: &StreamName| args.stream.as_ref().is_none_or(|only| only == stream);
    let (mut streams, mut segments) = (Vec::new(), Vec::new());
    let (mut stream_rows, mut segment_rows) = (Vec::new(), Vec::new());
    for progress in index.streams()? {
        if !wanted(&progress.stream) {
            continue;
        }
        let (mut bytes, mut times) = (0, None);
        for summary in index.segments_of(&progress.stream) {
            let summary = summary?;
            bytes += summary.size;
            let (min, max) = times.unwrap_or((summary.time_min, summary.time_max));
            times = Some((min.min(summary.time_min), max.max(summary.time_max)));
            segments.push(json!({
                "segment": summary.key.as_str(),
                "stream": summary.stream.as_str(),
                "first_sequence": summary.first,
                "last_sequence": summary.last,
                "events": summary.events(),
                "bytes": summary.size,
                "first_time": summary.time_min.to_string(),
                "last_time": summary.time_max.to_string(),
                "digest": summary.digest.to_string(),
            }));
            if args.segments {
                segment_rows.push(vec![
                    format::number(summary.events()),
                    format::bytes(summary.size),
                    summary.time_min.to_string(),
                    summary.time_max.to_string(),
                    summary.key.to_string(),
                ]);
            }
        }
        let (first, last) = times.map_or((Value::Null, Value::Null), |(first, last)| {
            (first.to_string().into(), last.to_string().into())
        });
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        stream_rows.push(vec![
            progress.stream.to_string(),
            format::number(progress.events),
            format::number(progress.segments),
            format::bytes(bytes),
            text(&first),
            text(&last),
        ]);
        streams.push(json!({
            "stream": progress.stream.as_str(),
            "events": progress.events,
            "segments": progress.segments,
            "bytes": bytes,
            "last_sequence": progress.last,
            "first_time": first,
            "last_time": last,
        }));
    }
    let mut json = json!({ "archive": store.location(), "streams": streams, "complete": report.is_complete() });
    if args.segments {
        json["segments"] = segments.into();
    }
    output.result(&json, || match (stream_rows.is_empty(), args.segments) {
        (true, _) => format!("no events in {}\n", store.location()),
        (false, true) => {
            format::table(&["EVENTS", "BYTES", "FIRST", "LAST", "SEGMENT"], &segment_rows)
        }
        (false, false) => {
            format::table(&["STREAM", "EVENTS", "SEGMENTS", "BYTES", "FIRST", "LAST"], &stream_rows)
        }
    })?;
    Ok(open::exit_of(&report))
}

async fn check(args: &VerifyArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let expected = match &args.expect_heads {
        Some(path) => read_heads(path)?,
        None => Vec::new(),
    };
    let store = open::store(settings, Access::Read).await?;
    let mut steps = Steps::new(output, "verifying (MB)");
    let report = verify(Arc::clone(&store), &expected, |progress| {
        steps.at(progress.bytes / 1_000_000, progress.bytes_all / 1_000_000);
    })
    .await?;
    steps.finish();
    if report.streams == 0 && report.problems.is_empty() {
        // Not sound: nothing was proven, and a wrong prefix looks like that.
        return Err(open::empty(&store).into());
    }
    let sound = report.problems.is_empty();
    if let Some(path) = &args.write_heads {
        if sound {
            write_heads(path, &report.heads)?;
        } else {
            output.talk("the heads were not written, because the archive is damaged");
        }
    }
    let at = settings.now();
    if sound && let Err(error) = verified::record(&*store, at, &report).await {
        output.talk(&format!("note: not recorded for the alarms: {}", words(&error)));
    }
    let json = json!({
        "verified_at": at.to_string(),
        "streams": report.streams,
        "segments": report.segments,
        "compacted": report.compacted,
        "outputs": report.outputs,
        "repeats_dropped": report.dropped,
        "events": report.events,
        "bytes": report.bytes,
        "problems": report.problems.iter().map(finding_json).collect::<Vec<_>>(),
        "notes": report.notes.iter().map(finding_json).collect::<Vec<_>>(),
    });
    output.result(&json, || {
        let mut text = String::new();
        for finding in &report.notes {
            text += &format!("note     {}: {}\n", finding.key, finding.problem);
        }
        for finding in &report.problems {
            text += &format!("DAMAGED  {}\n", finding_text(finding));
        }
        let verdict = match report.problems.len() {
            0 => "sound".to_owned(),
            count => format!("DAMAGED: {}", format::counted(count as u64, "problem")),
        };
        if report.outputs > 0 {
            text += &format!(
                "compacted: {} stand for {} that are gone; {} were dropped\n",
                format::counted(report.outputs, "output"),
                format::counted(report.compacted, "segment"),
                format::counted(report.dropped, "exact repeat"),
            );
        }
        text + &format!(
            "{verdict}; {} in {} of {}, {}\n",
            format::counted(report.events, "event"),
            format::counted(report.segments, "segment"),
            format::counted(report.streams, "stream"),
            format::bytes(report.bytes),
        )
    })?;
    if !sound {
        output.talk("`dacapo archive repair --dry-run` shows what can be rebuilt");
    }
    Ok(if sound { Exit::Success } else { Exit::Damaged })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "segment": finding.key,
        "problem": finding.problem,
        "first_sequence": finding.sequences.map(|(first, _)| first),
        "last_sequence": finding.sequences.map(|(_, last)| last),
    })
}

fn finding_text(finding: &Finding) -> String {
    let sequences = finding
        .sequences
        .map_or(String::new(), |(first, last)| format!(", sequences {first} to {last}"));
    format!("{}: {}{sequences}", finding.key, finding.problem)
}

/// A heads file is a JSON array of head objects.
fn read_heads(path: &Path) -> anyhow::Result<Vec<Head>> {
    let unreadable = |problem: String| {
        Failure::configuration(format!(
            "`{}` is not a file of --write-heads: {problem}",
            path.display()
        ))
    };
    let text = std::fs::read(path).map_err(|error| Failure::file("read", path, &error))?;
    let values: Vec<Value> =
        serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    let key: ObjectKey = "heads".parse()?;
    let head = |value: &Value| {
        Head::from_bytes(&key, value.to_string().as_bytes())
            .map_err(|error| unreadable(error.to_string()))
    };
    Ok(values.iter().map(head).collect::<Result<_, _>>()?)
}

fn write_heads(path: &Path, heads: &[Head]) -> anyhow::Result<()> {
    let values: Vec<Value> = heads
        .iter()
        .map(|head| serde_json::from_slice(&head.to_bytes()))
        .collect::<Result<_, _>>()?;
    let text = serde_json::to_vec_pretty(&values)?;
    std::fs::write(path, text).map_err(|error| Failure::file("write", path, &error).into())
}
