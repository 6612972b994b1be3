//! The events that are archived and replayed.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use dacapo_integration::campaign::schedule::Dice;
use serde_json::{Value, json};

/// The first event's time, in milliseconds; the others follow by one millisecond each, so that a
/// range of times selects a number of events.
pub(crate) const FIRST_MS: u64 = 1_700_000_000_000;

/// The types of the events.
pub(crate) const KINDS: [&str; 3] = ["order.placed", "order.paid", "order.shipped"];

/// Writes the events, as hard to compress as real ones: ids and numbers vary in every one, words
/// come from a vocabulary, names and some values are always the same. Returns the bytes of all
/// bodies.
pub(crate) fn generate(
    path: &Path,
    numbers: Range<u64>,
    body_bytes: usize,
    key: impl Fn(u64) -> String,
) -> Result<u64> {
    /// Of one line of a body, about.
    const LINE_BYTES: usize = 220;
    const WORDS: [&str; 24] = [
        "order", "customer", "street", "parcel", "invoice", "amount", "blue", "garden", "station",
        "winter", "paper", "silver", "delivery", "north", "bread", "window", "coffee", "engine",
        "letter", "summer", "bicycle", "market", "copper", "evening",
    ];
    let mut file = BufWriter::new(File::create(path)?);
    let (mut dice, mut bytes) = (Dice::new(42 + numbers.start), 0);
    for number in numbers {
        let mut lines = Vec::new();
        let mut size = 0;
        while size + LINE_BYTES / 2 < body_bytes {
            let words: Vec<&str> = (0..8).map(|_| dice.choose(&WORDS)).collect();
            let line = json!({
                "sku": format!("{:08x}", dice.roll() as u32),
                "price": {
                    "amount": dice.below(100_000) as f64 / 100.0,
                    "currency": dice.choose(&["EUR", "EUR", "EUR", "SEK", "DKK"]),
                },
                "count": dice.below(9),
                "warehouse": dice.choose(&["north-1", "north-2", "south-1"]),
                "tax_percent": dice.choose(&[7, 19]),
                "reserved": true,
                "note": words.join(" "),
            });
            size += line.to_string().len() + 1;
            lines.push(line);
        }
        let body = json!({ "order": number, "amount": dice.below(1_000_000), "lines": lines });
        bytes += body.to_string().len() as u64;
        let kind = dice.choose(&KINDS);
        let event = json!({
            "id": format!("{:016x}{:016x}", dice.roll(), dice.roll()),
            "time": FIRST_MS + number,
            "type": kind,
            "key": key(number),
            "exchange": "shop",
            "routing_key": "orders.eu",
            "body": body,
        });
        writeln!(file, "{event}")?;
    }
    file.flush()?;
    Ok(bytes)
}

/// Returns the bodies of the events in a file, one after the other.
pub(crate) fn bodies(path: &Path) -> Result<impl Iterator<Item = Result<Vec<u8>>> + use<>> {
    let lines = BufReader::new(File::open(path)?).lines();
    Ok(lines.map(|line| {
        let event: Value = serde_json::from_str(&line?)?;
        Ok(event["body"].to_string().into_bytes())
    }))
}
