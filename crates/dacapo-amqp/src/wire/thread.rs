//! A thread for each connection.
//!
//! Heartbeats must be answered, and what the broker sends must be read, whatever the caller waits
//! for or computes; and the connection lives as long as whoever holds it, whatever becomes of the
//! caller's runtime.

use dacapo_bus::BusError;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::error::lost;

/// Tells how opening a connection ended.
pub(super) type Opened<T> = oneshot::Sender<Result<T, BusError>>;

/// Runs `work` to its end on a thread and a runtime of its own, and returns what it tells of the
/// opening.
pub(super) fn spawn<T: Send + 'static, F: Future<Output = ()>>(
    name: &str,
    peer: String,
    work: impl FnOnce(Opened<T>) -> F + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, BusError>>, BusError> {
    let (opened, wait_opened) = oneshot::channel();
    let to = peer.clone();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(work(opened)),
            Err(error) => report(opened, Err(lost(&peer, format!("no runtime: {error}")))),
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| lost(&to, format!("no thread for it: {error}")))?;
    Ok(wait_opened)
}

/// Tells the caller, who may have gone away; then there is nobody to tell.
pub(super) fn report<T>(to: oneshot::Sender<T>, what: T) {
    if to.send(what).is_err() {
        tracing::debug!("a connection was dropped before it was answered");
    }
}

/// Waits until then, or for ever.
pub(super) async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
