//! `bench`: what dacapo costs on this machine beside the leanest client and the plainest tools, in
//! one run.
//!
//! Started by `just bench`, which builds it in release beside the `dacapo` that it measures and
//! gives it private servers. Asserts nothing: prints each measure beside its bar, and writes
//! `target/bench/report.json`. On a shared machine only ratios within one run mean anything, so
//! what is compared is measured in pairs, one after the other, as often as `--runs` says; what goes to
//! or comes from a queue has a broker of its own each time.
//! What the measures are, and what they were: docs/performance.md.

mod archive;
mod archiving;
mod broker;
mod events;
mod indexing;
mod inside;
mod reading;
mod replaying;
mod report;
mod timed;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dacapo_integration::reference;

use archive::Archive;
use report::Report;

/// Events of an archive: enough for ten seconds at the fastest pace.
const EVENTS: u64 = 200_000;

/// Pairs of each measure, if `--runs` does not say otherwise.
const RUNS: usize = 5;

/// A group of measures; each adds its own to the report.
type Group = fn(&Archive, usize, &mut Report) -> Result<()>;

/// What `--only` takes.
const GROUPS: [(&str, Group); 5] = [
    ("replaying", replaying::measure),
    ("sizes", replaying::measure_sizes),
    ("reading", reading::measure),
    ("archiving", archiving::measure),
    ("indexing", indexing::measure),
];

const USAGE: &str = "usage: bench [--runs N] [--only replaying|sizes|reading|archiving|indexing]…";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // The other side of a pair, as a process of its own.
        ["publish", url, queue, events, bytes] => {
            reference::publish(url, queue, events.parse()?, bytes.parse()?)
        }
        ["publish-nowhere", url, exchange, events, bytes] => {
            reference::publish_nowhere(url, exchange, events.parse()?, bytes.parse()?)
        }
        ["sink", url, exchange, events, bytes] => {
            inside::sink(url, exchange, events.parse()?, bytes.parse()?)
        }
        ["consume", url, queue, events] => reference::consume(url, queue, events.parse()?),
        ["scan", archive] => inside::scan(archive),
        ["segments", archive, input] => indexing::segments(archive, input),
        ["fetch", archive] => inside::fetch(archive),
        _ => {
            let (runs, only) = parse(&args)?;
            bench(runs, &only)
        }
    }
}

fn parse<'a>(mut args: &[&'a str]) -> Result<(usize, Vec<&'a str>)> {
    let (mut runs, mut only) = (RUNS, Vec::new());
    while let [flag, value, rest @ ..] = args {
        match *flag {
            "--runs" => runs = value.parse().context("--runs takes a number")?,
            "--only" if GROUPS.iter().any(|(name, _)| name == value) => only.push(*value),
            _ => bail!(USAGE),
        }
        args = rest;
    }
    if runs == 0 || !args.is_empty() {
        bail!(USAGE);
    }
    Ok((runs, only))
}

fn bench(runs: usize, only: &[&str]) -> Result<()> {
    let folder = PathBuf::from("target/bench");
    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let archive = Archive::make(&folder, "4 KB", EVENTS, 4_000)?;
    let mut report = Report { compression: archive.compression()?, ..Report::default() };
    for (name, measure) in GROUPS {
        if only.is_empty() || only.contains(&name) {
            // What was measured before it failed is told all the same.
            if let Err(error) = measure(&archive, runs, &mut report) {
                report.tell(&folder)?;
                return Err(error.context(format!("failed in `{name}`")));
            }
        }
    }
    report.tell(&folder)
}
