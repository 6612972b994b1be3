//! The product against a real RabbitMQ and a real S3 server, through the doors a user has, with
//! witnesses that share no code with it. Started by `integration/test`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, helpers included")]

mod alerts;
mod amqp_direct;
mod amqp_sink;
mod amqp_source;
mod archive_readers;
mod archiver;
mod backfilling;
mod bad_input;
mod blast_radius;
mod broker_disk;
mod certificates;
mod compacting;
mod consumer;
mod contract;
mod definitions;
mod demo;
mod drilling;
mod emitting;
mod etcd_store;
mod fixtures;
mod harness;
mod importing;
mod indexing;
mod limits;
mod memory;
mod on_s3;
mod permissions;
mod pipeline;
mod platform;
mod preflight;
mod rejecting;
mod repairing;
mod replay_control;
mod retention;
mod runbooks;
mod s3_store;
mod secrets;
mod shop_schemas;
mod witnesses;

use dacapo_integration::{services, witness};
