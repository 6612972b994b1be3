//! The product against a real RabbitMQ and a real S3 server, through the doors a user has, with
//! witnesses that share no code with it. Started by `integration/test`.

mod harness;
mod witnesses;

use dacapo_integration::{dacapo, services, witness};
