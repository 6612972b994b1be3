//! `campaign`: strikes dacapo with a seeded schedule of faults and checks that nothing is lost.
//!
//! Started by `integration/campaign`, which builds it, and gives it a mount namespace of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use dacapo_integration::campaign::kind::Kind;
use dacapo_integration::campaign::report::{Form, Report};
use dacapo_integration::campaign::schedule::schedule;
use dacapo_integration::campaign::{self, Until, world};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::seaweed::Seaweed;

const USAGE: &str = "usage: campaign [--seed N] [--faults M] [--only KIND]… [--world W] [--json] \
                     [--until-failure] \
                     [--binary PATH] [--set NAME=VALUE]…";

/// What the command line asks for.
struct Asked {
    seed: u64,
    faults: u32,
    only: Vec<Kind>,
    world: Option<u32>,
    form: Form,
    until: Until,
    binary: Option<PathBuf>,
    variables: Vec<(String, String)>,
}

#[expect(clippy::print_stderr, reason = "says why it could not run")]
fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("campaign: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let asked = parse(std::env::args().skip(1))?;
    let beside =
        std::env::current_exe().context("no path of this program")?.with_file_name("dacapo");
    let built = asked.binary.clone().unwrap_or(beside);
    let mut folder = RunFolder::create()?;
    folder.keep();
    // A copy, so that a build meanwhile changes nothing.
    let binary = folder.path().join("dacapo");
    std::fs::copy(&built, &binary)
        .with_context(|| format!("failed to copy `{}`; build it first", built.display()))?;

    let mut worlds = schedule(asked.seed, asked.faults, &asked.only);
    worlds.retain(|world| asked.world.is_none_or(|number| world.number == number));
    ensure!(!worlds.is_empty(), "there is no such world in this campaign");
    let planned = worlds.iter().map(|world| world.faults.len()).sum();
    let servers = world::Servers {
        seaweed: Seaweed::start(&folder.path().join("seaweed"))?,
        folder: folder.path().to_owned(),
        binary,
        variables: asked.variables,
    };
    let report = Mutex::new(Report::new(asked.form, asked.seed, asked.faults, asked.only));
    campaign::run(&servers, &worlds, asked.until, &report)?;
    drop(servers);
    let report = report.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let ok = report.finish(planned);
    if ok {
        folder.discard();
    }
    Ok(ok)
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Asked> {
    let mut asked = Asked {
        seed: 1,
        faults: 60,
        only: Vec::new(),
        world: None,
        form: Form::Text,
        until: Until::TheEnd,
        binary: None,
        variables: Vec::new(),
    };
    while let Some(flag) = args.next() {
        if flag == "--json" {
            asked.form = Form::Json;
            continue;
        }
        if flag == "--until-failure" {
            asked.until = Until::AFailure;
            continue;
        }
        let value = args.next().with_context(|| format!("`{flag}`: no value; {USAGE}"))?;
        let number = || value.parse().with_context(|| format!("`{flag} {value}`: not a number"));
        match flag.as_str() {
            "--seed" => asked.seed = value.parse().context("--seed is not a number")?,
            "--faults" => asked.faults = number()?,
            "--world" => asked.world = Some(number()?),
            "--binary" => asked.binary = Some(value.into()),
            "--only" => {
                let kind = Kind::named(&value);
                asked.only.push(kind.with_context(|| format!("`{value}` is no kind of fault"))?);
            }
            "--set" => {
                let pair = value.split_once('=').context("--set takes NAME=VALUE")?;
                asked.variables.push((pair.0.to_owned(), pair.1.to_owned()));
            }
            other => bail!("`{other}` is unknown; {USAGE}"),
        }
    }
    Ok(asked)
}
