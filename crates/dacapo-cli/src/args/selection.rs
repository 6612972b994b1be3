//! Which events: flags that are combined by AND, values of one flag by OR.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use dacapo_engine::rejects::ToTryAgain;
use dacapo_event::Timestamp;
use dacapo_filter::{SelectionSpec, WhereErrors, parse_time};

use crate::exit::Failure;

/// The most bytes of an `@file` of ids: a million UUIDs are 37 MB.
const IDS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The most bytes of a descriptor set: those of large platforms have a few MB.
const DESCRIPTOR_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Selection (all must hold; values of one flag are alternatives)")]
pub struct SelectionArgs {
    /// Events at this time or later: RFC 3339, a date, `2h ago`, `yesterday`
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Events before this time
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Events of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<String>,
    /// Events whose routing key matches this topic pattern (`*` one word, `#` any number)
    #[arg(long = "routing-key", value_name = "PATTERN")]
    pub routing_keys: Vec<String>,
    /// Events published to this exchange
    #[arg(long = "exchange", value_name = "NAME")]
    pub exchanges: Vec<String>,
    /// Events of this entity
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Events with this id, or with those in a file, one a line (@FILE)
    #[arg(long = "id", value_name = "ID|@FILE")]
    pub ids: Vec<String>,
    /// Exactly the events of a reject file, those that the target of a replay refused; where no
    /// target is given, to the same one
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["from", "to", "types", "routing_keys", "exchanges", "keys", "ids", "headers", "where_"])]
    pub rejects: Option<PathBuf>,
    /// Events with this header
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub headers: Vec<String>,
    /// Events for which this CEL expression is true, for example `body.total > 100.0`
    #[arg(long = "where", value_name = "EXPRESSION")]
    pub where_: Option<String>,
    /// What to do about an event that the expression fails on (a missing field, say)
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    pub where_errors: WhereErrorsArg,
    /// Protobuf descriptor set that says what bodies are (protoc --include_imports
    /// --descriptor_set_out)
    #[arg(long, value_name = "FILE", requires = "where_")]
    pub descriptor_set: Option<PathBuf>,
    /// The protobuf message that bodies are, for example `shop.v1.OrderPlaced`
    #[arg(long, value_name = "NAME", requires = "descriptor_set")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhereErrorsArg {
    /// Stop and name the event
    Stop,
    /// Leave the event out and count it
    Skip,
}

impl SelectionArgs {
    /// Returns what was meant, with times relative to `now` and files read; `again` is what the
    /// reject file has, if one is named.
    pub fn to_spec(
        &self,
        now: Timestamp,
        again: Option<&ToTryAgain>,
    ) -> anyhow::Result<SelectionSpec> {
        let time = |flag: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(|text| parse_time(text, now)).transpose();
            parsed.with_context(|| format!("--{flag}"))
        };
        let mut ids = Vec::new();
        for id in &self.ids {
            match id.strip_prefix('@') {
                Some(path) => ids.extend(ids_of(Path::new(path))?),
                None if id.is_empty() => {
                    let problem =
                        "--id is empty, and every event has an id; leave it out to select all";
                    return Err(Failure::usage(problem).into());
                }
                None => ids.push(id.clone()),
            }
        }
        let mut headers = Vec::new();
        for header in &self.headers {
            match header.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    headers.push((name.to_owned(), value.to_owned()));
                }
                _ => {
                    let problem = format!(
                        "--header `{header}` is not NAME=VALUE (for example `tenant=acme`)"
                    );
                    return Err(Failure::usage(problem).into());
                }
            }
        }
        let descriptor_set = match &self.descriptor_set {
            Some(path) => Some(read_descriptor_set(path)?),
            None => None,
        };
        Ok(SelectionSpec {
            from: time("from", &self.from)?,
            to: time("to", &self.to)?,
            types: self.types.clone(),
            routing_keys: self.routing_keys.clone(),
            exchanges: self.exchanges.clone(),
            keys: self.keys.clone(),
            ids,
            places: again.map(ToTryAgain::places).unwrap_or_default(),
            ranges: Vec::new(),
            bindings: Vec::new(),
            headers,
            where_: self.where_.clone(),
            where_errors: match self.where_errors {
                WhereErrorsArg::Stop => WhereErrors::Stop,
                WhereErrorsArg::Skip => WhereErrors::Skip,
            },
            descriptor_set,
            message_type: self.message.clone(),
        })
    }
}

fn ids_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = String::from_utf8(read_bounded(path, IDS_BYTES_MAX)?).map_err(|_| {
        Failure::usage(format!("`{}` is not UTF-8 text with one id a line", path.display()))
    })?;
    let ids: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if ids.is_empty() {
        let problem = format!("`{}` has no ids; give one a line", path.display());
        return Err(Failure::usage(problem).into());
    }
    Ok(ids)
}

/// Reads a protobuf descriptor set; whether it is one is not looked at.
pub fn read_descriptor_set(path: &Path) -> anyhow::Result<Bytes> {
    Ok(read_bounded(path, DESCRIPTOR_BYTES_MAX)?.into())
}

/// Reads a file that must not be larger than `most` bytes, be it a device or a pipe that has no end.
pub fn read_bounded(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|error| Failure::file("read", path, &error))?;
    if bytes.len() as u64 > most {
        let problem = format!("`{}` has more than the {most} bytes that are read", path.display());
        return Err(Failure::configuration(problem).into());
    }
    Ok(bytes)
}
