//! What a campaign says: a line for each fault, a table by kind, and how to run it again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use super::kind::{Kind, Side};
use super::schedule::Fault;

/// The most findings that are told of one fault: the first say what is wrong.
const FINDINGS_MAX: usize = 8;

/// How a fault was stood.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What was in flight.
    pub evidence: Option<String>,
    /// What is wrong; nothing if nothing is.
    pub findings: Vec<String>,
    /// How long it took; nothing if it did not come to its end.
    pub time: Duration,
}

impl Verdict {
    /// Returns that of a fault after which the system did not recover.
    pub fn broken(error: anyhow::Error) -> Self {
        Verdict { findings: vec![format!("{error:#}")], ..Verdict::default() }
    }
}

/// Tells how long a fault took.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins to count.
    #[expect(clippy::disallowed_methods, reason = "tells a person how long something took")]
    pub fn start() -> Self {
        Stopwatch(Instant::now())
    }

    /// Returns the time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// How a campaign is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Lines and a table.
    Text,
    /// JSON, one object a fault and one at the end.
    Json,
}

/// What was told so far.
#[derive(Debug)]
pub struct Report {
    form: Form,
    seed: u64,
    asked: u32,
    only: Vec<Kind>,
    watch: Stopwatch,
    rows: BTreeMap<(Kind, Side), Row>,
    /// Worlds in which something was found only at their end.
    ended_badly: u32,
    failed_worlds: Vec<u32>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Row {
    struck: u32,
    failed: u32,
    time: Duration,
}

impl Report {
    /// Begins one.
    pub fn new(form: Form, seed: u64, asked: u32, only: Vec<Kind>) -> Self {
        let (rows, watch) = (BTreeMap::new(), Stopwatch::start());
        Report { form, seed, asked, only, watch, rows, ended_badly: 0, failed_worlds: Vec::new() }
    }

    /// Tells of a fault.
    #[expect(clippy::print_stdout, reason = "this is what the campaign prints")]
    pub fn tell(&mut self, world: u32, fault: &Fault, verdict: Verdict) {
        let Fault { number, kind, side, .. } = *fault;
        let time = verdict.time;
        let row = self.rows.entry((kind, side)).or_default();
        row.struck += 1;
        row.time += time;
        let ok = verdict.findings.is_empty();
        if !ok {
            row.failed += 1;
            self.failed_worlds.push(world);
        }
        let seconds = time.as_secs_f64();
        match self.form {
            Form::Text => {
                let evidence = verdict.evidence.as_deref().unwrap_or("-");
                let word = if ok { "ok" } else { "FAILED" };
                let (seed, asked) = (self.seed, self.asked);
                println!(
                    "seed {seed} fault {number}/{asked} world {world} {kind:<16} {side:<8} {word:<6} {seconds:5.1} s  {evidence}"
                );
                for finding in verdict.findings.iter().take(FINDINGS_MAX) {
                    println!("    {finding}");
                }
            }
            Form::Json => println!(
                "{}",
                json!({
                    "seed": self.seed, "fault": number, "world": world, "kind": kind.name(),
                    "side": side.to_string(), "evidence": verdict.evidence,
                    "findings": verdict.findings, "seconds": seconds,
                })
            ),
        }
    }

    /// Tells what the last look at a world found; nothing if it found nothing.
    #[expect(clippy::print_stdout, reason = "this is what the campaign prints")]
    pub fn tell_end(&mut self, world: u32, verdict: Verdict) {
        if verdict.findings.is_empty() {
            return;
        }
        self.ended_badly += 1;
        self.failed_worlds.push(world);
        match self.form {
            Form::Text => {
                println!("seed {} world {world} FAILED at its end", self.seed);
                for finding in verdict.findings.iter().take(FINDINGS_MAX) {
                    println!("    {finding}");
                }
            }
            Form::Json => {
                println!("{}", json!({ "world": world, "findings": verdict.findings }));
            }
        }
    }

    /// Returns whether a fault was not stood.
    pub fn has_failed(&self) -> bool {
        !self.failed_worlds.is_empty()
    }

    /// Tells the end, and returns whether all `planned` faults struck and nothing failed.
    #[expect(clippy::print_stdout, reason = "this is what the campaign prints")]
    pub fn finish(&self, planned: usize) -> bool {
        let passed = !self.has_failed() && self.struck() as usize == planned;
        match self.form {
            Form::Text => println!("{}", self.table(planned)),
            Form::Json => println!("{}", self.summary(passed)),
        }
        passed
    }

    fn struck(&self) -> u32 {
        self.rows.values().map(|row| row.struck).sum()
    }

    fn failed(&self) -> u32 {
        self.rows.values().map(|row| row.failed).sum::<u32>() + self.ended_badly
    }

    fn table(&self, planned: usize) -> String {
        let mut text = String::from(
            "\n| fault | aimed at | struck | failed | seconds each |\n|---|---|--:|--:|--:|\n",
        );
        for ((kind, side), row) in &self.rows {
            let each = row.time.as_secs_f64() / f64::from(row.struck);
            writeln!(text, "| {kind} | {side} | {} | {} | {each:.1} |", row.struck, row.failed)
                .expect("a string takes everything");
        }
        let (struck, failed) = (self.struck(), self.failed());
        let (seed, seconds) = (self.seed, self.watch.elapsed().as_secs());
        write!(
            text,
            "\n{struck} of {planned} faults of seed {seed} in {seconds} s: {failed} failed"
        )
        .expect("a string takes everything");
        let mut worlds = self.failed_worlds.clone();
        worlds.sort_unstable();
        worlds.dedup();
        for world in worlds {
            let again = self.again(world);
            write!(text, "\nagain: {again}").expect("a string takes everything");
        }
        text
    }

    fn summary(&self, passed: bool) -> serde_json::Value {
        let row = |((kind, side), row): (&(Kind, Side), &Row)| {
            json!({
                "kind": kind.name(), "side": side.to_string(), "struck": row.struck,
                "failed": row.failed, "seconds": row.time.as_secs_f64(),
            })
        };
        let again: Vec<String> =
            self.failed_worlds.iter().map(|world| self.again(*world)).collect();
        json!({
            "seed": self.seed, "struck": self.struck(), "failed": self.failed(), "passed": passed,
            "seconds": self.watch.elapsed().as_secs(),
            "kinds": self.rows.iter().map(row).collect::<Vec<_>>(), "again": again,
        })
    }

    /// Returns the command that does the same to a world.
    fn again(&self, world: u32) -> String {
        let only: String = self.only.iter().map(|kind| format!(" --only {kind}")).collect();
        let (seed, asked) = (self.seed, self.asked);
        format!("./integration/campaign --seed {seed} --faults {asked}{only} --world {world}")
    }
}
