//! Flags of `dacapo emit`.

use std::path::PathBuf;

use clap::Args;

use super::FieldArgs;

#[derive(Debug, Args)]
pub struct EmitArgs {
    /// Events to publish, one JSON object a line as `archive import` takes them and `replay
    /// --to-file` writes them; `-` for stdin
    #[arg(value_name = "FILE|-", required_unless_present = "body")]
    pub file: Option<PathBuf>,
    /// One event with this body, or with that of a file (@FILE)
    #[arg(long, value_name = "BODY|@FILE", conflicts_with_all = ["file", "skip"])]
    pub body: Option<String>,
    /// Publish to this exchange; empty for the default exchange [default: that of the line]
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    pub exchange: Option<String>,
    /// Publish with this routing key [default: that of the line]
    #[arg(long, value_name = "KEY", required_unless_present = "file")]
    pub routing_key: Option<String>,
    /// The event's id, which services know a repeat by [default: a new UUID]
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    pub id: Option<String>,
    /// The event's type
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "file")]
    pub kind: Option<String>,
    /// The media type of the body [default: application/json, or application/x-protobuf with
    /// --descriptor-set, or none if the body is not JSON]
    #[arg(long, value_name = "TYPE", conflicts_with = "file")]
    pub content_type: Option<String>,
    /// A header of the event, with a text for its value; repeatable
    #[arg(long = "header", value_name = "NAME=VALUE", conflicts_with = "file")]
    pub headers: Vec<String>,
    /// Protobuf descriptor set: bodies are JSON here and this protobuf message on the bus
    #[arg(long, value_name = "FILE")]
    pub descriptor_set: Option<PathBuf>,
    /// The message in the descriptor set, for example `shop.v1.OrderPlaced`
    #[arg(long, value_name = "NAME", requires = "descriptor_set")]
    pub message: Option<String>,
    /// Do not publish the first N events of the file: those that an earlier run confirmed
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub skip: u64,
    /// Publish nothing: print what would be published, one JSON object a line
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub fields: FieldArgs,
}
