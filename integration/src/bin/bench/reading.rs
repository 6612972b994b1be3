//! What reads an archive without a bus: scans, and the events of one key.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dacapo_integration::services;
use serde_json::Value;

use crate::archive::{Archive, bytes_in};
use crate::report::{Bar, Report, Row};
use crate::timed;
use crate::{EVENTS, events};

/// What `zstd` is given at a time to be compressed by itself.
const BLOCK_BYTES: &str = "1M";

/// An archive in which one key has some events in some segments, one a part.
const KEY: &str = "the-one";
const KEYED_PARTS: u64 = 25;
const KEYED_PART_EVENTS: u64 = 4_000;
const KEYED_PARTS_WITH: u64 = 10;
const KEYED_EVENTS_A_PART: u64 = 4;

pub(crate) fn measure(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    beside_zstd(archive, runs, report)?;
    on_s3(archive, runs, report)?;
    one_key(archive, report)?;
    report.rows.extend(scans(archive)?);
    Ok(())
}

/// A scan that decodes everything and asks for the type of each event, against `zstd -d` of the
/// same bodies, in seconds of one processor.
fn beside_zstd(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let bodies = archive.path("bodies");
    let mut file = File::create(&bodies)?;
    for body in events::bodies(&archive.folder.join("events.ndjson"))? {
        file.write_all(&body?)?;
    }
    let each = "split --bytes \"$1\" --filter 'zstd -q -3 -c' \"$2\" > \"$2.zst\"";
    timed::run(Path::new("bash"), &["-c", each, "split", BLOCK_BYTES, &bodies], &archive.folder)?;
    let (packed, mut values) = (format!("{bodies}.zst"), Vec::new());
    for _ in 0..runs {
        let args = ["-q", "-d", "-c", &packed, "-o", "/dev/null", "-f"];
        let plain = timed::run(Path::new("zstd"), &args, &archive.folder)?;
        let scan = archive.inside(&["scan", &archive.path("archive")])?;
        values.push(plain.cpu_seconds / scan.cpu_seconds);
    }
    let name = "scan of all bodies: CPU against zstd -d".to_owned();
    report.add(name, Bar::AtLeast(0.6), values);
    Ok(())
}

/// A scan on S3 against parallel range GETs of the same objects, or against what one processor takes
/// to decode them where that is longer.
fn on_s3(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let place = format!("s3://{}/{}", services::s3().bucket, services::unique("bench"));
    archive.import("events.ndjson", &place)?;
    let mut values = Vec::new();
    for _ in 0..runs {
        let fetched = archive.inside(&["fetch", &place])?;
        let decoded = archive.inside(&["scan", &archive.path("archive")])?;
        let scan = archive.inside(&["scan", &place])?;
        let limit = fetched.wall_seconds.max(decoded.cpu_seconds);
        values.push(limit / scan.wall_seconds);
    }
    let name = "scan on S3: rate against range GETs or decoding".to_owned();
    report.add(name, Bar::AtLeast(0.8), values);
    Ok(())
}

/// The events of one key among many, by what is read for them.
fn one_key(archive: &Archive, report: &mut Report) -> Result<()> {
    let place = archive.path("keyed");
    for part in 0..KEYED_PARTS {
        let first = part * KEYED_PART_EVENTS;
        let key =
            |number: u64| match part < KEYED_PARTS_WITH && number < first + KEYED_EVENTS_A_PART {
                true => KEY.to_owned(),
                false => format!("order-{}", number / 4),
            };
        let numbers = first..first + KEYED_PART_EVENTS;
        events::generate(&archive.folder.join("keyed.ndjson"), numbers, 4_000, key)?;
        let (input, name) = (archive.path("keyed.ndjson"), format!("part-{part}"));
        archive.dacapo_on(&place, &["archive", "import", &input, "--name", &name])?;
    }
    let all = bytes_in(&Path::new(&place).join("segments"))? as f64;
    archive.dacapo_on(&place, &["index", "sync"])?;
    let receipt = replayed(archive, &place)?;
    let wanted = KEYED_PARTS_WITH * KEYED_EVENTS_A_PART;
    ensure!(receipt["confirmed"] == wanted, "not {wanted} events of the key: {receipt}");
    let read = receipt["bytes_read"].as_f64().context("a receipt says what was read")?;
    let name = |what| format!("one key: bytes read against {what}");
    report.add(name("the archive"), Bar::AtMost(0.03), vec![read / all]);
    report.add(name("one segment"), Bar::AtMost(1.0), vec![read / all * KEYED_PARTS as f64]);
    Ok(())
}

fn replayed(archive: &Archive, place: &str) -> Result<Value> {
    let to = archive.path("replayed.ndjson");
    archive.dacapo_on(place, &["replay", "--json", "--key", KEY, "--to-file", &to])?;
    archive.said()
}

fn scans(archive: &Archive) -> Result<Vec<Row>> {
    let scans: [(&str, &[&str]); 3] = [
        ("scan, attributes", &["plan", "--exact", "--header", "no=1"]),
        ("scan, bodies and CEL", &["plan", "--exact", "--where", "body.amount < 0"]),
        ("scan to JSON lines", &["replay", "--to-file", "-"]),
    ];
    let row = |(name, args): (&str, &[&str])| {
        Ok(Row { name: name.to_owned(), events: EVENTS, cost: archive.dacapo(args)? })
    };
    scans.into_iter().map(row).collect()
}
