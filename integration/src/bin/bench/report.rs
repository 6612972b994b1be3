//! What is printed and written at the end.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::timed::Cost;

/// What a measure is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// So far from 1 at the most.
    Within(f64),
    /// Told to understand the others.
    None,
}

impl Bar {
    fn is_met(self, value: f64) -> bool {
        match self {
            Bar::AtLeast(bar) => value >= bar,
            Bar::AtMost(bar) => value <= bar,
            Bar::Within(bar) => (value - 1.0).abs() <= bar,
            Bar::None => true,
        }
    }

    fn text(self) -> String {
        match self {
            Bar::AtLeast(bar) => format!("≥ {bar}"),
            Bar::AtMost(bar) => format!("≤ {bar}"),
            Bar::Within(bar) => format!("1 ± {bar}"),
            Bar::None => String::new(),
        }
    }
}

/// One measure, with one value of each run.
#[derive(Debug)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) bar: Bar,
    pub(crate) values: Vec<f64>,
}

impl Measure {
    /// Returns the smallest value, the one in the middle, and the largest.
    fn spread(&self) -> (f64, f64, f64) {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
    }
}

/// What one command cost, without anything to hold it against.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) events: u64,
    pub(crate) cost: Cost,
}

#[derive(Default)]
pub(crate) struct Report {
    pub(crate) measures: Vec<Measure>,
    pub(crate) rows: Vec<Row>,
    /// Bytes of the bodies to bytes of the archive.
    pub(crate) compression: f64,
}

impl Report {
    /// Prints the report, and writes it to `report.json`.
    #[expect(clippy::print_stdout, reason = "the report of a bench is its output")]
    pub(crate) fn tell(&self, folder: &Path) -> Result<()> {
        println!("bodies compressed {:.1} times", self.compression);
        println!("{:<62} {:>8} {:>8} {:>17}", "", "bar", "median", "spread");
        for measure in &self.measures {
            let (min, median, max) = measure.spread();
            let verdict = if measure.bar.is_met(median) { "" } else { "  NOT MET" };
            let spread = format!("{min:.2} to {max:.2}");
            let (name, bar) = (&measure.name, measure.bar.text());
            println!("{name:<62} {bar:>8} {median:>8.2} {spread:>17}{verdict}");
        }
        println!("{:<62} {:>8} {:>22}", "", "events/s", "CPU µs an event");
        for Row { name, events, cost } in &self.rows {
            println!("{name:<62} {:>8.0} {:>22.1}", cost.rate(*events), cost.cpu_micros(*events));
        }
        let path = folder.join("report.json");
        fs::write(&path, serde_json::to_vec_pretty(&self.to_json())?)?;
        println!("written to {}", path.display());
        Ok(())
    }

    fn to_json(&self) -> Value {
        let measures = self.measures.iter().map(|measure| {
            let (min, median, max) = measure.spread();
            json!({
                "name": measure.name,
                "bar": measure.bar.text(),
                "is_met": measure.bar.is_met(median),
                "median": median,
                "min": min,
                "max": max,
                "values": measure.values,
            })
        });
        let rows = self.rows.iter().map(|Row { name, events, cost }| {
            json!({
                "name": name,
                "events": events,
                "wall_seconds": cost.wall_seconds,
                "cpu_seconds": cost.cpu_seconds,
                "events_per_second": cost.rate(*events),
                "cpu_micros_per_event": cost.cpu_micros(*events),
            })
        });
        json!({
            "compression_ratio": self.compression,
            "measures": measures.collect::<Vec<_>>(),
            "costs": rows.collect::<Vec<_>>(),
        })
    }
}
