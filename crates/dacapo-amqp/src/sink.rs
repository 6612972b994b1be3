//! Publishing with confirms and `mandatory`: declares through lapin, publishes on our own wire.

use std::time::Duration;

use async_trait::async_trait;
use dacapo_bus::{BusError, Connect, Outcome, Sink, TargetState};
use dacapo_event::{Message, ShortStr};
use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable as AmqpTable, ShortString};

use crate::Broker;
use crate::connect::{CLOSE_DEADLINE, Session};
use crate::error::{Doing, lost};
use crate::target::{Address, AmqpTarget, Via, name_of, short_of};
use crate::topology::look_up_exchange;
use crate::wire::{Publish, Publisher, Unroutable};

/// Messages that are handed to the connection's thread together: enough to make waking it cheap,
/// few enough that it writes them while the next are encoded.
const BATCH_MESSAGES: usize = 64;

/// How long the target's depth may take.
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
        Ok(Box::new(self.open_with(Unroutable::Returned).await?))
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

impl AmqpConnect {
    /// Opens a sink that takes a message which no queue takes for confirmed: what the sink alone
    /// costs where the broker's intake is the only limit.
    ///
    /// # Errors
    /// As [`Connect::open`].
    #[cfg(feature = "losing")]
    pub async fn open_losing(&self) -> Result<Box<dyn Sink>, BusError> {
        Ok(Box::new(self.open_with(Unroutable::Lost).await?))
    }

    async fn open_with(&self, unroutable: Unroutable) -> Result<AmqpSink, BusError> {
        let peer = self.broker.peer();
        let address = Address::new(&self.target, &peer)?;
        let queue = self.target.queue().map(|queue| name_of(queue, &peer)).transpose()?;
        // Side by side, for a replay begins with both; nothing is published before both are done.
        let (publisher, ()) =
            tokio::try_join!(Publisher::open(&self.broker), self.declare(queue.as_ref()))?;
        let queue = queue.as_ref().map(short_of);
        Ok(AmqpSink { publisher, address, unroutable, queue, depth: None, unanswered: 0 })
    }

    /// Makes sure that what is named is there, and declares what is the replay's own.
    async fn declare(&self, queue: Option<&ShortString>) -> Result<(), BusError> {
        if self.target == AmqpTarget::Original {
            return Ok(());
        }
        let session = self.broker.connect().await?;
        let declared = declare_in(&session, &self.target, queue).await;
        session.close().await;
        declared
    }
}

async fn declare_in(
    session: &Session,
    target: &AmqpTarget,
    queue: Option<&ShortString>,
) -> Result<(), BusError> {
    if let Some(queue) = queue {
        look_up_queue(session, queue).await?;
    }
    match target {
        AmqpTarget::Queue { queue, via: Via::OwnExchange { name } } => {
            declare_own(session, name, queue).await
        }
        AmqpTarget::Exchange { exchange, .. } if !exchange.is_empty() => {
            look_up_exchange(session, &name_of(exchange, &session.peer)?).await
        }
        _ => Ok(()),
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

/// Fails if the queue is not there.
async fn look_up_queue(session: &Session, queue: &ShortString) -> Result<(), BusError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = session.channel().await?;
    let asking = channel.queue_declare(queue.clone(), passive, AmqpTable::default());
    session.ask(Doing::Declaring, asking).await.map(drop)
}

struct AmqpSink {
    publisher: Publisher,
    address: Address,
    unroutable: Unroutable,
    queue: Option<ShortStr>,
    /// The depth when it was last told.
    depth: Option<u64>,
    /// How many messages were sent and have no outcome yet.
    unanswered: usize,
}

#[async_trait]
impl Sink for AmqpSink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        let AmqpSink { publisher, address, unroutable, unanswered, .. } = self;
        // All of them are looked at before any is sent: an unsendable one leaves nothing behind.
        for message in messages {
            Publish::check(message, publisher.frame_max)?;
        }
        for batch in messages.chunks(BATCH_MESSAGES) {
            *unanswered += batch.len();
            publisher
                .publish(Publish::all(batch, *unroutable, |message| address.of(message)))
                .await?;
        }
        Ok(())
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        let outcomes = self.publisher.outcomes().await?;
        self.unanswered = self.unanswered.saturating_sub(outcomes.len());
        Ok(outcomes)
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        // A connection that ended while it was blocked stays so, and nothing else would tell.
        if self.publisher.has_ended() {
            return Err(self.publisher.reason().await);
        }
        // A blocked connection takes no question.
        if let Some(queue) = &self.queue
            && !self.publisher.is_blocked()
        {
            let asking = self.publisher.depth(queue.clone());
            let depth = tokio::time::timeout(STATE_DEADLINE, asking).await.map_err(|_| {
                let reason = format!("no answer within {STATE_DEADLINE:?}");
                lost(&self.publisher.peer, reason)
            })??;
            self.depth = depth.or(self.depth);
        }
        Ok(TargetState { depth: self.depth, blocked: self.publisher.is_blocked() })
    }

    async fn close(&mut self) -> Result<(), BusError> {
        let rest = async {
            while self.unanswered > 0 {
                self.outcomes().await?;
            }
            Ok(())
        };
        let rest = tokio::time::timeout(CLOSE_DEADLINE, rest).await;
        self.publisher.close().await;
        rest.unwrap_or_else(|_| {
            let reason = format!("confirms were missing after {CLOSE_DEADLINE:?}");
            Err(lost(&self.publisher.peer, reason))
        })
    }
}
