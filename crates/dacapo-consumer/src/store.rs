//! What was handled, remembered for services whose effect is no transaction that could hold the mark.
//!
//! Implementations: in memory, in sled with the feature `sled`, and in etcd, for processes that share
//! it, with the feature `etcd`. All pass one suite (`conformance`).
//!
//! Invariant: a store holds no more than its [`Retention`], and forgets what it recorded first.

use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use thiserror::Error;

use crate::order::{Known, Position};

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(feature = "etcd")]
mod etcd;
mod memory;
#[cfg(feature = "sled")]
mod sled;
#[cfg(test)]
mod tests;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdAccount, EtcdAt, EtcdStore, EtcdTls};
pub use memory::MemoryStore;
#[cfg(feature = "sled")]
pub use sled::SledStore;

/// How much is remembered, each at most; beyond it what was recorded first is forgotten.
///
/// A repeat of an id that is forgotten is handled again, and an older event of a key that is
/// forgotten is in order. So ids have to cover what may be delivered twice: the prefetch of every
/// consumer, and the window of a replay that is taken up again. Keys have to cover all that a replay
/// has events of, or history overwrites what is newer; a store warns when it first forgets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Ids of events.
    pub ids: NonZeroUsize,
    /// Keys with their newest position.
    pub keys: NonZeroUsize,
}

/// Remembers which events were handled, and the newest position of each key.
#[async_trait]
pub trait ProcessedStore: Send + Sync {
    /// Returns what is known of an event by its id, and of its key where that is asked for.
    ///
    /// # Errors
    /// The store cannot be read now.
    async fn recall(&self, id: &str, key: Option<&str>) -> Result<Known, StoreError>;

    /// Records an event as handled, and that its key has come to this position at least; both
    /// together, and when it returns they last as long as anything in this store.
    ///
    /// # Errors
    /// The store cannot be written now; it may have recorded it.
    async fn record(&self, id: &str, place: Option<(&str, Position)>) -> Result<(), StoreError>;
}

/// Warns of the first key that is forgotten.
#[derive(Debug, Default)]
struct Forgetting {
    is_told: AtomicBool,
}

impl Forgetting {
    fn warn(&self) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "more keys than are kept: of one that is forgotten, an older event counts as in \
                 order; keep more (`Retention::keys`) before a replay"
            );
        }
    }
}

/// A store did not do what it was asked; asked again later it may.
#[derive(Debug, Error)]
#[error("failed to {action} the processed events in `{store}`")]
pub struct StoreError {
    /// What was to be done: `open`, `read`, `write`.
    pub action: &'static str,
    /// Which store it is: a folder, an address.
    pub store: String,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}
