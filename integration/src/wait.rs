//! Waiting for a condition of another process, always with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};

/// How long a probe that found nothing is left alone: short beside the start of any server,
/// long beside the cost of a probe.
const PAUSE: Duration = Duration::from_millis(25);

/// Calls `probe` until it returns a value and returns that.
///
/// # Errors
/// Those of `probe`, at once; or the deadline has passed, and the message names `what`.
#[expect(
    clippy::disallowed_methods,
    reason = "polls another process, whose state no future tells; the deadline is real time"
)]
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("gave up waiting until {what} after {} s", deadline.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}
