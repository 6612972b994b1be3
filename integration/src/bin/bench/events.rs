//! The events that are archived and replayed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use dacapo_integration::campaign::schedule::Dice;
use serde_json::json;

/// The first event's time, in milliseconds; the others follow by one millisecond each, so that a
/// range of times selects a number of events.
pub(crate) const FIRST_MS: u64 = 1_700_000_000_000;

/// Writes the events, as hard to compress as real ones: ids and numbers vary in every one, words
/// come from a vocabulary. Returns the bytes of all bodies.
pub(crate) fn generate(path: &Path, events: u64, body_bytes: usize) -> Result<u64> {
    /// Of one line of a body, about.
    const LINE_BYTES: usize = 150;
    const WORDS: [&str; 24] = [
        "order", "customer", "street", "parcel", "invoice", "amount", "blue", "garden", "station",
        "winter", "paper", "silver", "delivery", "north", "bread", "window", "coffee", "engine",
        "letter", "summer", "bicycle", "market", "copper", "evening",
    ];
    let mut file = BufWriter::new(File::create(path)?);
    let (mut dice, mut bytes) = (Dice::new(42), 0);
    for number in 0..events {
        let mut lines = Vec::new();
        let mut size = 0;
        while size + LINE_BYTES / 2 < body_bytes {
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
