//! The harness of the tests against real servers: private ones on free loopback ports, with their
//! data in a folder of their own, ended with whoever started them.
//!
//! Blocking on purpose: it starts processes and waits for them, and is called from tests, from
//! the `servers` binary and (through `spawn_blocking`) from async code alike.
//!
//! Invariants: nothing listens outside 127.0.0.1; no server outlives its harness, however that
//! ends ([`process`]).

pub mod wait;

pub mod environment;
pub mod folder;
pub mod http;
pub mod ports;
pub mod process;
pub mod secrets;
pub mod tls;

pub mod chromium;
pub mod etcd;
pub mod prometheus;
pub mod rabbit;
pub mod seaweed;
pub mod servers;

pub mod dacapo;
#[cfg(feature = "services")]
pub mod reference;
pub mod services;
#[cfg(feature = "services")]
pub mod stored;
pub mod witness;

pub mod campaign;
