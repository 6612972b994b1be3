//! The one request that the harness makes itself: a GET of a server on this machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};

/// How long a server on this machine may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Gets a path; returns the status and the text.
///
/// # Errors
/// There is no answer, or one that is not text.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let (status, body) = get_bytes(address, path)?;
    Ok((status, String::from_utf8(body).with_context(|| format!("`{path}` is not text"))?))
}

/// Gets a path; returns the status and the body.
///
/// # Errors
/// There is no answer.
pub fn get_bytes(address: &str, path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("nothing listens on {address}"))?;
    stream.set_read_timeout(Some(SILENCE_MAX)).context("failed to set a deadline")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n")
        .context("failed to ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no answer from {address}"))?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").context("no end of a head")?;
    let head = String::from_utf8_lossy(&answer[..body]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("an answer has a status")?, answer.split_off(body + 4)))
}
