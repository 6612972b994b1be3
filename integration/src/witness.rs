//! The witnesses: programs in Python that share no code with dacapo and say what is really there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{environment, services};

/// Returns the Python of the witnesses: the one the environment names, else the one that
/// `integration/test` has installed.
pub fn python() -> PathBuf {
    match environment::get(environment::PYTHON) {
        Some(path) => PathBuf::from(path),
        None => environment::scratch().join("venv/bin/python"),
    }
}

/// Runs `integration/witness/SCRIPT` with `input` on its stdin and returns its stdout.
///
/// # Errors
/// The script failed; the message holds what it wrote to stderr.
pub fn run(script: &str, args: &[&str], input: &str) -> Result<String> {
    let path = environment::root().join("integration/witness").join(script);
    let mut child = Command::new(python())
        .arg(path)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start Python; run ./integration/test")?;
    let mut stdin = child.stdin.take().expect("its stdin is a pipe");
    // The scripts read all of their input before they write, so this cannot block for ever; one
    // that fails early closes the pipe, and its stderr says more than the broken pipe would.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let output = child.wait_with_output().context("failed to read from Python")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{script}` failed: {stderr}");
    String::from_utf8(output.stdout).with_context(|| format!("`{script}` did not write UTF-8"))
}

/// Performs operations on a broker through raw frames, in order on one connection, and returns
/// the result of each; both are described in `integration/witness/raw_amqp.py`.
///
/// # Errors
/// The broker cannot be reached, or closed the connection; an operation that it refused is a
/// result with `error`.
pub fn raw_amqp(url: &str, operations: &[Value]) -> Result<Vec<Value>> {
    let input = serde_json::to_string(operations).context("failed to write the operations")?;
    let output = run("raw_amqp.py", &[url], &input)?;
    serde_json::from_str(&output).context("failed to read the results")
}

/// Performs requests on a broker's management plugin, in order, and returns the answer to each: rows
/// of method, path below `/api/` and body.
///
/// # Errors
/// The plugin cannot be reached or refused one; the message names it.
pub fn management(url: &str, requests: &Value) -> Result<Vec<Value>> {
    let output = run("management.py", &[url], &requests.to_string())?;
    serde_json::from_str(&output).context("failed to read the answers")
}

/// Returns what DuckDB and pandas see in a segment, or in all below a folder.
///
/// # Errors
/// One of them cannot read it.
pub fn read_segment(path: &Path) -> Result<Value> {
    let path = path.to_str().context("the path is not UTF-8")?;
    let output = run("read_segment.py", &[path], "")?;
    serde_json::from_str(&output).context("failed to read what Python found")
}

/// A queue of the test's own on the broker under test, deleted when dropped.
#[derive(Debug)]
pub struct Queue {
    name: String,
}

impl Queue {
    /// Declares a durable classic queue with a name that no other test has.
    ///
    /// # Panics
    /// The broker does not do it.
    pub fn new(prefix: &str) -> Self {
        Self::with_arguments(prefix, &json!([]))
    }

    /// Declares a durable queue with these arguments: rows of name, tag and value.
    ///
    /// # Panics
    /// The broker does not do it.
    pub fn with_arguments(prefix: &str, arguments: &Value) -> Self {
        let name = services::unique(prefix);
        on_broker(json!({ "op": "declare_queue", "queue": name, "arguments": arguments }));
        Queue { name }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Binds it to an exchange.
    ///
    /// # Panics
    /// The broker does not do it.
    pub fn bind(&self, exchange: &str, routing_key: &str) {
        on_broker(json!({
            "op": "bind_queue",
            "queue": self.name,
            "exchange": exchange,
            "routing_key": routing_key,
        }));
    }

    /// Takes at most `max` messages out of it, in order.
    ///
    /// # Panics
    /// The broker does not do it.
    pub fn take(&self, max: usize) -> Vec<Value> {
        let mut result = on_broker(json!({ "op": "get", "queue": self.name, "max": max }));
        match result["messages"].take() {
            Value::Array(messages) => messages,
            other => panic!("not a list of messages: {other}"),
        }
    }

    /// Returns how many messages wait in it, without those that a consumer has not acked.
    ///
    /// # Panics
    /// The broker does not tell.
    pub fn depth(&self) -> u64 {
        let asked = json!({ "op": "declare_queue", "queue": self.name, "passive": true });
        on_broker(asked)["messages"].as_u64().expect("a count")
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A broker that is down at the end of a test keeps the queue, and no other test minds.
        let delete = json!({ "op": "delete_queue", "queue": self.name });
        raw_amqp(&services::amqp(), &[delete]).ok();
    }
}

/// Performs one operation on the broker under test.
///
/// # Panics
/// The broker refuses it.
#[track_caller]
pub fn on_broker(operation: Value) -> Value {
    let results = match raw_amqp(&services::amqp(), std::slice::from_ref(&operation)) {
        Ok(results) => results,
        Err(error) => panic!("{operation}: {error:#}"),
    };
    let result = results.into_iter().next().expect("one result for one operation");
    assert!(result.get("error").is_none(), "{operation}: {result}");
    result
}
