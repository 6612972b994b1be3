//! The alert rules that are shipped: each has a severity and a runbook that exists, and no runbook
//! is left of an alert that is gone.

use std::collections::BTreeSet;

const RULES: &str = "docs/alerts/dacapo.rules.yml";
const RUNBOOKS: &str = "docs/operations.md";

/// What a rule of the file says, line by line, without indentation.
fn alerts() -> Vec<(String, Vec<String>)> {
    let mut alerts: Vec<(String, Vec<String>)> = Vec::new();
    for line in super::read(RULES).lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            alerts.push((name.to_owned(), Vec::new()));
        } else if let Some((_, lines)) = alerts.last_mut() {
            lines.push(line.to_owned());
        }
    }
    assert!(alerts.len() > 10, "the alerts were not found: {alerts:?}");
    alerts
}

#[test]
fn every_alert_has_a_severity_words_and_a_runbook() {
    for (name, lines) in alerts() {
        let has = |start: &str| lines.iter().any(|line| line.starts_with(start));
        assert!(
            ["critical", "warning"]
                .iter()
                .any(|severity| has(&format!("labels: {{ severity: {severity} }}"))),
            "{name} has no severity that docs/operations.md explains"
        );
        assert!(has("summary: ") && has("description: "), "{name} does not say what to do");
        let anchor = name.to_lowercase();
        assert!(
            has(&format!("runbook_url: {RUNBOOKS}#{anchor}")),
            "{name} does not link its runbook"
        );
    }
}

#[test]
fn the_runbooks_are_those_of_the_alerts_and_say_all_that_is_needed() {
    let runbooks = super::read(RUNBOOKS);
    let sections: Vec<&str> = runbooks.split("\n### Dacapo").skip(1).collect();
    let titles: BTreeSet<String> = sections
        .iter()
        .map(|section| format!("Dacapo{}", section.lines().next().unwrap_or_default()))
        .collect();
    let names: BTreeSet<String> = alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(titles, names, "headings of {RUNBOOKS} and alerts of {RULES}");
    for section in sections {
        for part in ["**Means**", "**Do**", "**Wake someone**"] {
            assert!(section.contains(part), "`{part}` is missing in ### Dacapo{section}");
        }
    }
}
