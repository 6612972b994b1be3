//! A service in full, to be copied: events in, SQLite state out, its own events emitted.
//!
//! It keeps orders (placed, paid, moved to another address), mails, and emits `order.settled` once an
//! order is paid. Every event is applied in one transaction with its mark and with what is to be
//! emitted, is emitted after the commit, and is acked last; so it may come twice, out of order, or
//! out of a replay, and the process may be killed at any instant. `docs/writing-a-service.md`
//! explains it.
//!
//! `ORDERS_AMQP=amqp://… orders QUEUE EXCHANGE DATABASE`

use std::io::Write;
use std::num::NonZeroU16;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_amqp::{AmqpConnect, AmqpQueue, AmqpTarget, Binding, Broker, Tls, Via, declare_service};
use dacapo_bus::{Connect, Outcome, Sink};
use dacapo_consumer::{
    Cause, Consumer, Delivery, Failure, Handled, Handler, Known, Metrics, Order, Position, Retry,
    Settings, Verdict,
};
use dacapo_event::attributes::AttributeRules;
use dacapo_event::envelope::Envelope;
use dacapo_event::{DeliveryMode, Message, Properties, ShortStr, Timestamp};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use tokio::signal::unix::{SignalKind, signal};

const PLACED: &str = "order.placed";
const PAID: &str = "order.paid";
const MOVED: &str = "order.moved";
const SETTLED: &str = "order.settled";

/// Deliveries that wait here, a second's worth, and their bytes if they are large.
const PREFETCH: NonZeroU16 = NonZeroU16::new(200).expect("it is not 0");
const WAITING_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Longer than a broker takes; one that blocks publishers is asked again.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(30);

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS orders (
        number TEXT PRIMARY KEY, total INTEGER, paid INTEGER NOT NULL DEFAULT 0,
        address TEXT, moved_at INTEGER);
    CREATE TABLE IF NOT EXISTS handled (id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS outbox (id TEXT PRIMARY KEY, body BLOB NOT NULL, sent INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS waiting ON outbox (sent) WHERE sent = 0;
";

/// What an event does to the state.
struct Change {
    sql: &'static str,
    values: Vec<Value>,
    order: Order,
}

struct Orders {
    database: Connection,
    exchange: ShortStr,
    emitted: AmqpConnect,
    /// The open way to the exchange; absent after an error.
    sink: Option<Box<dyn Sink>>,
}

#[async_trait]
impl Handler for Orders {
    async fn handle(&mut self, delivery: &Delivery) -> Result<Handled, Failure> {
        let event = Envelope::decode(&delivery.message.body).map_err(Failure::poison)?;
        let change = Change::of(&event, delivery.position).map_err(Failure::Poison)?;
        // What the database refuses is no event's fault: a full disk, another process's lock.
        let handled = self.apply(delivery, &event, change).map_err(Failure::unavailable)?;
        // The gate: what leaves no event by which it could be told is done for live events only.
        // After the commit, so at most once.
        if event.kind == PLACED && handled == Handled::Done && delivery.replay().is_none() {
            tracing::info!(order = event.key, "a mail is sent");
        }
        // Also after a repeat: the process may have ended between commit and emission.
        self.emit().await.map_err(Failure::unavailable)?;
        Ok(handled)
    }
}

impl Orders {
    /// Applies an event in one transaction with its mark and with what is to be emitted.
    fn apply(
        &mut self,
        delivery: &Delivery,
        event: &Envelope,
        change: Change,
    ) -> rusqlite::Result<Handled> {
        let transaction = self.database.transaction()?;
        let mark = "INSERT OR IGNORE INTO handled VALUES (?1)";
        let handled = transaction.execute(mark, [&delivery.id])? == 0;
        let newest = "SELECT moved_at FROM orders WHERE number = ?1";
        let newest = transaction.query_row(newest, [&event.key], |row| row.get(0)).optional()?;
        let newest = newest.flatten().map(Position);
        let handled = match change.order.judge(delivery, Known { handled, newest }) {
            Verdict::Repeat => return Ok(Handled::Repeat),
            Verdict::Older => Handled::Older,
            Verdict::Handle(_) => Handled::Done,
        };
        if handled == Handled::Done {
            transaction.execute(change.sql, params_from_iter(change.values))?;
            // The same id whichever event settles it, so that it is emitted once.
            let settled = Envelope {
                id: format!("{}:settled", event.key),
                kind: SETTLED.to_owned(),
                causation_id: event.id.clone(),
                payload: Bytes::from_static(b"{}"),
                ..event.clone()
            };
            let emission = "INSERT OR IGNORE INTO outbox (id, body, sent)
                SELECT ?2, ?3, 0 FROM orders WHERE number = ?1 AND paid >= total";
            transaction.execute(emission, (&event.key, &settled.id, &settled.encode()[..]))?;
        }
        transaction.commit()?;
        Ok(handled)
    }

    /// Publishes what waits in the outbox and marks it as sent once it is confirmed. What was sent
    /// and not marked is sent again, with the same id.
    async fn emit(&mut self) -> Result<(), Cause> {
        const WAITING: &str = "SELECT id, body FROM outbox WHERE sent = 0 ORDER BY rowid LIMIT 1";
        let next = |row: &Row<'_>| <(String, Vec<u8>)>::try_from(row);
        while let Some((id, body)) = self.database.query_row(WAITING, [], next).optional()? {
            tokio::time::timeout(CONFIRM_DEADLINE, self.publish(&id, body.into())).await??;
            self.database.execute("UPDATE outbox SET sent = 1 WHERE id = ?1", [&id])?;
        }
        Ok(())
    }

    async fn publish(&mut self, id: &str, body: Bytes) -> Result<(), Cause> {
        let properties = Properties {
            message_id: Some(ShortStr::try_from(id)?),
            delivery_mode: Some(DeliveryMode::Persistent),
            ..Properties::default()
        };
        let routing_key = ShortStr::from_static(SETTLED);
        let message = Message { exchange: self.exchange.clone(), routing_key, properties, body };
        let mut sink = match self.sink.take() {
            Some(sink) => sink,
            None => self.emitted.open().await?,
        };
        sink.send(&[message]).await?;
        let outcomes = sink.outcomes().await?;
        if outcomes != [Outcome::Confirmed] {
            return Err(format!("`{id}` was not taken: {outcomes:?}").into());
        }
        self.sink = Some(sink);
        Ok(())
    }
}

impl Change {
    /// Totals and payments add up in any order; of addresses only the newest counts.
    fn of(event: &Envelope, position: Option<Position>) -> Result<Self, Cause> {
        let payload: serde_json::Value = serde_json::from_slice(&event.payload)?;
        let missing = |name| format!("its payload has no `{name}`");
        let number = |name| payload[name].as_i64().ok_or(missing(name));
        let text = |name| payload[name].as_str().ok_or(missing(name));
        let key = Value::from(event.key.clone());
        let (sql, values, order) = match event.kind.as_str() {
            PLACED => (
                "INSERT INTO orders (number, total) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET total = ?2",
                vec![key, number("total")?.into()],
                Order::Accept,
            ),
            PAID => (
                "INSERT INTO orders (number, paid) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET paid = paid + ?2",
                vec![key, number("amount")?.into()],
                Order::Accept,
            ),
            MOVED => (
                "INSERT INTO orders (number, address, moved_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET address = ?2, moved_at = ?3",
                vec![key, text("address")?.to_owned().into(), position.map(|at| at.0).into()],
                Order::DropOlder,
            ),
            // Its own, out of a replay: it was emitted, so it is not emitted again.
            SETTLED => (
                "INSERT INTO outbox (id, body, sent) VALUES (?1, x'', 1)
                 ON CONFLICT DO UPDATE SET sent = 1",
                vec![event.id.clone().into()],
                Order::Accept,
            ),
            other => return Err(format!("nothing is known of events of type `{other}`").into()),
        };
        Ok(Change { sql, values, order })
    }
}

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "`main` is where environment and clock are read")]
async fn main() -> Result<(), Cause> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [queue, exchange, database] = arguments.as_slice() else {
        return Err("usage: ORDERS_AMQP=amqp://… orders QUEUE EXCHANGE DATABASE".into());
    };
    let url = std::env::var("ORDERS_AMQP").map_err(|error| format!("ORDERS_AMQP: {error}"))?;
    let broker = Broker { url: url.parse()?, tls: Tls::default(), client_name: queue.clone() };
    let letters = format!("{queue}.dead");
    let binding = |kind: &str| Binding { exchange: exchange.clone(), pattern: kind.to_owned() };
    declare_service(&broker, queue, &letters, &[PLACED, PAID, MOVED].map(binding)).await?;

    let to_exchange = AmqpTarget::Exchange { exchange: exchange.clone(), routing_key: None };
    let mut orders = Orders {
        database: Connection::open(database)?,
        exchange: ShortStr::try_from(exchange.as_str())?,
        emitted: AmqpConnect { broker: broker.clone(), target: to_exchange },
        sink: None,
    };
    orders.database.execute_batch(SCHEMA)?;

    let mut registry = Registry::default();
    let to_letters = AmqpTarget::Queue { queue: letters, via: Via::DefaultExchange };
    let consumer = Consumer {
        settings: Settings {
            queue: queue.clone(),
            attributes: AttributeRules::enveloped(),
            position: Vec::new(),
            retry: Retry::default(),
        },
        source: Box::new(AmqpQueue::new(broker.clone(), queue, PREFETCH, WAITING_BYTES_MAX)?),
        dead_letters: Box::new(AmqpConnect { broker, target: to_letters }),
        metrics: Metrics::register(&mut registry),
        clock: || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(Timestamp::EPOCH, |since| Timestamp::EPOCH.plus(since))
        },
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async {
        tokio::select! { _ = terminate.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
    };
    consumer.run(&mut orders, shutdown).await?;

    // A service that runs for long serves them instead.
    let mut metrics = String::new();
    encode(&mut metrics, &registry)?;
    Ok(std::io::stdout().write_all(metrics.as_bytes())?)
}
