//! `bench`: what import, scan and replay cost on this machine, in one run.
//!
//! Started by `just bench`, which builds it in release beside the `dacapo` that it measures and
//! gives it private servers. Asserts nothing: prints, and writes `target/bench/report.json`.
//! On a shared machine only ratios within one run mean anything.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use dacapo_integration::campaign::schedule::Dice;
use dacapo_integration::witness::Queue;
use serde_json::{Value, json};

/// Events in the archive: some 160 MB of bodies, enough to make start-up vanish.
const EVENTS: u64 = 40_000;

/// Bytes of a body, about.
const BODY_BYTES: usize = 4_000;

/// The first event's time, in milliseconds; the others follow by one millisecond each, so that a
/// range of times selects a number of events.
const FIRST_MS: u64 = 1_700_000_000_000;

/// Paces that are measured, in events a second, each for [`PACED_SECONDS`].
const PACES: [u64; 2] = [500, 5_000];

/// How long a paced replay runs.
const PACED_SECONDS: u64 = 8;

fn main() -> Result<()> {
    let folder = PathBuf::from("target/bench");
    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    fs::create_dir_all(&folder)?;
    let input = folder.join("events.ndjson");
    let bytes = generate(&input)?;

    let bench = Bench { folder: folder.clone() };
    let import =
        bench.run("import", EVENTS, &["archive", "import", "target/bench/events.ndjson"])?;
    let stored = stored_bytes(&folder.join("archive"))?;
    let mut rows = vec![import];
    rows.push(bench.run("scan, attributes", EVENTS, &["plan", "--exact", "--header", "no=1"])?);
    rows.push(bench.run(
        "scan, bodies and CEL",
        EVENTS,
        &["plan", "--exact", "--where", "body.amount < 0"],
    )?);
    rows.push(bench.run("scan to JSON lines", EVENTS, &["replay", "--to-file", "-"])?);
    let unpaced = quorum_queue();
    rows.push(bench.run("replay, no pace", EVENTS, &["replay", "--to-queue", unpaced.name()])?);
    for pace in PACES {
        let queue = quorum_queue();
        let events = (pace * PACED_SECONDS).min(EVENTS);
        let to = time(FIRST_MS + events);
        let name = format!("replay, --rate {pace}");
        let rate = pace.to_string();
        let args = ["replay", "--to", &to, "--rate", &rate, "--to-queue", queue.name()];
        rows.push(bench.run(&name, events, &args)?);
    }
    report(&rows, bytes, stored, &folder)
}

struct Bench {
    folder: PathBuf,
}

/// One measured command.
struct Row {
    name: String,
    events: u64,
    wall_seconds: f64,
    cpu_seconds: f64,
}

impl Bench {
    /// Runs the binary once; the shell's `time` tells wall, user and system seconds.
    fn run(&self, name: &str, events: u64, args: &[&str]) -> Result<Row> {
        let folder = fs::canonicalize(&self.folder)?;
        let output = Command::new("bash")
            .arg("-c")
            .arg("TIMEFORMAT='%R %U %S'; time \"$@\" >/dev/null 2>\"$LOG\"")
            .arg("bench")
            .arg(binary()?)
            .args(args)
            .env("LOG", folder.join("log"))
            .env("DACAPO_ARCHIVE", folder.join("archive"))
            .env("DACAPO_INDEX", folder.join("index"))
            .env("DACAPO_STATE", folder.join("state"))
            .env("DACAPO_AMQP", dacapo_integration::services::amqp())
            .stdin(Stdio::null())
            .output()
            .context("failed to start bash")?;
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        ensure!(output.status.success(), "{name} failed: {log}");
        let times = String::from_utf8(output.stderr)?;
        let times: Vec<f64> = times.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [wall_seconds, user, system] = times[..] else {
            anyhow::bail!("`time` printed {times:?}");
        };
        Ok(Row { name: name.to_owned(), events, wall_seconds, cpu_seconds: user + system })
    }
}

impl Row {
    fn rate(&self) -> f64 {
        self.events as f64 / self.wall_seconds
    }

    fn cpu_micros(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.events as f64
    }
}

#[expect(clippy::print_stdout, reason = "the report of a bench is its output")]
fn report(rows: &[Row], bytes: u64, stored: u64, folder: &Path) -> Result<()> {
    let ratio = bytes as f64 / stored as f64;
    println!("{EVENTS} events of about {BODY_BYTES} bytes, compressed {ratio:.1} times");
    println!("{:<24} {:>12} {:>16}", "", "events/s", "CPU µs an event");
    for row in rows {
        println!("{:<24} {:>12.0} {:>16.1}", row.name, row.rate(), row.cpu_micros());
    }
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.name,
                "events": row.events,
                "wall_seconds": row.wall_seconds,
                "cpu_seconds": row.cpu_seconds,
                "events_per_second": row.rate(),
                "cpu_micros_per_event": row.cpu_micros(),
            })
        })
        .collect();
    let report = json!({ "events": EVENTS, "compression_ratio": ratio, "measures": rows });
    fs::write(folder.join("report.json"), serde_json::to_vec_pretty(&report)?)?;
    println!("written to {}", folder.join("report.json").display());
    Ok(())
}

fn quorum_queue() -> Queue {
    Queue::with_arguments("bench", &json!([["x-queue-type", "S", "quorum"]]))
}

#[expect(clippy::disallowed_methods, reason = "the harness says where the binary is")]
fn binary() -> Result<PathBuf> {
    let binary = std::env::var_os("DACAPO_TEST_BIN").context("run it with `just bench`")?;
    Ok(PathBuf::from(binary))
}

fn stored_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => stored_bytes(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

fn time(millis: u64) -> String {
    dacapo_event::Timestamp::from_millis(millis.cast_signed()).to_string()
}

/// Writes the events, as hard to compress as real ones: ids and numbers vary in every one, words
/// come from a vocabulary. Returns the bytes of all bodies.
fn generate(path: &Path) -> Result<u64> {
    const WORDS: [&str; 24] = [
        "order", "customer", "street", "parcel", "invoice", "amount", "blue", "garden", "station",
        "winter", "paper", "silver", "delivery", "north", "bread", "window", "coffee", "engine",
        "letter", "summer", "bicycle", "market", "copper", "evening",
    ];
    let mut file = BufWriter::new(File::create(path)?);
    let (mut dice, mut bytes) = (Dice::new(42), 0);
    for number in 0..EVENTS {
        let mut lines = Vec::new();
        let mut size = 0;
        while size < BODY_BYTES {
            let words: Vec<&str> = (0..12).map(|_| dice.choose(&WORDS)).collect();
            let line = json!({
                "sku": format!("{:08x}", dice.roll() as u32),
                "price": dice.below(100_000) as f64 / 100.0,
                "count": dice.below(9),
                "text": words.join(" "),
            });
            size += line.to_string().len() + 1;
            lines.push(line);
        }
        let body = json!({ "order": number, "amount": dice.below(1_000_000), "lines": lines });
        bytes += body.to_string().len() as u64;
        let kinds = ["order.placed", "order.paid", "order.shipped"];
        let kind = dice.choose(&kinds);
        let event = json!({
            "id": format!("{:016x}{:016x}", dice.roll(), dice.roll()),
            "time": FIRST_MS + number,
            "type": kind,
            "key": format!("order-{}", number / 4),
            "exchange": "shop",
            "routing_key": "orders.eu",
            "body": body,
        });
        writeln!(file, "{event}")?;
    }
    file.flush()?;
    Ok(bytes)
}
