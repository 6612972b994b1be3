//! The outcome of the checks of a target, as a saved plan has it.

use serde::{Deserialize, Serialize};

use super::Parse;
use crate::EngineError;
use crate::preflight::{Check, Finding, Preflight, Severity, Unchecked, Wishes};

/// A plan of an older dacapo has none; it was not looked at.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct PreflightJson {
    require_consumer: bool,
    overrides: Vec<String>,
    /// For scripts: whether a replay refuses the target as it was.
    refuses: bool,
    findings: Vec<FindingJson>,
    unchecked: Vec<UncheckedJson>,
}

#[derive(Serialize, Deserialize)]
struct FindingJson {
    name: String,
    severity: SeverityJson,
    what: String,
    next_step: String,
    overridden: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SeverityJson {
    Refusal,
    Warning,
}

#[derive(Serialize, Deserialize)]
struct UncheckedJson {
    names: Vec<String>,
    why: String,
}

fn names<'a>(checks: impl IntoIterator<Item = &'a Check>) -> Vec<String> {
    checks.into_iter().map(Check::to_string).collect()
}

pub(super) fn to_wire(preflight: &Preflight) -> PreflightJson {
    let finding = |finding: &Finding| FindingJson {
        name: finding.check.to_string(),
        severity: match finding.severity {
            Severity::Refusal => SeverityJson::Refusal,
            Severity::Warning => SeverityJson::Warning,
        },
        what: finding.what.clone(),
        next_step: finding.next_step.clone(),
        overridden: finding.overridden,
    };
    let unchecked = |unchecked: &Unchecked| UncheckedJson {
        names: names(&unchecked.checks),
        why: unchecked.why.clone(),
    };
    PreflightJson {
        require_consumer: preflight.wishes.require_consumer,
        overrides: names(&preflight.wishes.overrides),
        refuses: preflight.refusals().next().is_some(),
        findings: preflight.findings.iter().map(finding).collect(),
        unchecked: preflight.unchecked.iter().map(unchecked).collect(),
    }
}

pub(super) fn from_wire(parse: &Parse<'_>, json: PreflightJson) -> Result<Preflight, EngineError> {
    let finding = |json: FindingJson| {
        Ok(Finding {
            check: parse.text(&json.name)?,
            severity: match json.severity {
                SeverityJson::Refusal => Severity::Refusal,
                SeverityJson::Warning => Severity::Warning,
            },
            what: json.what,
            next_step: json.next_step,
            overridden: json.overridden,
        })
    };
    let checks = |names: &[String]| -> Result<Vec<Check>, EngineError> {
        names.iter().map(|name| parse.text(name)).collect()
    };
    let unchecked =
        |json: UncheckedJson| Ok(Unchecked { checks: checks(&json.names)?, why: json.why });
    Ok(Preflight {
        wishes: Wishes {
            require_consumer: json.require_consumer,
            overrides: checks(&json.overrides)?.into_iter().collect(),
        },
        findings: json.findings.into_iter().map(finding).collect::<Result<_, EngineError>>()?,
        unchecked: json.unchecked.into_iter().map(unchecked).collect::<Result<_, EngineError>>()?,
    })
}
