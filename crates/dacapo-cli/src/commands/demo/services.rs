//! The two services of the demo: each handles what is in its own queue, and remembers.
//!
//! Both are as a service of such a platform must be: idempotent by event id. Neither knows that
//! there is such a thing as a replay.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::Context;
use dacapo_bus::Source;
use dacapo_event::{Digest, FieldValue, Hasher, Message};
use serde::Deserialize;
use tokio::sync::{oneshot, watch};

use super::shop::{ORDER_HEADER, What};

/// Deliveries for one ack: a fifth of [`PREFETCH`], so that the bus never waits for it.
const ACK_EVERY: u64 = 200;

/// How many messages a service is given at once.
pub(crate) const PREFETCH: u16 = 1_000;

/// After so long without a delivery, what was handled is acked: short beside a person's patience.
const ACK_IDLE: Duration = Duration::from_millis(20);

/// Handles one message after the other.
pub(crate) trait Service: Send + 'static {
    /// Handles a message.
    ///
    /// # Errors
    /// The message is not one of the shop's.
    fn handle(&mut self, message: &Message) -> anyhow::Result<()>;
}

/// Handles what `source` delivers until told to stop, acks it and closes; `handled` is told how
/// many deliveries that were so far. Returns the service with its state.
pub(crate) async fn serve<S: Service>(
    mut service: S,
    mut source: Box<dyn Source>,
    handled: watch::Sender<u64>,
    mut stop: oneshot::Receiver<()>,
) -> anyhow::Result<S> {
    let (mut last, mut acked) = (0, 0);
    loop {
        let delivery = tokio::select! {
            // A sender that is gone says stop, too.
            _ = &mut stop => break,
            delivery = source.next() => delivery?,
            () = tokio::time::sleep(ACK_IDLE), if last > acked => {
                source.ack(last).await?;
                acked = last;
                continue;
            }
        };
        let delivery = delivery.context("the bus ended the deliveries")?;
        service.handle(&delivery.message)?;
        last = delivery.tag;
        if last - acked >= ACK_EVERY {
            source.ack(last).await?;
            acked = last;
        }
        handled.send_modify(|handled| *handled += 1);
    }
    if last > acked {
        source.ack(last).await?;
    }
    source.close().await?;
    Ok(service)
}

/// Keeps the state of every order.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    remembered: HashSet<String>,
    orders: BTreeMap<String, Order>,
}

#[derive(Debug)]
struct Order {
    /// When it last changed, in seconds since 1970, and how.
    latest: (u64, What),
    region: String,
    total: f64,
    events: u64,
}

/// What `orders` reads of a body.
#[derive(Deserialize)]
struct Body {
    total: f64,
}

impl Orders {
    /// Returns how many orders it knows.
    pub(crate) fn len(&self) -> u64 {
        self.orders.len() as u64
    }

    /// Returns the number of an order with a history of several events.
    pub(crate) fn example(&self) -> Option<&str> {
        let whole = |order: &&(&String, &Order)| order.1.latest.1 == What::Shipped;
        self.orders.iter().find(|order| whole(&order)).map(|(number, _)| number.as_str())
    }

    /// Returns the digest of the whole state: equal if and only if every field of every order is.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        for (number, order) in &self.orders {
            let (at, what) = order.latest;
            hasher.update_framed(number.as_bytes());
            hasher.update_framed(what.word().as_bytes());
            hasher.update_framed(order.region.as_bytes());
            hasher.update(&at.to_le_bytes());
            hasher.update(&order.total.to_le_bytes());
            hasher.update(&order.events.to_le_bytes());
        }
        hasher.finish()
    }
}

impl Service for Orders {
    fn handle(&mut self, message: &Message) -> anyhow::Result<()> {
        let event = Parts::of(message)?;
        if !self.remembered.insert(event.id) {
            return Ok(());
        }
        let body: Body =
            serde_json::from_slice(&message.body).context("a body of the shop is JSON")?;
        let latest = (event.at, event.what);
        let order = self.orders.entry(event.order).or_insert_with(|| Order {
            latest,
            region: event.region,
            total: body.total,
            events: 0,
        });
        // Copes with an event that comes late.
        order.latest = order.latest.max(latest);
        order.events += 1;
        Ok(())
    }
}

/// Sends one mail for each order that is placed or shipped.
#[derive(Debug, Default)]
pub(crate) struct Mailer {
    remembered: HashSet<String>,
    /// Mails sent.
    pub(crate) sent: u64,
    /// Messages that came again.
    pub(crate) repeats: u64,
}

impl Service for Mailer {
    fn handle(&mut self, message: &Message) -> anyhow::Result<()> {
        if self.remembered.insert(Parts::of(message)?.id) {
            self.sent += 1;
        } else {
            self.repeats += 1;
        }
        Ok(())
    }
}

/// What the services read of a message's envelope.
struct Parts {
    id: String,
    what: What,
    at: u64,
    order: String,
    region: String,
}

impl Parts {
    fn of(message: &Message) -> anyhow::Result<Self> {
        let properties = &message.properties;
        // From the routing key, not the header: it must arrive as it was.
        let routing_key = message.routing_key.to_str_lossy();
        let parts = || {
            Some(Parts {
                id: properties.message_id.as_ref()?.to_string(),
                what: What::of_type(properties.kind.as_ref()?.as_str()?)?,
                at: properties.timestamp?,
                order: properties.header(ORDER_HEADER).and_then(FieldValue::as_text)?.to_owned(),
                region: routing_key.strip_prefix("orders.")?.split_once('.')?.1.to_owned(),
            })
        };
        parts().with_context(|| format!("message `{routing_key}` is not one of the shop's"))
    }
}

#[cfg(test)]
mod tests {
    use dacapo_event::{ShortStr, Timestamp};

    use super::super::shop::Shop;
    use super::*;

    fn week() -> Vec<Message> {
        let exchange = ShortStr::from_static("shop");
        let end = Timestamp::from_secs(1_800_000_000);
        Shop::new(17, 500, exchange, end).map(|(_, message)| message).collect()
    }

    fn digest_of<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Digest {
        let mut orders = Orders::default();
        for message in messages {
            orders.handle(message).unwrap();
        }
        orders.digest()
    }

    #[test]
    fn a_repeat_and_another_order_of_events_end_in_the_same_state() {
        let week = week();
        assert_eq!(digest_of(&week), digest_of(week.iter().chain(&week)));
        assert_eq!(digest_of(&week), digest_of(week.iter().rev()));
    }

    #[test]
    fn a_missing_event_or_a_changed_routing_key_is_another_state() {
        let mut week = week();
        let whole = digest_of(&week);
        assert_ne!(whole, digest_of(&week[..499]));
        assert_ne!(whole, digest_of(&week[1..]));
        week[0].routing_key = ShortStr::from_static("orders.placed.moon");
        assert_ne!(whole, digest_of(&week));
    }

    #[test]
    fn a_mail_is_sent_once() {
        let week = week();
        let mut mailer = Mailer::default();
        for message in week.iter().chain(&week[..3]) {
            mailer.handle(message).unwrap();
        }
        assert_eq!((mailer.sent, mailer.repeats), (500, 3));
    }
}
