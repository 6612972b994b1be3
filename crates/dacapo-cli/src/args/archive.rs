//! Flags of `dacapo archive`.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dacapo_amqp::Binding;
use dacapo_archiver::RollPolicy;
use dacapo_event::StreamName;
use dacapo_event::attributes::{AttributeRules, Place};

use super::pace::{parse_bytes, parse_duration, parse_positive};

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Exchange to archive, all of it or what a pattern matches; repeatable
    #[arg(long = "bind", value_name = "EXCHANGE[=PATTERN]", required = true)]
    pub bindings: Vec<Binding>,
    /// The archiver's own queue; a second archiver on it is a hot standby
    #[arg(long, default_value = "dacapo.archive", value_name = "QUEUE")]
    pub queue: String,
    /// The stream it writes, the same after every restart [default: made of the queue's name]
    #[arg(long, value_name = "STREAM")]
    pub name: Option<StreamName>,
    /// Deliveries held and not acked at the most, 1 to 65535; it begins with as many as --memory has
    /// room for if they are 4 KB each, and learns from those that come
    #[arg(
        long,
        default_value_t = NonZeroU16::new(RollPolicy::PREFETCH).expect("not zero"),
        value_parser = parse_positive::<NonZeroU16>,
        value_name = "N"
    )]
    pub prefetch: NonZeroU16,
    /// Finish a segment at this size [default: an eighth of --memory]
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub roll_bytes: Option<NonZeroU64>,
    /// Finish a segment at this age; what may be on the bus alone is younger
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    pub roll_age: Duration,
    /// There is never a second archiver: accept a store that ignores If-None-Match
    #[arg(long)]
    pub single_writer: bool,
    /// Serve /metrics and /health here, for example 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub attributes: AttributeArgs,
}

#[derive(Debug, Args)]
pub struct DefinitionsArgs {
    /// The virtual host [default: that of --amqp, else `/`; with --list all]
    #[arg(long, value_name = "VHOST")]
    pub vhost: Option<String>,
    /// Those in force at this time instead of the last ones: RFC 3339, a date, or "2h ago"
    #[arg(long, value_name = "TIME", conflicts_with = "list")]
    pub at: Option<String>,
    /// List all that were kept, and since when each was in force
    #[arg(long)]
    pub list: bool,
}

/// Where attributes come from: the first place that has a value.
#[derive(Debug, Clone, Args)]
#[command(
    next_help_heading = "Attributes (places: property:NAME, header:NAME, cloudevents:NAME, json:/pointer, envelope:FIELD, routing_key)"
)]
pub struct AttributeArgs {
    /// Where an event's id is [default: property:message_id, cloudevents:id]
    #[arg(long, value_name = "PLACE")]
    pub id_from: Vec<Place>,
    /// Where its time is [default: cloudevents:time, header:timestamp_in_ms, property:timestamp]
    #[arg(long, value_name = "PLACE")]
    pub time_from: Vec<Place>,
    /// Where its type is [default: property:type, cloudevents:type, routing_key]
    #[arg(long, value_name = "PLACE")]
    pub type_from: Vec<Place>,
    /// Where its key is [default: cloudevents:partitionkey, cloudevents:subject]
    #[arg(long, value_name = "PLACE")]
    pub key_from: Vec<Place>,
}

impl AttributeArgs {
    /// Returns the rules: those given, else the defaults.
    pub fn rules(&self) -> AttributeRules {
        let defaults = AttributeRules::default();
        let or = |given: &Vec<Place>, default: Vec<Place>| match given.is_empty() {
            true => default,
            false => given.clone(),
        };
        AttributeRules {
            id: or(&self.id_from, defaults.id),
            time: or(&self.time_from, defaults.time),
            kind: or(&self.type_from, defaults.kind),
            key: or(&self.key_from, defaults.key),
        }
    }
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Files to import (plain, gzip or zstd), each as a stream of its own; - for stdin
    #[arg(required = true, value_name = "FILE|-")]
    pub files: Vec<PathBuf>,
    /// The stream to import as [default: made of the file's name; stdin needs one]
    #[arg(long, value_name = "STREAM")]
    pub name: Option<StreamName>,
    /// Keep lines that are not events aside, in the reject file, and count them
    #[arg(long)]
    pub skip_bad: bool,
    /// Where such lines go, with their number and what is wrong [default: FILE.rejects.ndjson]
    #[arg(long, value_name = "FILE", requires = "skip_bad")]
    pub rejects: Option<PathBuf>,
    /// Finish a segment at this size [default: an eighth of --memory]
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub roll_bytes: Option<NonZeroU64>,
    #[command(flatten)]
    pub fields: FieldArgs,
}

/// Which member of a line is what: a name, or a JSON pointer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Fields of a line (a name, or a JSON pointer such as /meta/id)")]
pub struct FieldArgs {
    /// Member with the id
    #[arg(long, default_value = "id", value_name = "FIELD")]
    pub id_field: String,
    /// Member with the time
    #[arg(long, default_value = "time", value_name = "FIELD")]
    pub time_field: String,
    /// Member with the type
    #[arg(long, default_value = "type", value_name = "FIELD")]
    pub type_field: String,
    /// Member with the key
    #[arg(long, default_value = "key", value_name = "FIELD")]
    pub key_field: String,
    /// Member with the exchange
    #[arg(long, default_value = "exchange", value_name = "FIELD")]
    pub exchange_field: String,
    /// Member with the routing key
    #[arg(long, default_value = "routing_key", value_name = "FIELD")]
    pub routing_key_field: String,
    /// Member with the headers
    #[arg(long, default_value = "headers", value_name = "FIELD")]
    pub headers_field: String,
    /// Member with the other AMQP properties
    #[arg(long, default_value = "properties", value_name = "FIELD")]
    pub properties_field: String,
    /// Member with the body: a string is its text, another JSON value is kept as compact JSON
    #[arg(long, default_value = "body", value_name = "FIELD")]
    pub body_field: String,
    /// Member with a body of any bytes, in base64
    #[arg(long, default_value = "body_base64", value_name = "FIELD")]
    pub body_base64_field: String,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// List segments instead of streams
    #[arg(long)]
    pub segments: bool,
    /// Only this stream
    #[arg(long, value_name = "STREAM")]
    pub stream: Option<StreamName>,
}

#[derive(Debug, Args)]
pub struct CompactArgs {
    /// Only this stream; repeatable [default: all]
    #[arg(long = "stream", value_name = "STREAM")]
    pub streams: Vec<StreamName>,
    /// Merge only segments all of whose events were archived so long ago; the rest
    /// of a day that was not over then waits
    #[arg(long, default_value = "1d", value_parser = parse_duration, value_name = "TIME")]
    pub older_than: Duration,
    /// Delete merged segments so long after they were merged: longer than any replay takes that
    /// may read them
    #[arg(long, default_value = "7d", value_parser = parse_duration, value_name = "TIME")]
    pub grace: Duration,
    /// Finish a merged segment at this size, three eighths of --memory at the most; those from a
    /// quarter of it on stay as they are [default: a quarter of --memory]
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub roll_bytes: Option<NonZeroU64>,
    /// Say what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
    /// There is never a second compaction: accept a store that ignores If-None-Match
    #[arg(long)]
    pub single_writer: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Hold the archive against heads that an earlier --write-heads kept elsewhere: shows a rollback
    /// of segments and heads together
    #[arg(long, value_name = "FILE")]
    pub expect_heads: Option<PathBuf>,
    /// Write the heads here, to be kept where whoever can change the archive cannot change them
    #[arg(long, value_name = "FILE")]
    pub write_heads: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Show what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}
