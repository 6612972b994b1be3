//! Numbers, sizes, times and tables as people read them. Pure.

use std::fmt::Write as _;
use std::time::Duration;

/// Returns a number with a thin group of thousands: `1 234 567`.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns a number of things: `1 segment`, `2 segments`.
pub fn counted(value: u64, thing: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", number(value))
}

/// Returns a count that may be an estimate: `about 1 200`.
pub fn count(value: u64, exact: bool) -> String {
    match exact {
        true => number(value),
        false => format!("about {}", number(value)),
    }
}

/// Returns a size: `12.3 MB`, in powers of 1,000.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut size, mut unit) = (value as f64, 0);
    while size >= 999.5 && unit + 1 < UNITS.len() {
        size /= 1_000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value} B"),
        _ => format!("{size:.1} {}", UNITS[unit]),
    }
}

/// Returns a length of time: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn seconds(value: f64) -> String {
    let whole = value.max(0.0).round() as u64;
    match whole {
        _ if value < 0.05 => "under 0.1 s".to_owned(),
        _ if value < 9.95 => format!("{value:.1} s"),
        0..=119 => format!("{whole} s"),
        120..=7_199 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}

/// Returns a duration as [`seconds`] does.
pub fn duration(value: Duration) -> String {
    seconds(value.as_secs_f64())
}

/// Returns rows in columns as wide as their widest cell, the last one ragged.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if at + 1 == row.len() {
                text.push_str(cell);
            } else {
                write!(text, "{cell:<width$}  ").expect("a String takes everything");
            }
        }
        text.push('\n');
    }
    text
}

/// Returns a text whose characters all stay where they are on a terminal: control characters, but
/// for ends of lines and tabs, and those that turn the direction of writing are middle dots.
///
/// Ids and keys are written by whoever publishes, and come back in tables and messages.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if moves(c) && c != '\n' && c != '\t' { '·' } else { c }).collect()
}

/// Whether a character can make a terminal show something else, or elsewhere, than its place in
/// the text: controls, and the marks, embeddings, overrides and isolates of the Unicode
/// Bidirectional Algorithm (UAX #9, section 2).
fn moves(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || turns
}

/// Returns the beginning of a text on one line, with a middle dot for every character that would
/// move others.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line: String =
        text.chars().take(most).map(|c| if moves(c) { '·' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_readable() {
        assert_eq!(number(1_234_567).replace('\u{202f}', " "), "1 234 567");
        assert_eq!(number(12), "12");
        assert_eq!(
            (bytes(0), bytes(999), bytes(1_000)),
            ("0 B".into(), "999 B".into(), "1.0 kB".into())
        );
        assert_eq!(bytes(60_000_000_000), "60.0 GB");
        assert_eq!(seconds(0.25), "0.2 s");
        assert_eq!(seconds(200.0), "3 min 20 s");
        assert_eq!(seconds(7_500.0), "2 h 5 min");
    }

    #[test]
    fn what_comes_from_outside_cannot_move_the_cursor() {
        assert_eq!(one_line("a\x1b[2Jb\nc", 10), "a·[2Jb·c");
        assert_eq!(one_line("abcdef", 3), "abc…");
        assert_eq!(one_line("a\u{202e}fdp.exe\u{2066}", 20), "a·fdp.exe·");
        assert_eq!(harmless("a\x1b]0;t\x07\r\nb\tc\u{202e}\u{9b}d"), "a·]0;t··\nb\tc··d");
        assert_eq!(harmless("1\u{202f}234 שלום"), "1\u{202f}234 שלום");
    }
}
