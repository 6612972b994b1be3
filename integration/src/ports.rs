//! Ports on 127.0.0.1 that nothing listens on.
//!
//! They lie below Linux' range for outgoing connections (32,768 and up), so that between choosing
//! one and listening on it no client's connection takes it.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result};

/// How far above its HTTP port a SeaweedFS part puts its gRPC port.
pub const GRPC_OFFSET: u16 = 10_000;

/// Such that `port + GRPC_OFFSET` still lies below 32,768.
const RANGE: Range<u16> = 10_240..22_768;

/// Given out by this process; never given again, because the server may not listen yet.
static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(|| Mutex::new(HashSet::new()));

/// Returns a port that is free, and whose port [`GRPC_OFFSET`] above is free too.
///
/// # Errors
/// Every port of the range is taken.
pub fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let length = u64::from(RANGE.end - RANGE.start);
    let start = RandomState::new().hash_one("port") % length;
    let port = (0..length)
        .map(|step| {
            let offset = u16::try_from((start + step) % length).expect("shorter than the range");
            RANGE.start + offset
        })
        .find(|port| !given.contains(port) && is_free(*port) && is_free(port + GRPC_OFFSET))
        .with_context(|| format!("no port from {} to {} is free", RANGE.start, RANGE.end))?;
    given.insert(port);
    Ok(port)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_and_each_is_free() {
        let ports: Vec<u16> = (0..50).map(|_| free().unwrap()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
        // Whoever looks for a port meanwhile takes each for a moment.
        let _nobody_looks = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(ports.iter().all(|port| is_free(*port) && RANGE.contains(port)));
    }

    #[test]
    fn a_taken_port_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
    }
}
