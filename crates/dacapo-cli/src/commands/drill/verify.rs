//! `dacapo drill verify`: whether a report is as it was signed, and its page shows just that.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dacapo_drill::page::page;
use dacapo_drill::report::{REPORT_BYTES_MAX, Report};
use dacapo_drill::signature::PublicKey;
use dacapo_event::Digest;
use serde_json::json;

use super::KEY_BYTES_MAX;
use crate::args::{DrillVerifyArgs, read_bounded};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// A signature has 64 bytes.
const SIGNATURE_BYTES_MAX: u64 = 1024;

/// A page is some times as long as its report.
const PAGE_BYTES_MAX: u64 = 4 * REPORT_BYTES_MAX;

pub fn run(args: &DrillVerifyArgs, output: &Output) -> anyhow::Result<Exit> {
    let named = |path: &Path| format!("failed to verify `{}`", path.display());
    let key = PublicKey::from_pem(&read_bounded(&args.key, KEY_BYTES_MAX)?);
    let key = key.with_context(|| format!("failed to use `{}`", args.key.display()))?;
    let bytes = read_bounded(&args.report, REPORT_BYTES_MAX)?;
    let mut signature = args.report.clone().into_os_string();
    signature.push(".sig");
    let signature = PathBuf::from(signature);
    if !signature.exists() {
        let problem = format!(
            "there is no signature `{}`; a drill signs with --key FILE",
            signature.display()
        );
        return Err(Failure::input(problem).into());
    }
    let signature = read_bounded(&signature, SIGNATURE_BYTES_MAX)?;
    key.check(&bytes, &signature).with_context(|| named(&args.report))?;
    let report = Report::parse(&bytes).with_context(|| named(&args.report))?;
    if report.facts.signed_by != Some(key.fingerprint()) {
        let said = report.facts.signed_by;
        let said = said.map_or("no key".to_owned(), |key| format!("key {key}"));
        let problem = format!(
            "`{}` is signed by key {}, and names {said} as that of the drill: whoever signed it is not \
             who ran it",
            args.report.display(),
            key.fingerprint()
        );
        return Err(Failure::input(problem).into());
    }

    let html = args.report.with_extension("html");
    let there = html.try_exists().map_err(|error| Failure::file("read", &html, &error))?;
    if there
        && read_bounded(&html, PAGE_BYTES_MAX)? != page(&report, &Digest::of(&bytes)).as_bytes()
    {
        let version = &report.facts.version;
        let problem = match version == env!("CARGO_PKG_VERSION") {
            true => format!(
                "`{}` is not the page of this report, which is as it was signed: read that, and do not \
                 believe the page",
                html.display()
            ),
            false => format!(
                "`{}` is not the page that this version makes of this report, which is as it was signed; \
                 dacapo {version} made it, and can tell",
                html.display()
            ),
        };
        return Err(Failure::input(problem).into());
    }
    let facts = &report.facts;
    let compared = match there {
        true => "that of the report".to_owned(),
        false => format!("none: there is no `{}`", html.display()),
    };
    let json = json!({
        "drill": facts.id,
        "verdict": report.verdict.as_str(),
        "signed_by": key.fingerprint().to_string(),
        "page": if there { "that of the report" } else { "none" },
    });
    output.result(&json, || {
        format!(
            "signature  good, of key {}\npage       {compared}\ndrill      {} ({}), {}\nverdict    {}\n",
            key.fingerprint(),
            facts.id,
            facts.name,
            facts.began,
            report.verdict.as_str().to_uppercase()
        )
    })?;
    Ok(Exit::Success)
}
