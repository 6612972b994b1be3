//! `docs/selecting.md` is right: its expressions hold for its event, its times are times, and its
//! patterns match what it says.

use dacapo_event::{Event, Message, ShortStr, StreamName, Timestamp, ndjson};
use dacapo_filter::{Selection, SelectionSpec, TopicPattern, VARIABLES, parse_time};
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../../docs/selecting.md");

/// Returns the fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    DOCUMENT
        .split(fence.as_str())
        .skip(1)
        .map(|rest| rest.split("\n```").next().expect("split gives at least one part"))
        .collect()
}

/// Returns the cells of the table rows under a heading.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section =
        DOCUMENT.split(&format!("\n## {heading}\n")).nth(1).expect("the heading is there");
    let section = section.split("\n## ").next().expect("split gives at least one part");
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'))
        .skip(1)
        .map(|line| line.split(" | ").map(str::trim).collect())
        .collect()
}

/// Returns the texts in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

const COMPLETE: &str = "the event of the document is complete";

fn example() -> (StreamName, Event) {
    let [json] = blocks("json")[..] else { panic!("one event") };
    let json: Value = serde_json::from_str(json).expect(COMPLETE);
    let text = |name: &str| json[name].as_str().expect(COMPLETE);
    let object = |name: &str| json[name].as_object().expect(COMPLETE);
    let mut properties = ndjson::properties_from_json(object("properties")).expect(COMPLETE);
    properties.headers = Some(ndjson::table_from_json(object("headers")).expect(COMPLETE));
    let event = Event {
        sequence: json["sequence"].as_u64().expect(COMPLETE),
        archived_at: text("archived_at").parse().expect(COMPLETE),
        time: text("time").parse().expect(COMPLETE),
        id: text("id").to_owned(),
        kind: text("type").to_owned(),
        key: Some(text("key").to_owned()),
        message: Message {
            exchange: ShortStr::try_from(text("exchange")).expect(COMPLETE),
            routing_key: ShortStr::try_from(text("routing_key")).expect(COMPLETE),
            properties,
            body: text("body").to_owned().into(),
        },
    };
    (text("stream").parse().expect(COMPLETE), event)
}

#[test]
fn every_expression_holds_for_the_event_of_the_document() {
    let (stream, event) = example();
    let expressions = blocks("cel");
    assert!(expressions.len() > 10, "the examples are found");
    for expression in expressions {
        let spec =
            SelectionSpec { where_: Some(expression.to_owned()), ..SelectionSpec::default() };
        let selection = Selection::compile(spec).unwrap_or_else(|e| panic!("{expression}: {e}"));
        assert_eq!(selection.matches(&stream, &event), Ok(true), "{expression}");
        assert_eq!(selection.matches_attributes(&stream, &event), Ok(true), "{expression}");
    }
}

#[test]
fn every_variable_is_described() {
    for variable in VARIABLES {
        assert!(DOCUMENT.contains(&format!("`{variable}`")), "{variable}");
    }
}

#[test]
fn every_time_is_one() {
    let now: Timestamp = "2026-11-23T08:30:00Z".parse().unwrap();
    let times: Vec<&str> = rows("Times").iter().flat_map(|row| quoted(row[0])).collect();
    assert!(times.len() > 8, "{times:?}");
    for time in times {
        parse_time(time, now).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn every_pattern_matches_what_the_document_says() {
    let rows = rows("Routing keys");
    assert!(rows.len() > 5, "{rows:?}");
    for row in rows {
        let pattern: TopicPattern = quoted(row[0])[0].parse().unwrap();
        for key in quoted(row[1]) {
            assert!(pattern.matches(key.as_bytes()), "`{pattern}` on `{key}`");
        }
        for key in row.get(2).map(|cell| quoted(cell)).unwrap_or_default() {
            assert!(!pattern.matches(key.as_bytes()), "`{pattern}` on `{key}`");
        }
    }
}
