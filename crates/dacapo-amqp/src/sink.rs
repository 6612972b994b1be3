//! Publishing through lapin, with confirms and `mandatory`.

mod answers;
mod awaited;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_bus::{BusError, Connect, Outcome, Sink, TargetState};
use dacapo_event::{FieldTable, Message, Properties};
use futures::FutureExt;
use futures::future::maybe_done;
use lapin::message::BasicReturnMessage;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable as AmqpTable, ShortString};
use lapin::{BasicProperties, Channel, ErrorKind, ExchangeKind};

use crate::Broker;
use crate::connect::{CLOSE_DEADLINE, Session};
use crate::convert::{self, to_lapin};
use crate::error::{Doing, from_lapin, lost};
use crate::target::{Address, AmqpTarget, Via, name_of};
use crate::topology::look_up_exchange;
use crate::wire;
use answers::{Answers, Unclaimed};
use awaited::{Awaited, written};

/// Publishes that are polled together. Awaiting each alone costs 22 µs of CPU a message, 64 to
/// 200 together about 8; the first poll puts a message in lapin's queue, in order.
const BATCH_MESSAGES: usize = 128;

/// Bodies that are handed to lapin together, which copies them: a batch of the largest messages
/// must not multiply memory.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// RabbitMQ takes no body larger than 512 MiB, whatever its `max_message_size` says.
const BODY_BYTES_MAX: usize = 512 * 1024 * 1024;

/// How long the target's depth may take; past it the last one known stands if the broker has
/// blocked the connection.
const STATE_DEADLINE: Duration = Duration::from_secs(10);

/// Opens sinks to one target.
#[derive(Debug, Clone)]
pub struct AmqpConnect {
    /// The broker.
    pub broker: Broker,
    /// Where to publish.
    pub target: AmqpTarget,
}

#[async_trait]
impl Connect for AmqpConnect {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        let session = self.broker.connect().await?;
        let address = Address::new(&self.target, &session.peer)?;
        let queue = self.target.queue().map(|queue| name_of(queue, &session.peer)).transpose()?;
        if let Some(queue) = &queue {
            ready(&session, &session.channel().await?, queue).await?;
        }
        match &self.target {
            AmqpTarget::Queue { queue, via: Via::OwnExchange { name } } => {
                declare_own(&session, name, queue).await?;
            }
            AmqpTarget::Exchange { exchange, .. } if !exchange.is_empty() => {
                look_up_exchange(&session, &name_of(exchange, &session.peer)?).await?;
            }
            _ => {}
        }
        let publishing = session.channel().await?;
        let confirming = publishing.confirm_select(ConfirmSelectOptions::default());
        session.ask(Doing::Declaring, confirming).await?;
        let asking = session.channel().await?;
        let answers = Answers::new();
        Ok(Box::new(AmqpSink { session, publishing, asking, address, queue, depth: None, answers }))
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        let AmqpTarget::Queue { via: Via::OwnExchange { name }, .. } = &self.target else {
            return Ok(());
        };
        let session = self.broker.connect().await?;
        let channel = session.channel().await?;
        let exchange = name_of(name, &session.peer)?;
        let deleting = channel.exchange_delete(exchange, ExchangeDeleteOptions::default());
        let deleted = session.ask(Doing::Declaring, deleting).await;
        session.close().await;
        match deleted {
            Ok(()) | Err(BusError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Declares this replay's own exchange and binds it to the queue.
///
/// It is its own alternate exchange, which leads nowhere: arguments win over policies, so no policy
/// can give it one that takes what the queue, deleted meanwhile, does not. RabbitMQ asks for no
/// permission for it that publishing and binding do not need, too.
async fn declare_own(session: &Session, name: &str, queue: &str) -> Result<(), BusError> {
    let exchange = name_of(name, &session.peer)?;
    let declaring = declare_fanout(session, exchange.clone());
    if let Err(error) = declaring.await {
        let BusError::Refused { reason, .. } = &error else { return Err(error) };
        if !reason.starts_with("PRECONDITION_FAILED") {
            return Err(error);
        }
        // A replay that an earlier version began: it is this replay's, and nothing is on its way.
        let deleting = session.channel().await?;
        let deleting = deleting.exchange_delete(exchange.clone(), ExchangeDeleteOptions::default());
        session.ask(Doing::Declaring, deleting).await?;
        declare_fanout(session, exchange.clone()).await?;
    }
    let channel = session.channel().await?;
    let binding = channel.queue_bind(
        name_of(queue, &session.peer)?,
        exchange,
        ShortString::default(),
        QueueBindOptions::default(),
        AmqpTable::default(),
    );
    session.ask(Doing::Declaring, binding).await
}

/// Uses a channel of its own, which a refusal closes.
async fn declare_fanout(session: &Session, exchange: ShortString) -> Result<(), BusError> {
    let channel = session.channel().await?;
    // Durable, so that a broker's restart in the middle of a replay changes nothing.
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let mut arguments = AmqpTable::default();
    let itself = AMQPValue::LongString(exchange.as_str().into());
    arguments.insert("alternate-exchange".into(), itself);
    let declaring = channel.exchange_declare(exchange, ExchangeKind::Fanout, options, arguments);
    session.ask(Doing::Declaring, declaring).await
}

/// Returns how many messages are ready in a queue, which must be there.
async fn ready(session: &Session, channel: &Channel, queue: &ShortString) -> Result<u64, BusError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asking = channel.queue_declare(queue.clone(), passive, AmqpTable::default());
    Ok(u64::from(session.ask(Doing::Declaring, asking).await?.message_count()))
}

struct AmqpSink {
    session: Session,
    /// The channel that publishes.
    publishing: Channel,
    /// The channel that asks for the depth, so that its failure is its own.
    asking: Channel,
    address: Address,
    queue: Option<ShortString>,
    /// The depth when it was last told.
    depth: Option<u64>,
    answers: Answers<Sent, BasicReturnMessage, Awaited>,
}

/// What was sent, for as long as the broker may return it.
struct Sent {
    routing_key: ShortString,
    message: Message,
}

#[async_trait]
impl Sink for AmqpSink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        // All of them are converted before any is sent: an unsendable one leaves nothing behind.
        let mut sendable = Vec::with_capacity(messages.len());
        for message in messages {
            sendable.push(self.sendable(message)?);
        }
        let mut sendable = sendable.into_iter().zip(messages);
        for count in batches(messages) {
            let batch: Vec<_> = sendable.by_ref().take(count).collect();
            self.publish(batch).await?;
        }
        Ok(())
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        let Self { answers, session, .. } = self;
        match answers.settled(is_returned).await {
            Ok(settled) => Ok(settled.into_iter().map(|settled| settled.outcome(reason)).collect()),
            Err(Unclaimed::Failed(error)) => {
                Err(from_lapin(&session.peer, &error, Doing::Publishing))
            }
            Err(Unclaimed::Unknown(returned)) => {
                let key = &returned.routing_key;
                let reason = format!(
                    "it returned a message with the routing key `{key}` that was not sent like this"
                );
                Err(lost(&session.peer, reason))
            }
        }
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        let Some(queue) = &self.queue else {
            return Ok(TargetState { depth: None, blocked: self.blocked() });
        };
        // While the broker blocks the connection lapin writes nothing, and a question would
        // wait for the end of it.
        if !self.blocked() {
            let asking = ready(&self.session, &self.asking, queue);
            match tokio::time::timeout(STATE_DEADLINE, asking).await {
                Ok(depth) => self.depth = Some(depth?),
                Err(_) if self.blocked() => {}
                Err(_) => {
                    let reason = format!("no answer within {STATE_DEADLINE:?}");
                    return Err(lost(&self.session.peer, reason));
                }
            }
        }
        Ok(TargetState { depth: self.depth, blocked: self.blocked() })
    }

    async fn close(&mut self) -> Result<(), BusError> {
        let rest = async {
            while !self.answers.is_empty() {
                self.outcomes().await?;
            }
            Ok(())
        };
        let rest = tokio::time::timeout(CLOSE_DEADLINE, rest).await;
        self.session.close().await;
        rest.unwrap_or_else(|_| {
            let reason = format!("confirms were missing after {CLOSE_DEADLINE:?}");
            Err(lost(&self.session.peer, reason))
        })
    }
}

/// A message in lapin's form.
struct Sendable {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
}

impl AmqpSink {
    fn blocked(&self) -> bool {
        self.session.connection.status().blocked()
    }

    fn sendable(&self, message: &Message) -> Result<Sendable, BusError> {
        let body = message.body.len();
        if body > BODY_BYTES_MAX {
            let reason =
                format!("message size {body} is larger than RabbitMQ can take ({BODY_BYTES_MAX})");
            return Err(BusError::TooLarge { reason });
        }
        let header = wire::encoded_len(&message.properties);
        let header_max =
            self.session.connection.configuration().frame_max() as usize - FRAME_AROUND;
        if header > header_max {
            let reason = format!(
                "its properties and headers take {header} bytes, and the broker takes {header_max} \
                 (`frame_max`)"
            );
            return Err(BusError::Unsendable { reason });
        }
        Ok(Sendable {
            exchange: self.address.exchange(message)?,
            routing_key: self.address.routing_key(message)?,
            properties: to_lapin(&message.properties)?,
        })
    }

    async fn publish(&mut self, batch: Vec<(Sendable, &Message)>) -> Result<(), BusError> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut publishes = Vec::with_capacity(batch.len());
        for (sendable, message) in batch {
            let Sendable { exchange, routing_key, properties } = sendable;
            let sent = Sent { routing_key: routing_key.clone(), message: message.clone() };
            let (channel, body) = (self.publishing.clone(), message.body.clone());
            let publish = async move {
                channel.basic_publish(exchange, routing_key, options, &body, properties).await
            };
            publishes.push((sent, maybe_done(publish.boxed())));
        }
        // All in order, which puts them into lapin's queue; whether one is done is looked at below.
        poll_fn(|context| {
            for (_, publish) in &mut publishes {
                let (Poll::Ready(()) | Poll::Pending) = publish.poll_unpin(context);
            }
            Poll::Ready(())
        })
        .await;
        let mut failed = None;
        for (sent, mut publish) in publishes {
            written(&mut publish, self.session.connection.status()).await;
            match Pin::new(&mut publish).take_output() {
                Some(Ok(confirm)) => self.answers.push(sent, Awaited::written(confirm)),
                Some(Err(error)) => failed = failed.or(Some(error)),
                None => self.answers.push(sent, Awaited::unwritten(publish)),
            }
        }
        match failed {
            Some(error) => Err(self.failure(&error).await),
            None => Ok(()),
        }
    }

    /// Returns why publishing failed. A channel that the broker closed says only that it is
    /// closed; the broker's words are in the confirms that it did not give.
    async fn failure(&mut self, error: &lapin::Error) -> BusError {
        if matches!(error.kind(), ErrorKind::InvalidChannelState(..)) && !self.answers.is_empty() {
            let deadline = tokio::time::timeout(CLOSE_DEADLINE, async {
                loop {
                    if let Err(error) = self.outcomes().await {
                        return error;
                    }
                }
            });
            if let Ok(said) = deadline.await {
                return said;
            }
        }
        from_lapin(&self.session.peer, error, Doing::Publishing)
    }
}

/// Bytes around a frame's payload.
const FRAME_AROUND: usize = 8;

/// Returns how many messages go into each batch.
fn batches(messages: &[Message]) -> Vec<usize> {
    let mut batches = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for message in messages {
        if count == BATCH_MESSAGES || (count > 0 && bytes + message.body.len() > BATCH_BYTES) {
            batches.push(count);
            (count, bytes) = (0, 0);
        }
        count += 1;
        bytes += message.body.len();
    }
    if count > 0 {
        batches.push(count);
    }
    batches
}

/// Returns whether the broker returned what was sent. The broker may have taken headers off
/// (`BCC`); an interceptor of its own may have added some, so a match without them is the second
/// choice.
fn is_returned(sent: &Sent, returned: &BasicReturnMessage, exactly: bool) -> bool {
    sent.routing_key == returned.routing_key
        && sent.message.body == Bytes::from_owner(returned.data.clone())
        && (!exactly || agrees(&sent.message.properties, convert::from_lapin(&returned.properties)))
}

/// Returns whether `returned` holds nothing that was not sent.
fn agrees(sent: &Properties, mut returned: Properties) -> bool {
    let headers = returned.headers.take().unwrap_or_default();
    let sent_headers = FieldTable::new();
    let sent_headers = sent.headers.as_ref().unwrap_or(&sent_headers);
    let within = headers
        .into_iter()
        .all(|(name, value)| name.as_str().and_then(|name| sent_headers.get(name)) == Some(&value));
    returned.headers = sent.headers.clone();
    within && returned == *sent
}

/// Returns the broker's words for a returned message, for example `312 NO_ROUTE`.
fn reason(returned: &BasicReturnMessage) -> String {
    format!("{} {}", returned.reply_code, returned.reply_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: usize) -> Message {
        Message { body: vec![0; bytes].into(), ..Message::default() }
    }

    #[test]
    fn a_batch_is_bounded_by_messages_and_by_bytes() {
        assert_eq!(batches(&[]), Vec::<usize>::new());
        assert_eq!(batches(&vec![of(1); 300]), [128, 128, 44]);
        assert_eq!(batches(&vec![of(3 * 1024 * 1024); 3]), [1, 1, 1]);
        assert_eq!(batches(&[of(9 * 1024 * 1024), of(1), of(1)]), [1, 2]);
    }
}
