//! Who works in the demo, each in a task: the archiver and the two services. The composition
//! root is the one to spawn.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail};
use dacapo_archive::chain;
use dacapo_archive::store::Store;
use dacapo_archiver::Totals;
use dacapo_event::{Sequence, StreamName};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::services::{Mailer, Orders};

/// A worker that gets nothing done for so long is taken for stuck: a broker with a slow disk
/// still does something in that time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at how far the archive is.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Everyone who works; they end when it is dropped.
#[derive(Default)]
pub(crate) struct Crew {
    pub(crate) archiver: Worker<Totals>,
    pub(crate) orders: Worker<Orders>,
    pub(crate) mailer: Worker<Mailer>,
}

impl Crew {
    /// Ends everyone at once, and returns when they have.
    pub(crate) async fn end(&mut self) {
        self.archiver.task.shutdown().await;
        self.orders.task.shutdown().await;
        self.mailer.task.shutdown().await;
    }
}

/// One that works in a task of its own until told to stop, and then returns a `T`.
pub(crate) struct Worker<T> {
    /// Empty or one task; a set aborts it when dropped.
    task: JoinSet<anyhow::Result<T>>,
    stop: Option<oneshot::Sender<()>>,
    handled: watch::Receiver<u64>,
}

impl<T> Default for Worker<T> {
    fn default() -> Self {
        Worker { task: JoinSet::new(), stop: None, handled: watch::channel(0).1 }
    }
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work`, which tells how much it has handled and is told when to stop.
    pub(crate) fn start<F>(
        &mut self,
        work: impl FnOnce(watch::Sender<u64>, oneshot::Receiver<()>) -> F,
    ) where
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let (tell, handled) = watch::channel(0);
        let (stop, stopped) = oneshot::channel();
        self.handled = handled;
        self.stop = Some(stop);
        self.task.spawn(work(tell, stopped));
    }

    /// Waits until it has handled so much.
    ///
    /// # Errors
    /// It has failed, or gets no further.
    pub(crate) async fn until(&mut self, wanted: u64, who: &str) -> anyhow::Result<()> {
        loop {
            let handled = *self.handled.borrow_and_update();
            if handled >= wanted {
                return Ok(());
            }
            match tokio::time::timeout(PATIENCE, self.handled.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    self.returned().await?;
                    bail!("`{who}` ended after {handled} of {wanted} messages");
                }
                Err(_) => bail!(
                    "`{who}` handled {handled} of {wanted} messages and then none for {PATIENCE:?}"
                ),
            }
        }
    }

    /// Tells it to stop, and returns what it returns.
    ///
    /// # Errors
    /// It has failed.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<T> {
        // It stops on a sender that is gone, too.
        drop(self.stop.take());
        self.returned().await
    }

    async fn returned(&mut self) -> anyhow::Result<T> {
        self.task.join_next().await.context("it was not started")?.context("it panicked")?
    }
}

impl Worker<Totals> {
    /// Waits until the archive has so many events of the stream, durably; `done` is told how many
    /// there are so far.
    ///
    /// # Errors
    /// The archiver has failed or gets no further, or the archive cannot be read.
    pub(crate) async fn until_durable(
        &mut self,
        store: &dyn Store,
        stream: &StreamName,
        wanted: u64,
        mut done: impl FnMut(Sequence),
    ) -> anyhow::Result<()> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let last = chain::head(store, stream).await?.map_or(0, |head| head.last);
            if last >= wanted {
                return Ok(());
            }
            if last > seen {
                (seen, since) = (last, Instant::now());
                done(last);
            }
            if since.elapsed() > PATIENCE {
                bail!("the archiver kept {last} of {wanted} events and then none for {PATIENCE:?}");
            }
            tokio::select! {
                ended = self.returned() => {
                    ended?;
                    bail!("the archiver ended after {last} of {wanted} events");
                }
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }
}
