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
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params_from_iter};
use tokio::signal::unix::{SignalKind, signal};

const PLACED: &str = "order.placed";
const PAID: &str = "order.paid";
const MOVED: &str = "order.moved";
const SETTLED: &str = "order.settled";

/// Deliveries that wait here, a second's worth, and their bytes if they are large.
const PREFETCH: NonZeroU16 = NonZeroU16::new(200).expect("it is not 0");
const WAITING_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Longer than a broker takes; one that blocks publishers is asked again. An event may take four.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(30);

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS orders (
        number TEXT PRIMARY KEY, total INTEGER, paid INTEGER NOT NULL DEFAULT 0,
        changed_at INTEGER NOT NULL DEFAULT 0, address TEXT, moved_at INTEGER);
    CREATE TABLE IF NOT EXISTS handled (id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS outbox (id TEXT PRIMARY KEY, body BLOB NOT NULL, sent INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS waiting ON outbox (sent) WHERE sent = 0;
";

/// What an event does to an order.
struct Change {
    order: String,
    /// The id of what is emitted once that is settled.
    settled: ShortStr,
    sql: &'static str,
    values: Vec<Value>,
    policy: Order,
}

struct Orders {
    database: Connection,
    exchange: ShortStr,
    emitted: AmqpConnect,
    /// The open way to the exchange; absent after an error.
    sink: Option<Box<dyn Sink>>,
    unroutable: Counter,
}

#[async_trait]
impl Handler for Orders {
    async fn handle(&mut self, delivery: &Delivery) -> Result<Handled, Failure> {
        let event = Envelope::decode(&delivery.message.body).map_err(Failure::poison)?;
        let change = Change::of(delivery, &event).map_err(Failure::Poison)?;
        let handled = self.apply(delivery, change).map_err(failure)?;
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

/// What the event itself cannot do is its own fault; a full disk or another's lock is not.
fn failure(error: rusqlite::Error) -> Failure {
    use ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
    match error.sqlite_error_code() {
        Some(ConstraintViolation | TooBig | TypeMismatch) | None => Failure::poison(error),
        Some(_) => Failure::unavailable(error),
    }
}

impl Orders {
    /// Applies an event in one transaction with its mark and with what is to be emitted.
    fn apply(&mut self, delivery: &Delivery, change: Change) -> rusqlite::Result<Handled> {
        let Change { order: number, settled, sql, values, policy } = change;
        let transaction = self.database.transaction()?;
        let mark = "INSERT OR IGNORE INTO handled VALUES (?1)";
        let handled = transaction.execute(mark, [&delivery.id])? == 0;
        let newest = "SELECT moved_at FROM orders WHERE number = ?1";
        let newest = transaction.query_row(newest, [&number], |row| row.get(0)).optional()?;
        let newest = newest.flatten().map(Position);
        let handled = match policy.judge(delivery, Known { handled, newest }) {
            Verdict::Repeat => return Ok(Handled::Repeat),
            Verdict::Older => Handled::Older,
            Verdict::Handle(_) => Handled::Done,
        };
        if handled == Handled::Done {
            transaction.execute(sql, params_from_iter(values))?;
            let paid = "SELECT changed_at FROM orders WHERE number = ?1 AND paid >= total";
            let paid = transaction.query_row(paid, [&number], |row| row.get(0)).optional()?;
            if let Some(time) = paid.map(Timestamp::from_micros) {
                // The same whichever of its causes comes last, so it names none of them.
                let event = Envelope {
                    id: settled.to_str_lossy().into_owned(),
                    time,
                    kind: SETTLED.to_owned(),
                    key: number,
                    causation_id: String::new(),
                    content_type: "application/json".to_owned(),
                    payload: Bytes::from_static(b"{}"),
                };
                let emission = "INSERT OR IGNORE INTO outbox (id, body, sent) VALUES (?1, ?2, 0)";
                transaction.execute(emission, (&event.id, &event.encode()[..]))?;
            }
        }
        transaction.commit()?;
        Ok(handled)
    }

    /// Publishes what waits in the outbox and marks it as sent once it is confirmed. What was sent
    /// and not marked is sent again, with the same id. What nobody is bound to holds up nothing: it is
    /// told, and kept with the mark 2.
    async fn emit(&mut self) -> Result<(), Cause> {
        const WAITING: &str = "SELECT id, body FROM outbox WHERE sent = 0 ORDER BY rowid LIMIT 1";
        let next = |row: &Row<'_>| <(String, Vec<u8>)>::try_from(row);
        while let Some((id, body)) = self.database.query_row(WAITING, [], next).optional()? {
            let publishing = self.publish(&id, body.into());
            let sent = match tokio::time::timeout(CONFIRM_DEADLINE, publishing).await?? {
                Outcome::Confirmed => 1,
                Outcome::Returned { reason } => {
                    tracing::error!(id, reason, "nobody is bound to an event of this service");
                    self.unroutable.inc();
                    2
                }
                Outcome::Nacked => return Err(format!("a queue refuses `{id}`").into()),
            };
            self.database.execute("UPDATE outbox SET sent = ?2 WHERE id = ?1", (&id, sent))?;
        }
        Ok(())
    }

    async fn publish(&mut self, id: &str, body: Bytes) -> Result<Outcome, Cause> {
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
        let outcome = sink.outcomes().await?.pop().ok_or("no outcome")?;
        self.sink = Some(sink);
        Ok(outcome)
    }
}

impl Change {
    /// Totals and payments add up in any order; of addresses only the newest counts.
    fn of(delivery: &Delivery, event: &Envelope) -> Result<Self, Cause> {
        let number = delivery.key.clone().ok_or("it has no key")?;
        // Whatever could not be emitted is found out before anything is done.
        let settled = ShortStr::try_from(format!("{number}:settled").as_str())?;
        let payload: serde_json::Value = serde_json::from_slice(&event.payload)?;
        let missing = |name| format!("its payload has no `{name}`");
        let amount = |name| payload[name].as_i64().ok_or(missing(name));
        let text = |name| payload[name].as_str().ok_or(missing(name));
        let (key, time) = (Value::from(number.clone()), Value::from(event.time.as_micros()));
        let (sql, values, policy) = match event.kind.as_str() {
            PLACED => (
                "INSERT INTO orders (number, total, changed_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET total = ?2, changed_at = max(changed_at, ?3)",
                vec![key, amount("total")?.into(), time],
                Order::Accept,
            ),
            PAID => (
                "INSERT INTO orders (number, paid, changed_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET paid = paid + ?2, changed_at = max(changed_at, ?3)",
                vec![key, amount("amount")?.into(), time],
                Order::Accept,
            ),
            MOVED => (
                "INSERT INTO orders (number, address, moved_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET address = ?2, moved_at = max(coalesce(moved_at, ?3), ?3)",
                vec![key, text("address")?.to_owned().into(), time],
                Order::DropOlder,
            ),
            // Its own, out of a replay: it was emitted, so it is not emitted again.
            SETTLED => (
                "INSERT INTO outbox (id, body, sent) VALUES (?1, ?2, 1)
                 ON CONFLICT DO UPDATE SET body = ?2, sent = 1",
                vec![delivery.id.clone().into(), delivery.message.body.to_vec().into()],
                Order::Accept,
            ),
            other => return Err(format!("nothing is known of events of type `{other}`").into()),
        };
        Ok(Change { order: number, settled, sql, values, policy })
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
        unroutable: Counter::default(),
    };
    orders.database.execute_batch(SCHEMA)?;
    // What a run before this one left, however long the next event takes to come.
    orders.emit().await?;

    let mut registry = Registry::default();
    let unroutable = orders.unroutable.clone();
    registry.register("orders_unroutable", "Own events that nobody is bound to", unroutable);
    let to_letters = AmqpTarget::Queue { queue: letters, via: Via::DefaultExchange };
    let consumer = Consumer {
        settings: Settings {
            queue: queue.clone(),
            attributes: AttributeRules::enveloped(),
            position: Vec::new(),
            retry: Retry::default(),
            handle_deadline: 4 * CONFIRM_DEADLINE,
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
