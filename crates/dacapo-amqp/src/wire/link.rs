//! One connection: the handshake, then frames in and out.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use dacapo_bus::BusError;
use dacapo_event::{FieldTable, FieldValue, ShortStr};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::Malformed;
use super::frame::{
    FRAME_BYTES_MAX, FRAME_BYTES_MIN, Frame, HEARTBEAT, Inbox, METHOD, Outbox, put_long, put_short,
    take_long, take_short,
};
use super::table;
use crate::Broker;
use crate::connect::{CLOSE_DEADLINE, CONNECT_DEADLINE, Duplex};
use crate::error::{Doing, from_close, from_io, lost};

/// Method numbers, as (class, method): AMQP 0-9-1 specification, section 1.4.
pub(crate) mod methods {
    pub(crate) const CONNECTION_START: (u16, u16) = (10, 10);
    pub(crate) const CONNECTION_START_OK: (u16, u16) = (10, 11);
    pub(crate) const CONNECTION_TUNE: (u16, u16) = (10, 30);
    pub(crate) const CONNECTION_TUNE_OK: (u16, u16) = (10, 31);
    pub(crate) const CONNECTION_OPEN: (u16, u16) = (10, 40);
    pub(crate) const CONNECTION_OPEN_OK: (u16, u16) = (10, 41);
    pub(crate) const CONNECTION_CLOSE: (u16, u16) = (10, 50);
    pub(crate) const CONNECTION_CLOSE_OK: (u16, u16) = (10, 51);
    pub(crate) const CONNECTION_BLOCKED: (u16, u16) = (10, 60);
    pub(crate) const CONNECTION_UNBLOCKED: (u16, u16) = (10, 61);
    pub(crate) const CHANNEL_OPEN: (u16, u16) = (20, 10);
    pub(crate) const CHANNEL_OPEN_OK: (u16, u16) = (20, 11);
    pub(crate) const CHANNEL_CLOSE: (u16, u16) = (20, 40);
    pub(crate) const CHANNEL_CLOSE_OK: (u16, u16) = (20, 41);
    pub(crate) const QUEUE_DECLARE: (u16, u16) = (50, 10);
    pub(crate) const QUEUE_DECLARE_OK: (u16, u16) = (50, 11);
    pub(crate) const BASIC_QOS: (u16, u16) = (60, 10);
    pub(crate) const BASIC_QOS_OK: (u16, u16) = (60, 11);
    pub(crate) const BASIC_CONSUME: (u16, u16) = (60, 20);
    pub(crate) const BASIC_CONSUME_OK: (u16, u16) = (60, 21);
    pub(crate) const BASIC_CANCEL: (u16, u16) = (60, 30);
    pub(crate) const BASIC_PUBLISH: (u16, u16) = (60, 40);
    pub(crate) const BASIC_RETURN: (u16, u16) = (60, 50);
    pub(crate) const BASIC_DELIVER: (u16, u16) = (60, 60);
    pub(crate) const BASIC_ACK: (u16, u16) = (60, 80);
    /// This and those of class 85 are RabbitMQ's extension.
    pub(crate) const BASIC_NACK: (u16, u16) = (60, 120);
    pub(crate) const CONFIRM_SELECT: (u16, u16) = (85, 10);
    pub(crate) const CONFIRM_SELECT_OK: (u16, u16) = (85, 11);
}

const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// What a client says that it understands; the broker sends nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capabilities(&'static [&'static str]);

/// Those of a consumer.
pub(crate) const CONSUMING: Capabilities =
    Capabilities(&["consumer_cancel_notify", "authentication_failure_close"]);

/// Those of a publisher.
pub(crate) const PUBLISHING: Capabilities = Capabilities(&[
    "publisher_confirms",
    "basic.nack",
    "connection.blocked",
    "authentication_failure_close",
]);

/// What a broker says it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Product {
    /// For example `RabbitMQ`.
    pub(crate) name: String,
    /// For example `3.10.8`.
    pub(crate) version: String,
    /// The name of its cluster, for example `rabbit@host`; empty if it does not say.
    pub(crate) cluster: String,
}

/// An open connection.
pub(crate) struct Link {
    stream: Pin<Box<dyn Duplex>>,
    inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) peer: String,
    pub(crate) product: Product,
    /// The agreed time between heartbeats.
    pub(crate) heartbeat: Duration,
    /// The agreed length of the longest frame, all of it.
    pub(crate) frame_max: u32,
    /// Whether bytes were written that the stream may still hold.
    unflushed: bool,
    /// When bytes last came.
    heard_at: Instant,
}

/// A method frame's number and arguments.
pub(crate) struct Method {
    pub(crate) number: (u16, u16),
    pub(crate) arguments: Bytes,
}

impl Link {
    /// Connects and logs in.
    pub(crate) async fn open(
        broker: &Broker,
        capabilities: Capabilities,
    ) -> Result<Link, BusError> {
        let opening = Link::open_unbounded(broker, capabilities);
        let opened = tokio::time::timeout(CONNECT_DEADLINE, opening)
            .await
            .map_err(|_| lost(&broker.peer(), format!("no answer within {CONNECT_DEADLINE:?}")))?;
        match opened {
            Ok(link) => Ok(link),
            Err(error) => Err(broker.reason_of(error).await),
        }
    }

    async fn open_unbounded(broker: &Broker, capabilities: Capabilities) -> Result<Link, BusError> {
        let peer = broker.peer();
        let mut link = Link {
            stream: broker.stream().await?,
            inbox: Inbox::new(),
            outbox: Outbox::default(),
            peer,
            product: Product::default(),
            heartbeat: Duration::from_secs(u64::from(broker.url.heartbeat_secs())),
            frame_max: FRAME_BYTES_MAX,
            unflushed: false,
            heard_at: Instant::now(),
        };
        link.handshake(broker, capabilities).await?;
        Ok(link)
    }

    async fn handshake(
        &mut self,
        broker: &Broker,
        capabilities: Capabilities,
    ) -> Result<(), BusError> {
        self.write(PROTOCOL_HEADER).await?;
        let start = self.expect(methods::CONNECTION_START).await?;
        self.product = product(start).map_err(|Malformed| self.garbled())?;

        let (mechanism, response) = broker.url.sasl();
        self.outbox.method(0, methods::CONNECTION_START_OK, |to| {
            table::encode(to, &client_properties(&broker.client_name, capabilities));
            put_short(to, mechanism.as_bytes());
            put_long(to, &response);
            put_short(to, b"en_US");
        });
        self.flush().await?;
        let mut tune = self.expect(methods::CONNECTION_TUNE).await?;
        let (_channels, frame_max, seconds) =
            tune_of(&mut tune).map_err(|Malformed| self.garbled())?;

        let ours = broker.url.heartbeat_secs();
        let heartbeat = if seconds == 0 { ours } else { ours.min(seconds) };
        self.heartbeat = Duration::from_secs(u64::from(heartbeat));
        self.frame_max = match frame_max {
            0 => FRAME_BYTES_MAX,
            1..FRAME_BYTES_MIN => return Err(self.garbled()),
            _ => frame_max.min(FRAME_BYTES_MAX),
        };
        let frame_max = self.frame_max;
        self.outbox.method(0, methods::CONNECTION_TUNE_OK, |to| {
            // The source and the sink use two.
            to.put_u16(2);
            to.put_u32(frame_max);
            to.put_u16(heartbeat);
        });
        self.outbox.method(0, methods::CONNECTION_OPEN, |to| {
            put_short(to, broker.url.vhost().as_bytes());
            put_short(to, b"");
            to.put_u8(0);
        });
        self.flush().await?;
        self.expect(methods::CONNECTION_OPEN_OK).await?;
        Ok(())
    }

    /// Reads once from the socket. Cancel-safe.
    pub(crate) async fn fill(&mut self) -> Result<(), BusError> {
        let read = self.stream.read(self.inbox.room()).await;
        match read.map_err(|error| from_io(&self.peer, &error))? {
            0 => Err(lost(&self.peer, "the broker closed it")),
            count => {
                self.inbox.filled(count);
                self.heard_at = Instant::now();
                Ok(())
            }
        }
    }

    /// Reads once from the socket, or writes some of what is in the outbox, whichever can be done
    /// first. Cancel-safe.
    pub(crate) async fn turn(&mut self) -> Result<(), BusError> {
        let turned = poll_fn(|context| self.poll_turn(context)).await;
        match turned.map_err(|error| from_io(&self.peer, &error))? {
            Turned::Read(0) | Turned::Wrote(0) => Err(lost(&self.peer, "the broker closed it")),
            Turned::Read(count) => {
                self.inbox.filled(count);
                self.heard_at = Instant::now();
                Ok(())
            }
            Turned::Wrote(count) => {
                self.outbox.wrote(count);
                self.unflushed = true;
                Ok(())
            }
        }
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Turned>> {
        let stream = &mut self.stream;
        if let Poll::Ready(read) = stream.as_mut().poll_read(context, self.inbox.room()) {
            return Poll::Ready(read.map(Turned::Read));
        }
        let bytes = self.outbox.bytes();
        if !bytes.is_empty() {
            return stream.as_mut().poll_write(context, bytes).map_ok(Turned::Wrote);
        }
        if self.unflushed {
            if let Err(error) = ready!(stream.as_mut().poll_flush(context)) {
                return Poll::Ready(Err(error));
            }
            self.unflushed = false;
        }
        Poll::Pending
    }

    /// Returns whether nothing waits to be written, and the stream holds nothing back.
    pub(crate) fn is_all_written(&self) -> bool {
        self.outbox.bytes().is_empty() && !self.unflushed
    }

    /// Returns the next frame that has arrived whole.
    pub(crate) fn arrived(&mut self) -> Result<Option<Frame>, BusError> {
        self.inbox.next().map_err(|Malformed| self.garbled())
    }

    /// Fails if the broker is silent for longer than it may be.
    pub(crate) fn check_heard(&self, now: Instant) -> Result<(), BusError> {
        let silence = now.saturating_duration_since(self.heard_at);
        if silence > 2 * self.heartbeat {
            return Err(lost(&self.peer, format!("no heartbeat for {silence:?}")));
        }
        Ok(())
    }

    /// Begins to wait for the broker anew, after a time in which nothing was read.
    pub(crate) fn listen_anew(&mut self) {
        self.heard_at = Instant::now();
    }

    /// Sends what is in the outbox.
    pub(crate) async fn flush(&mut self) -> Result<(), BusError> {
        let bytes = self.outbox.take();
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        let writing = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(CONNECT_DEADLINE, writing)
            .await
            .map_err(|_| lost(&self.peer, format!("it took no bytes for {CONNECT_DEADLINE:?}")))?
            .map_err(|error| from_io(&self.peer, &error))
    }

    /// Waits for one method and returns its arguments; a close in its place is an error.
    pub(crate) async fn expect(&mut self, number: (u16, u16)) -> Result<Bytes, BusError> {
        loop {
            while let Some(frame) = self.arrived()? {
                match frame.kind {
                    HEARTBEAT => {}
                    METHOD => {
                        let method =
                            method_of(frame.payload).map_err(|Malformed| self.garbled())?;
                        if method.number == number {
                            return Ok(method.arguments);
                        }
                        return Err(self.close_said(method, Doing::Connecting));
                    }
                    _ => return Err(self.garbled()),
                }
            }
            self.fill().await?;
        }
    }

    /// Returns the error that an unexpected method is; a close has its words.
    pub(crate) fn close_said(&self, method: Method, doing: Doing) -> BusError {
        close_said(&self.peer, method, doing)
    }

    /// Returns the error for bytes that are no AMQP.
    pub(crate) fn garbled(&self) -> BusError {
        garbled(&self.peer)
    }

    /// Closes in order. Frames that come before the answer are dropped.
    pub(crate) async fn close(&mut self) -> Result<(), BusError> {
        let peer = self.peer.clone();
        self.outbox.method(0, methods::CONNECTION_CLOSE, |to| {
            to.put_u16(200);
            put_short(to, b"done");
            to.put_u32(0);
        });
        let closing = async {
            self.flush().await?;
            loop {
                while let Some(frame) = self.arrived()? {
                    let closed = frame.kind == METHOD
                        && method_of(frame.payload)
                            .is_ok_and(|method| method.number == methods::CONNECTION_CLOSE_OK);
                    if closed {
                        return Ok(());
                    }
                }
                self.fill().await?;
            }
        };
        tokio::time::timeout(CLOSE_DEADLINE, closing)
            .await
            .map_err(|_| lost(&peer, format!("close was not answered within {CLOSE_DEADLINE:?}")))?
    }
}

/// What the socket did.
enum Turned {
    Read(usize),
    Wrote(usize),
}

/// Returns the error that an unexpected method is; a close has its words.
pub(crate) fn close_said(peer: &str, mut method: Method, doing: Doing) -> BusError {
    match method.number {
        methods::CONNECTION_CLOSE | methods::CHANNEL_CLOSE => {
            let said = method
                .arguments
                .try_get_u16()
                .map_err(Malformed::from)
                .and_then(|code| Ok((code, take_short(&mut method.arguments)?)));
            match said {
                Ok((code, text)) => from_close(peer, code, &text.to_str_lossy(), doing),
                Err(Malformed) => garbled(peer),
            }
        }
        _ => garbled(peer),
    }
}

/// Returns the error for bytes that are no AMQP.
pub(crate) fn garbled(peer: &str) -> BusError {
    lost(peer, "it sent something that is not AMQP 0-9-1")
}

pub(crate) fn method_of(mut payload: Bytes) -> Result<Method, Malformed> {
    let number = (payload.try_get_u16()?, payload.try_get_u16()?);
    Ok(Method { number, arguments: payload })
}

/// Reads what `connection.start` says about the broker.
fn product(mut start: Bytes) -> Result<Product, Malformed> {
    let _protocol = start.try_get_u16()?;
    let properties = table::decode(table::take_table(&mut start)?)?;
    let _mechanisms = take_long(&mut start)?;
    let text = |name| properties.get(name).map(FieldValue::to_text_lossy).unwrap_or_default();
    Ok(Product { name: text("product"), version: text("version"), cluster: text("cluster_name") })
}

fn tune_of(tune: &mut Bytes) -> Result<(u16, u32, u16), Malformed> {
    Ok((tune.try_get_u16()?, tune.try_get_u32()?, tune.try_get_u16()?))
}

fn client_properties(name: &str, capabilities: Capabilities) -> FieldTable {
    let short = ShortStr::from_static;
    let capabilities = capabilities.0.iter().map(|name| (short(name), FieldValue::Boolean(true)));
    [
        (short("product"), FieldValue::text("dacapo")),
        (short("connection_name"), FieldValue::text(name)),
        (short("capabilities"), FieldValue::Table(capabilities.collect())),
    ]
    .into_iter()
    .collect()
}
