//! The archiver's queue, opened with the password and the certificates as they are at that time: an
//! archiver runs for months, and these are changed meanwhile.

use async_trait::async_trait;
use dacapo_amqp::AmqpSubscribe;
use dacapo_bus::{BusError, Source, Subscribe};

use crate::output::words;
use crate::settings::Settings;

/// Opens sources on the archiver's queue.
pub struct Queue<'a> {
    pub settings: &'a Settings,
    /// With the broker as it was at the start, for files that cannot be read any more.
    pub queue: AmqpSubscribe,
}

#[async_trait]
impl Subscribe for Queue<'_> {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        match self.settings.broker(self.queue.broker().client_name.clone()) {
            Ok(broker) => self.queue.at(broker).open().await,
            Err(error) => {
                let error = words(error.as_ref());
                tracing::warn!(error, "going on with the password and certificates of the start");
                self.queue.open().await
            }
        }
    }
}
