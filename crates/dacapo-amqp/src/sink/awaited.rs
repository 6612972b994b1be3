//! The way of one message from lapin's queue to its confirm.
//!
//! Lapin writes nothing while the broker blocks the connection, and says that a message is sent
//! when it is written. A caller that waited for that could not ask whether it is blocked, so the
//! rest of the way is waited for where confirms are.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Map, MaybeDone};
use lapin::message::BasicReturnMessage;
use lapin::{Confirmation, ConnectionStatus, PublisherConfirm};

use super::answers::Answer;

/// How often to look whether a message that is not written waits for the end of an alarm.
const BLOCKED_INTERVAL: Duration = Duration::from_millis(50);

/// A message that lapin has in its queue; done when it is written.
pub(super) type Publish = MaybeDone<BoxFuture<'static, lapin::Result<PublisherConfirm>>>;

/// What the broker says to a message.
pub(super) type Confirmed = Result<Answer<BasicReturnMessage>, lapin::Error>;

/// The confirm of a message that was given to lapin.
pub(super) enum Awaited {
    Written(Map<PublisherConfirm, fn(lapin::Result<Confirmation>) -> Confirmed>),
    Unwritten(BoxFuture<'static, Confirmed>),
}

impl Awaited {
    pub(super) fn written(confirm: PublisherConfirm) -> Self {
        Awaited::Written(confirm.map(answer))
    }

    pub(super) fn unwritten(mut publish: Publish) -> Self {
        let confirmed = async move {
            (&mut publish).await;
            let confirm = Pin::new(&mut publish).take_output().expect("it is done, and not taken");
            answer(confirm?.await)
        };
        Awaited::Unwritten(confirmed.boxed())
    }
}

impl Future for Awaited {
    type Output = Confirmed;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Confirmed> {
        match &mut *self {
            Awaited::Written(confirmed) => confirmed.poll_unpin(context),
            Awaited::Unwritten(confirmed) => confirmed.poll_unpin(context),
        }
    }
}

/// Waits until a message is written, or the connection is blocked.
pub(super) async fn written(publish: &mut Publish, connection: &ConnectionStatus) {
    while !matches!(publish, MaybeDone::Done(_)) && !connection.blocked() {
        if tokio::time::timeout(BLOCKED_INTERVAL, &mut *publish).await.is_ok() {
            return;
        }
    }
}

fn answer(confirmation: lapin::Result<Confirmation>) -> Confirmed {
    Ok(match confirmation? {
        Confirmation::Ack(returned) => Answer { acked: true, returned },
        Confirmation::Nack(returned) => Answer { acked: false, returned },
        Confirmation::NotRequested => Answer { acked: false, returned: None },
    })
}
