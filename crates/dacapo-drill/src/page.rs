//! The report as one page for people: no script, nothing loaded from elsewhere, every text escaped
//! (maud does it), and made of the report alone, so that it can be made again and compared.

mod timeline;

use dacapo_event::{Digest, Timestamp};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::{
    Counted, Facts, Reconciliation, Report, Row, RpoSource, ServiceSeen, TargetSeen,
};
use crate::verdict::{Outcome, Requirement, Verdict, seconds};

const STYLE: &str = include_str!("page/style.css");

/// Nothing is loaded and nothing runs, whatever got into the page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Digits of a digest that are shown in tables; the report has all.
const DIGITS_SHOWN: usize = 16;

/// Returns the page of a report whose bytes have this digest.
pub fn page(report: &Report, digest: &Digest) -> String {
    let facts = &report.facts;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Drill " (facts.name) ": " (report.verdict.as_str()) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(report))
                    (cards(report))
                    @if let Some(failure) = &facts.failure {
                        p class="warn" { "Broken off during " (failure.during) ": " (failure.problem) }
                    }
                    @if !facts.environment.left_behind.is_empty() {
                        p class="warn" {
                            "Could not be taken down again: " (facts.environment.left_behind.join("; "))
                        }
                    }
                    h2 { "Where the time went" }
                    (timeline::timeline(facts))
                    h2 { "What was to be met" }
                    (requirements(&report.requirements))
                    @if let Some(reconciliation) = &facts.reconciliation {
                        h2 { "Archive, target and service by type" }
                        (reconciled(reconciliation))
                    }
                    @if !facts.checks.is_empty() {
                        h2 { "Checks" }
                        (checks(facts))
                    }
                    h2 { "Evidence" }
                    (evidence(facts))
                    (foot(facts, digest))
                }
            }
        }
    };
    page.into_string() + "\n"
}

fn head(report: &Report) -> Markup {
    let facts = &report.facts;
    html! {
        header {
            div {
                h1 { "Restore drill: " (facts.name) }
                p class="sub" { "Drill " (facts.id) " · run by " (facts.by) " · dacapo " (facts.version) }
                p class="sub" { (readable(facts.began)) " to " (readable(facts.ended)) " UTC" }
            }
            div id="verdict" class=(format!("verdict {}", report.verdict.as_str())) {
                @match report.verdict {
                    Verdict::Met => "targets met",
                    Verdict::Missed => "targets missed",
                }
            }
        }
    }
}

fn cards(report: &Report) -> Markup {
    let facts = &report.facts;
    let of = |name: &str| report.requirements.iter().find(|it| it.name.contains(name));
    let outcome = |name: &str| of(name).map_or("", |it| class(it.outcome));
    let time = |time: Option<std::time::Duration>| time.map_or("—".to_owned(), seconds);
    let target = |time: Option<std::time::Duration>| match time {
        Some(time) => format!("target {}", seconds(time)),
        None => "no target".to_owned(),
    };
    let green = facts.checks.iter().filter(|check| check.green).count();
    let checks = match facts.checks.len() {
        0 => "",
        all if all == green => "met",
        _ => "missed",
    };
    html! {
        section class="cards" {
            div class=(format!("card {}", outcome("(RTO)"))) {
                span { "Recovery time (RTO)" }
                b { (time(facts.rto)) }
                span { (target(facts.rto_target)) }
            }
            div class=(format!("card {}", outcome("(RPO)"))) {
                span { "Recovery point (RPO)" }
                b { (time(facts.rpo.as_ref().map(|rpo| rpo.time))) }
                span { (target(facts.rpo_target)) }
            }
            div class=(format!("card {}", outcome("every selected event"))) {
                span { "Events replayed" }
                b { (facts.replay.as_ref().map_or("—".to_owned(), |it| grouped(it.confirmed))) }
                span { "of " (facts.replay.as_ref().map_or("—".to_owned(), |it| grouped(it.selected))) }
            }
            div class=(format!("card {checks}")) {
                span { "Checks green" }
                b { (green) " of " (facts.checks.len()) }
                span { (facts.environment.isolation_word()) }
            }
        }
    }
}

fn requirements(all: &[Requirement]) -> Markup {
    html! {
        table {
            thead { tr { th { "Requirement" } th { "Target" } th { "Measured" } th { "Outcome" } } }
            tbody {
                @for requirement in all {
                    tr {
                        td { (requirement.name) }
                        td { (requirement.target) }
                        td { (requirement.measured) }
                        (outcome_cell(requirement.outcome))
                    }
                }
            }
        }
    }
}

fn outcome_cell(outcome: Outcome) -> Markup {
    let word = match outcome {
        Outcome::Met => "✓ met",
        Outcome::Missed => "✗ missed",
        Outcome::NotMeasured => "✗ not measured",
    };
    html! { td class=(format!("outcome is-{}", class(outcome))) { (word) } }
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Met => "met",
        Outcome::Missed => "missed",
        Outcome::NotMeasured => "not-measured",
    }
}

fn reconciled(reconciliation: &Reconciliation) -> Markup {
    let [given, got] = reconciliation.repeats;
    let service = |row: &Row| match (row.service, reconciliation.service) {
        (Some(count), _) => grouped(count),
        (None, ServiceSeen::NotAsked) => "not asked".to_owned(),
        (None, _) => "no answer".to_owned(),
    };
    let agrees = |row: &Row| {
        row.target.is_none_or(|target| target == row.archive)
            && row.service.is_none_or(|count| count == row.archive.events)
    };
    html! {
        table {
            thead {
                tr {
                    th { "Type" }
                    th class="number" { "Archive" } th { "Digest" }
                    th class="number" { "Target" } th { "Digest" }
                    th class="number" { "Service" } th {}
                }
            }
            tbody {
                @for row in &reconciliation.rows {
                    tr {
                        td { @if row.kind.is_empty() { "(no type)" } @else { (row.kind) } }
                        (counted(Some(row.archive)))
                        (counted(row.target))
                        td class="number" { (service(row)) }
                        @match agrees(row) {
                            true => td class="outcome is-met" { "✓" },
                            false => td class="outcome is-missed" { "✗" },
                        }
                    }
                }
            }
        }
        p class="note" {
            @match reconciliation.target {
                TargetSeen::Witness => "The target's column is what a second queue, bound beside the target queue, received.",
                TargetSeen::Receipt => "What the target got is known from the broker's confirms alone, of all types together.",
            }
            " A digest is the sum of the digests of all events, so that no order changes it."
            @if given + got > 0 {
                " Exact repeats are left out: " (given) " of the archive, " (got) " of the target."
            }
        }
    }
}

fn counted(counted: Option<Counted>) -> Markup {
    html! {
        @match counted {
            Some(counted) => {
                td class="number" { (grouped(counted.events)) }
                td { code { (&counted.digest.to_string()[..DIGITS_SHOWN]) } }
            }
            None => { td class="number" { "—" } td {} }
        }
    }
}

fn checks(facts: &Facts) -> Markup {
    html! {
        table {
            thead { tr { th { "Check" } th { "Asked" } th { "Expected" } th { "Found" } th {} } }
            tbody {
                @for check in &facts.checks {
                    tr {
                        td { (check.name) }
                        td { code { (check.asked) } }
                        td { (check.expected) }
                        td { (check.found) @if check.tries > 1 { " (after " (check.tries) " tries)" } }
                        (outcome_cell(match (check.tries, check.green) {
                            (0, _) => Outcome::NotMeasured,
                            (_, true) => Outcome::Met,
                            (_, false) => Outcome::Missed,
                        }))
                    }
                }
            }
        }
    }
}

fn evidence(facts: &Facts) -> Markup {
    let environment = &facts.environment;
    let row = |name: &str, value: Markup| html! { tr { td { (name) } td { (value) } } };
    html! {
        table class="facts" {
            tbody {
                (row("Environment", html! { code { (environment.broker) } ": " (environment.isolation_words()) }))
                @if let Some(production) = &environment.production {
                    (row("Production", html! { code { (production) } }))
                }
                (row("Made there", html! {
                    (things(environment.made.exchanges, "exchange")) ", "
                    (things(environment.made.queues, "queue")) ", "
                    (things(environment.made.bindings, "binding"))
                    @if let Some(from) = &environment.copied_from { ", copied from " (from) }
                    @if !environment.left_out.is_empty() {
                        "; not copied: " (environment.left_out.join(", "))
                    }
                    @if !environment.found.is_empty() {
                        "; there already: " (environment.found.join(", "))
                    }
                }))
                @if let Some(archive) = &facts.archive {
                    (row("Archive", html! {
                        code { (archive.location) } ", " (things(archive.streams, "stream")) "; manifest "
                        code { (archive.manifest) }
                    }))
                    (row("Gaps", html! {
                        @if archive.gaps.is_empty() { "none" } @else { (archive.gaps.join("; ")) }
                    }))
                }
                @if let Some(plan) = &facts.plan {
                    (row("Plan", html! {
                        @if !plan.exact { "about " } (grouped(plan.events)) " events in " (things(plan.segments, "segment")) " to " (plan.target)
                        "; hash " code { (plan.hash) }
                    }))
                    (row("Selection", html! {
                        @if plan.selection.is_empty() { "everything" }
                        @else { code { (plan.selection.join(" ")) } }
                    }))
                }
                @if let Some(replay) = &facts.replay {
                    (row("Replay", html! {
                        (replay.id) " " (replay.state) ": " (grouped(replay.confirmed)) " confirmed, "
                        (replay.rejected) " rejected, " (replay.remaining) " left, at most "
                        (replay.possible_repeats) " published twice"
                    }))
                }
                (row("Service", html! {
                    @match &facts.service.program {
                        Some(program) => { "started as " code { (program) } },
                        None => "ran already",
                    }
                }))
                @if let Some(rpo) = &facts.rpo {
                    (row("Recovery point", html! {
                        @match rpo.source {
                            RpoSource::ArchiverLag => "the archiver's own lag when the drill began",
                            RpoSource::UpperBound => "an upper bound: the time since the newest recovered event was archived",
                        }
                        @if let Some(newest) = rpo.newest { "; the newest was archived at " (newest) }
                    }))
                }
            }
        }
    }
}

fn foot(facts: &Facts, digest: &Digest) -> Markup {
    html! {
        footer {
            p { "This page is a view of report.json, SHA-256 " code { (digest) } "." }
            p {
                @match &facts.signed_by {
                    Some(key) => { "The report is signed by the Ed25519 key " code { (key) } "; check both with " code { "dacapo drill verify report.json --key KEY" } "." },
                    None => "The report is not signed.",
                }
            }
            p { "Description of the drill: SHA-256 " code { (facts.description) } "." }
        }
    }
}

/// Returns a time to the second, for people; the report has all of it.
fn readable(time: Timestamp) -> String {
    time.to_jiff().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Returns a number of things.
fn things(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(count))
}

/// Returns a number with a narrow blank between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests;
