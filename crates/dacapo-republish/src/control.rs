//! What the operator wants, while a run goes on.

use std::future::pending;

use tokio::sync::watch;

/// What the operator wants of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Control {
    /// Publish.
    #[default]
    Run,
    /// Publish nothing until told otherwise.
    Pause,
    /// Publish nothing more, wait for the confirms of what is out, and end.
    Stop,
}

/// The other end of the operator's control, which may go away.
pub(crate) struct Operator {
    control: watch::Receiver<Control>,
    gone: bool,
}

impl Operator {
    pub(crate) fn new(control: watch::Receiver<Control>) -> Self {
        Operator { control, gone: false }
    }

    /// Returns what the operator wants now.
    pub(crate) fn wants(&self) -> Control {
        match *self.control.borrow() {
            // Nobody could ever resume it.
            Control::Pause if self.gone => Control::Run,
            wanted => wanted,
        }
    }

    /// Waits until the operator may want something else. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        if self.gone {
            pending::<()>().await;
        }
        self.gone = self.control.changed().await.is_err();
    }

    /// Waits until the operator wants to stop. Cancel-safe.
    pub(crate) async fn stop(&mut self) {
        while self.wants() != Control::Stop {
            self.changed().await;
        }
    }
}
