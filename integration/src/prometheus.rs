//! A private Prometheus from Debian's package, with rules given by the test, and its `promtool`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::Process;
use crate::{http, ports, wait};

/// A start takes a second or two; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A server on 127.0.0.1 that scrapes and evaluates each second; ended when dropped.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    _server: Process,
}

impl Prometheus {
    /// Starts a server with its data and log in `folder` that evaluates `rules` and scrapes each
    /// job at its address, and returns when it answers.
    ///
    /// # Errors
    /// The program is missing, or the server does not start; the message says where its log is.
    pub fn start(folder: &Path, rules: &str, jobs: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let mut config =
            "global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }\n\
                          rule_files: [rules.yml]\nscrape_configs:\n"
                .to_owned();
        for (job, address) in jobs {
            config +=
                &format!("- job_name: {job}\n  static_configs: [{{ targets: [\"{address}\"] }}]\n");
        }
        for (name, text) in [("rules.yml", rules), ("prometheus.yml", &config)] {
            let path = folder.join(name);
            fs::write(&path, text)
                .with_context(|| format!("failed to write `{}`", path.display()))?;
        }
        let port = ports::free()?;
        let mut command = Command::new("prometheus");
        command
            .current_dir(folder)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let log = folder.join("server.log");
        let mut server = Process::start(&mut command, &log)?;
        let what = format!("Prometheus is ready (log in `{}`)", log.display());
        wait::until(&what, START_DEADLINE, || {
            if let Some(status) = server.ended()? {
                bail!("Prometheus ended with {status}; its log is `{}`", log.display());
            }
            Ok(get(port, "/-/ready").ok())
        })?;
        Ok(Prometheus { port, _server: server })
    }

    /// Returns the `data` that `/api/v1/…` answers.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn api(&self, path: &str) -> Result<Value> {
        let text = get(self.port, &format!("/api/v1/{path}"))?;
        let mut answer: Value = serde_json::from_str(&text)
            .with_context(|| format!("the answer to `{path}` is not JSON: {text}"))?;
        Ok(answer["data"].take())
    }

    /// Returns the series that an expression has now, as `/api/v1/query` tells them.
    ///
    /// # Errors
    /// As [`Prometheus::api`]; an expression that is none is refused.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        match self.api(&format!("query?query={escaped}"))?["result"].take() {
            Value::Array(series) => Ok(series),
            other => bail!("the result of `{expression}` is no list: {other}"),
        }
    }
}

/// Runs `promtool` in the folder, and returns what it wrote.
///
/// # Errors
/// It is missing, or finds something wrong; the message has what it wrote.
pub fn promtool(folder: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new("promtool")
        .args(args)
        .current_dir(folder)
        .output()
        .context("failed to start `promtool`; run ./integration/test")?;
    let written = [output.stdout, output.stderr].concat();
    let written = String::from_utf8_lossy(&written).into_owned();
    ensure!(output.status.success(), "promtool {args:?}: {}\n{written}", output.status);
    Ok(written)
}

/// Returns the folder of the rules that are shipped.
pub fn shipped() -> PathBuf {
    crate::environment::root().join("docs/alerts")
}

fn get(port: u16, path: &str) -> Result<String> {
    let (status, body) = http::get(&format!("127.0.0.1:{port}"), path)?;
    ensure!(status == 200, "`{path}`: {status}\n{body}");
    Ok(body)
}
