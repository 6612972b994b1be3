//! Reports: written and read again, and refused if they are none.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::tally::Tallies;

/// Returns the facts of a drill that met everything.
pub(crate) fn facts() -> Facts {
    let secs = Duration::from_millis;
    let counted = |events: u64| Counted { events, digest: Digest::of(&events.to_le_bytes()) };
    let part = |name: &str, from: u64, took: u64| Part {
        name: name.to_owned(),
        from: secs(from),
        took: secs(took),
    };
    let row = |kind: &str, events: u64| Row {
        kind: kind.to_owned(),
        archive: counted(events),
        target: Some(counted(events)),
        service: Some(events),
    };
    Facts {
        id: "20261126-120000000-1a2b".to_owned(),
        name: "orders after a lost database".to_owned(),
        by: "ops@example".to_owned(),
        version: "0.1.0".to_owned(),
        description: Digest::of(b"drill.toml"),
        began: "2026-11-26T12:00:00Z".parse().unwrap(),
        ended: "2026-11-26T12:01:30Z".parse().unwrap(),
        failure: None,
        environment: Environment {
            broker: "rabbit.example:5672/dacapo-drill-1a2b".to_owned(),
            isolation: Isolation::Made,
            production: Some("rabbit.example:5672/shop".to_owned()),
            copied_from: Some("definitions.json (virtual host `shop`)".to_owned()),
            made: Made { exchanges: 2, queues: 3, bindings: 4 },
            left_out: vec!["policies (3)".to_owned()],
            found: Vec::new(),
            left_behind: Vec::new(),
        },
        archive: Some(Archive {
            location: "s3://events/production".to_owned(),
            manifest: Digest::of(b"heads"),
            streams: 2,
            gaps: Vec::new(),
        }),
        plan: Some(Plan {
            hash: Digest::of(b"plan"),
            selection: vec!["--from=2026-11-01".to_owned()],
            target: "queue `orders`".to_owned(),
            events: 15_000,
            exact: true,
            segments: 7,
        }),
        replay: Some(Replay {
            id: "20261126-120004000-3c4d".to_owned(),
            state: "completed".to_owned(),
            selected: 15_000,
            confirmed: 15_000,
            rejected: 0,
            remaining: 0,
            possible_repeats: 0,
        }),
        reconciliation: Some(Reconciliation {
            target: TargetSeen::Witness,
            service: ServiceSeen::Asked,
            repeats: [0, 0],
            rows: vec![row("order.paid", 5_000), row("order.placed", 10_000)],
        }),
        service: Service {
            program: Some("orders".to_owned()),
            ready: true,
            drained: Drained::Yes,
            ended: None,
        },
        checks: vec![CheckResult {
            name: "every order is there".to_owned(),
            asked: "SQL `SELECT count(*) FROM orders`".to_owned(),
            expected: "5000".to_owned(),
            found: "5000".to_owned(),
            green: true,
            tries: 2,
        }],
        parts: vec![
            part("environment", 0, 1_200),
            part("service", 1_200, 2_300),
            part("plan", 3_500, 800),
            part("replay", 4_300, 31_000),
            part("drain", 35_300, 22_000),
            part("checks", 57_300, 1_500),
            part("confirm", 58_800, 6_100),
        ],
        rto: Some(secs(58_800)),
        rto_target: Some(secs(90_000)),
        rpo: Some(Rpo {
            time: secs(42_000),
            newest: Some("2026-11-26T11:59:18Z".parse().unwrap()),
            source: RpoSource::UpperBound,
        }),
        rpo_target: Some(secs(300_000)),
        signed_by: Some(Digest::of(b"key")),
    }
}

/// The report as it is kept, for whoever reads reports; `DACAPO_WRITE_GENERATED=1` writes it anew.
#[test]
#[expect(clippy::disallowed_methods, reason = "a developer's switch of this test")]
fn the_form_of_a_report_is_the_one_that_is_kept() {
    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/report.json");
    let json = Report::new(facts()).to_json();
    if std::env::var_os("DACAPO_WRITE_GENERATED").is_some() {
        std::fs::write(KEPT, &json).unwrap();
    }
    assert!(json == std::fs::read(KEPT).unwrap(), "another form needs another `SCHEMA`");
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let report = Report::new(facts());
    assert_eq!(Report::parse(&report.to_json()).unwrap(), report);
    let mut bare = facts();
    (bare.archive, bare.plan, bare.replay, bare.reconciliation) = (None, None, None, None);
    (bare.rto, bare.rpo, bare.rto_target, bare.signed_by) = (None, None, None, None);
    bare.service.drained = Drained::No("late".to_owned());
    let report = Report::new(bare);
    assert_eq!(Report::parse(&report.to_json()).unwrap(), report);
}

/// Found by a drill of 1.3956 s, which was judged as 1.40 s and read as 1.395 s.
#[test]
fn what_is_less_than_a_millisecond_is_not_judged_either() {
    let mut facts = facts();
    let time = Duration::from_micros(1_395_600);
    (facts.rto, facts.rto_target, facts.rpo_target) = (Some(time), Some(time), Some(time));
    facts.rpo.as_mut().unwrap().time = time;
    (facts.parts[0].from, facts.parts[0].took) = (time, time);
    let report = Report::new(facts);
    assert_eq!(Report::parse(&report.to_json()).unwrap(), report);
}

#[track_caller]
fn check_refused(text: &str, word: &str) {
    let error = Report::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains(word), "{error}");
}

#[test]
fn what_is_no_report_is_refused() {
    let json = String::from_utf8(Report::new(facts()).to_json()).unwrap();
    check_refused("", "EOF");
    check_refused("{}", "schema");
    check_refused(&json.replace(SCHEMA, "dacapo.drill/9"), "dacapo.drill/9");
    check_refused(&json.replacen("\"verdict\": \"met\"", "\"verdict\": \"missed\"", 1), "verdict");
    // The verdict stays, and no longer follows.
    check_refused(&json.replace("\"rto_ms\": 58800", "\"rto_ms\": 98800"), "verdict");
    check_refused(&json.replace("\"by\":", "\"by_whom\":"), "by_whom");
    check_refused(&" ".repeat(REPORT_BYTES_MAX as usize + 1), "more than");
}

#[test]
fn a_manifest_is_of_the_heads_whatever_their_order() {
    let (one, two) = (("a", 1, Digest::of(b"1")), ("b", 2, Digest::of(b"2")));
    assert_eq!(manifest([one, two]), manifest([two, one]));
    assert_ne!(manifest([one, two]), manifest([one]));
    assert_ne!(manifest([one]), manifest([("a", 2, Digest::of(b"1"))]));
}

#[test]
fn a_type_that_one_side_lacks_has_a_row_all_the_same() {
    let (mut archive, mut target) = (Tallies::default(), Tallies::default());
    archive.add("a", b"1", b"");
    target.add("b", b"2", b"");
    let counts = [("c".to_owned(), 3)].into();
    let table = Reconciliation::new(&archive, Some(&target), ServiceSeen::Asked, &counts);
    let rows: Vec<_> = table
        .rows
        .iter()
        .map(|row| (row.kind.as_str(), row.archive.events, row.target.unwrap().events, row.service))
        .collect();
    assert_eq!(rows, [("a", 1, 0, Some(0)), ("b", 0, 1, Some(0)), ("c", 0, 0, Some(3))]);
    let table = Reconciliation::new(&archive, None, ServiceSeen::NotAsked, &BTreeMap::new());
    assert_eq!(
        (table.target, table.rows[0].target, table.rows[0].service),
        (TargetSeen::Receipt, None, None)
    );
}

proptest! {
    #[test]
    fn whatever_text_comes_a_report_is_read_as_it_was_written(text in ".*", found in ".*") {
        let mut facts = facts();
        facts.name = text.clone();
        facts.failure = Some(Failure { during: "plan".to_owned(), cause: Cause::Signal, problem: text });
        facts.checks[0].found = found;
        let report = Report::new(facts);
        prop_assert_eq!(Report::parse(&report.to_json()).unwrap(), report);
    }
}
