//! `dacapo archive import`: files of JSON events, each a stream of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dacapo_archive::store::Store;
use dacapo_archiver::WriteOnce;
use dacapo_archiver::import::{BadLines, Field, FieldMap, ImportConfig, ImportReport, import};
use dacapo_event::StreamName;
use serde_json::{Value, json};

use crate::args::{FieldArgs, ImportArgs};
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::Output;
use crate::progress::Steps;
use crate::settings::Settings;

/// Enough of a reject file's first line to know it by; its line number and problem come first.
const REJECT_LINE_BYTES_MAX: u64 = 64 * 1024;

/// Endings that are not part of a stream's name.
const ENDINGS: [&str; 7] = [".gz", ".zst", ".zstd", ".ndjson", ".jsonl", ".json", ".txt"];

pub async fn run(args: &ImportArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    if args.files.len() > 1 && (args.name.is_some() || args.rejects.is_some()) {
        let problem = "--name and --rejects are for one file; import several one by one";
        return Err(Failure::usage(problem).into());
    }
    let fields = field_map(&args.fields)?;
    let inputs = args
        .files
        .iter()
        .map(|path| Ok((path, stream_name(path, args.name.as_ref())?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let store = open::store(settings, Access::Write).await?;
    let mut total = Totals::default();
    for (path, stream) in inputs {
        let report = import_one(path, stream, &fields, args, settings, &store, output).await?;
        total.add(path, report);
    }
    output.result(&total.to_json(), || total.text())?;
    Ok(Exit::Success)
}

async fn import_one(
    path: &Path,
    stream: StreamName,
    fields: &FieldMap,
    args: &ImportArgs,
    settings: &Settings,
    store: &Arc<dyn Store>,
    output: &Output,
) -> anyhow::Result<ImportReport> {
    let (input, size): (Box<dyn Read + Send>, u64) = match is_stdin(path) {
        true => (Box::new(std::io::stdin()), 0),
        false => {
            let open = || -> std::io::Result<_> {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                if metadata.is_dir() {
                    let problem =
                        "it is a directory; import its files one by one, each becomes a stream";
                    return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, problem));
                }
                Ok((file, metadata.len()))
            };
            let (file, size) = open().map_err(|error| Failure::file("read", path, &error))?;
            (Box::new(file), size)
        }
    };
    let rejects = args.rejects.clone().unwrap_or_else(|| default_rejects(path));
    let bad_lines = match args.skip_bad {
        false => BadLines::Stop,
        true => {
            refuse_foreign(&rejects)?;
            let file =
                File::create(&rejects).map_err(|error| Failure::file("write", &rejects, &error))?;
            BadLines::Keep(Box::new(file))
        }
    };
    let config = ImportConfig {
        input: path.display().to_string(),
        stream,
        fields: fields.clone(),
        bad_lines,
        segment_bytes: settings.segment_bytes(args.roll_bytes),
        clock: settings.clock,
        write_once: WriteOnce::Proven,
    };
    let mut steps = Steps::new(output, "importing (kB read)");
    let report = import(config, input, Arc::clone(store), |progress| {
        let mut remark = format!("{} events durable", format::number(progress.events));
        // A line to be passed over may be gigabytes made of a few bytes: it is seen to go on.
        if progress.bytes_decoded > progress.bytes_read {
            remark.push_str(&format!(", {} decompressed", format::bytes(progress.bytes_decoded)));
        }
        steps.show(progress.bytes_read / 1_000, size / 1_000, &remark);
    })
    .await?;
    steps.finish();
    match (report.skipped, args.skip_bad) {
        (0, true) => drop(std::fs::remove_file(&rejects)),
        (1.., _) => {
            let (skipped, rejects) = (format::number(report.skipped), rejects.display());
            output.talk(&format!("{skipped} lines are no events; they are in `{rejects}`"));
        }
        (0, false) => {}
    }
    Ok(report)
}

#[derive(Default)]
struct Totals {
    events: u64,
    already: u64,
    skipped: u64,
    segments: u64,
    bytes: u64,
    problems: Vec<Value>,
}

impl Totals {
    fn add(&mut self, path: &Path, report: ImportReport) {
        self.events += report.events;
        self.already += report.already;
        self.skipped += report.skipped;
        self.segments += report.segments;
        self.bytes += report.bytes;
        let input = path.display().to_string();
        self.problems.extend(report.problems.into_iter().map(|problem| {
            json!({
                "segment": Value::Null,
                "input": input,
                "line": problem.line,
                "problem": problem.problem,
            })
        }));
    }

    fn to_json(&self) -> Value {
        json!({
            "events": self.events,
            "already": self.already,
            "skipped": self.skipped,
            "segments": self.segments,
            "bytes": self.bytes,
            "problems": self.problems,
        })
    }

    fn text(&self) -> String {
        let already = match self.already {
            0 => String::new(),
            already => format!("; {} were there already", format::number(already)),
        };
        format!(
            "imported {} in {} ({}){already}\n",
            format::counted(self.events, "event"),
            format::counted(self.segments, "segment"),
            format::bytes(self.bytes),
        )
    }
}

pub(super) fn field_map(args: &FieldArgs) -> anyhow::Result<FieldMap> {
    let field = |text: &String| text.parse::<Field>();
    Ok(FieldMap {
        id: field(&args.id_field)?,
        time: field(&args.time_field)?,
        kind: field(&args.type_field)?,
        key: field(&args.key_field)?,
        exchange: field(&args.exchange_field)?,
        routing_key: field(&args.routing_key_field)?,
        headers: field(&args.headers_field)?,
        properties: field(&args.properties_field)?,
        body: field(&args.body_field)?,
        body_base64: field(&args.body_base64_field)?,
    })
}

/// Returns the name of the stream that a file becomes: that of the file without its endings.
fn stream_name(path: &Path, given: Option<&StreamName>) -> anyhow::Result<StreamName> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    if is_stdin(path) {
        let problem =
            "standard input has no name; give --name STREAM, the same when you run it again";
        return Err(Failure::usage(problem).into());
    }
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    while let Some(ending) = ENDINGS.iter().find(|ending| name.ends_with(*ending)) {
        name.truncate(name.len() - ending.len());
    }
    Ok(StreamName::nearest(&format!("import-{name}")))
}

/// Refuses to write rejected lines over a file that is not the reject file of an earlier run: it may
/// be somebody's, or the input itself.
fn refuse_foreign(rejects: &Path) -> anyhow::Result<()> {
    let Ok(file) = File::open(rejects) else { return Ok(()) };
    let mut first = String::new();
    let read = BufReader::new(file.take(REJECT_LINE_BYTES_MAX)).read_line(&mut first);
    let ours = |line: &str| line.starts_with("{\"line\":") && line.contains("\"problem\":");
    match read {
        Ok(0) => Ok(()),
        Ok(_) if ours(&first) => Ok(()),
        _ => {
            let problem = format!(
                "`{}` is there and is no reject file of an earlier import; name another (--rejects FILE)",
                rejects.display()
            );
            Err(Failure::usage(problem).into())
        }
    }
}

fn default_rejects(path: &Path) -> PathBuf {
    match is_stdin(path) {
        true => PathBuf::from("stdin.rejects.ndjson"),
        false => PathBuf::from(format!("{}.rejects.ndjson", path.display())),
    }
}

pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_after_its_file_without_endings() {
        for (path, expected) in [
            ("/data/github-webhooks.ndjson.gz", "import-github-webhooks"),
            ("orders 2026.jsonl", "import-orders-2026"),
            ("a.b.zst", "import-a.b"),
        ] {
            assert_eq!(stream_name(Path::new(path), None).unwrap().as_str(), expected);
        }
        assert!(stream_name(Path::new("-"), None).is_err());
    }
}
