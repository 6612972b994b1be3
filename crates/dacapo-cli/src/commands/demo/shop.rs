//! The shop of the demo: a week of order events, the same for the same seed. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dacapo_event::{
    DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr, Timestamp,
};
use serde_json::{Value, json};

/// The header that carries the order's number; one of the default places of an event's key.
pub(crate) const ORDER_HEADER: &str = "cloudEvents:partitionkey";

/// How long a time the events are spread over.
const SPAN: Duration = Duration::from_secs(7 * 24 * 3_600);

/// An order's next event comes within this part of all events: some eight hours of the week.
const NEXT_WITHIN: u64 = 20;

/// Orders are numbered from here, so that all numbers have as many digits.
const NUMBER_FIRST: u64 = 100_001;

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
const REGIONS: [(&str, &str); 3] = [("eu", "EUR"), ("us", "USD"), ("apac", "SGD")];
const NAMES: [&str; 8] = ["Ada", "Grace", "Linus", "Edsger", "Barbara", "Alan", "Radia", "Ken"];
const SURNAMES: [&str; 8] =
    ["Marsh", "Okafor", "Lindqvist", "Tanaka", "Moreau", "Silva", "Novak", "Haddad"];
const CITIES: [&str; 6] = ["Lisbon", "Graz", "Austin", "Osaka", "Malmö", "Perth"];
const ADJECTIVES: [&str; 6] = ["oak", "steel", "linen", "copper", "felt", "glass"];
const GOODS: [&str; 6] = ["shelf", "lamp", "kettle", "chair", "notebook", "clock"];
const CARRIERS: [&str; 3] = ["Pigeon", "Northline", "Overland"];
const REASONS: [&str; 3] = ["changed my mind", "found it cheaper", "ordered twice by mistake"];
const WORDS: [&str; 12] = [
    "please",
    "ring",
    "twice",
    "leave",
    "with",
    "neighbour",
    "gift",
    "wrap",
    "before",
    "noon",
    "fragile",
    "thanks",
];

/// What happens to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Placed,
    Paid,
    Shipped,
    Cancelled,
}

impl What {
    /// Returns the last word of the event's type, and the second of its routing key.
    pub(crate) fn word(self) -> &'static str {
        match self {
            What::Placed => "placed",
            What::Paid => "paid",
            What::Shipped => "shipped",
            What::Cancelled => "cancelled",
        }
    }

    /// Returns the event's type.
    pub(crate) fn kind(self) -> String {
        format!("order.{}", self.word())
    }

    /// Returns what an event's type means, if it is one of the shop's.
    pub(crate) fn of_type(kind: &str) -> Option<Self> {
        let word = kind.strip_prefix("order.")?;
        [What::Placed, What::Paid, What::Shipped, What::Cancelled]
            .into_iter()
            .find(|what| what.word() == word)
    }
}

/// What an order has before it when it is placed, by how often that is in a hundred.
const FATES: [(u64, &[What]); 3] = [
    (80, &[What::Paid, What::Shipped]),
    (92, &[What::Cancelled]),
    (100, &[What::Paid, What::Cancelled]),
];

/// Emits the events in order of their time.
pub(crate) struct Shop {
    random: Random,
    exchange: ShortStr,
    events: u64,
    emitted: u64,
    placed: u64,
    end: Timestamp,
    /// Orders that have something before them, by when it is due (in events) and their number.
    open: BTreeMap<(u64, u64), Order>,
}

struct Order {
    number: String,
    tenant: &'static str,
    region: &'static str,
    currency: &'static str,
    customer: Value,
    items: Value,
    total_cents: u64,
    ahead: &'static [What],
}

impl Shop {
    /// Returns a shop that publishes so many events to `exchange`, the last of them at `end`.
    pub(crate) fn new(seed: u64, events: u64, exchange: ShortStr, end: Timestamp) -> Self {
        let random = Random(seed);
        Shop { random, exchange, events, emitted: 0, placed: 0, end, open: BTreeMap::new() }
    }

    fn place(&mut self) -> Order {
        let random = &mut self.random;
        let number = format!("A-{}", NUMBER_FIRST + self.placed);
        self.placed += 1;
        let (region, currency) = random.pick(&REGIONS);
        let (name, surname) = (random.pick(&NAMES), random.pick(&SURNAMES));
        let customer = json!({
            "id": format!("c-{:08x}", random.next() as u32),
            "name": format!("{name} {surname}"),
            "email": format!("{}.{:04x}@example.com", name.to_lowercase(), random.next() as u16),
            "street": format!("{surname} Street {}", 1 + random.below(180)),
            "city": random.pick(&CITIES),
        });
        let (mut items, mut total_cents) = (Vec::new(), 0);
        for _ in 0..=random.below(4) {
            let (quantity, cents) = (1 + random.below(3), 199 + random.below(14_800));
            total_cents += quantity * cents;
            items.push(json!({
                "sku": format!("{:010x}", random.next() >> 24),
                "name": format!("{} {}", random.pick(&ADJECTIVES), random.pick(&GOODS)),
                "quantity": quantity,
                "price": money(cents),
            }));
        }
        let fate = random.below(100);
        let ahead =
            FATES.iter().find(|(below, _)| fate < *below).map_or(&[][..], |(_, ahead)| ahead);
        let tenant = random.pick(&TENANTS);
        let items = items.into();
        Order { number, tenant, region, currency, customer, items, total_cents, ahead }
    }

    fn message(&mut self, order: &Order, what: What, at: Timestamp) -> Message {
        let random = &mut self.random;
        let kind = what.kind();
        let mut body = json!({
            "event": kind,
            "order": order.number,
            "total": money(order.total_cents),
            "currency": order.currency,
            "at": at.to_string(),
            "customer": order.customer,
            "items": order.items,
            "client": {
                "address": format!("203.0.113.{}", 1 + random.below(254)),
                "agent": format!("ShopApp/{}.{} (build {:08x})", 3 + random.below(4), random.below(20), random.next() as u32),
            },
        });
        body[what.word()] = match what {
            What::Placed => {
                let words: Vec<_> =
                    (0..6 + random.below(12)).map(|_| random.pick(&WORDS)).collect();
                json!({ "note": words.join(" "), "session": random.hex() })
            }
            What::Paid => json!({
                "method": random.pick(&["card", "invoice", "wallet"]),
                "reference": random.hex(),
                "amount": money(order.total_cents),
            }),
            What::Shipped => json!({
                "carrier": random.pick(&CARRIERS),
                "tracking": random.hex(),
                "weight_g": 200 + random.below(19_800),
            }),
            What::Cancelled => json!({ "reason": random.pick(&REASONS), "by": "customer" }),
        };
        body["trace"] = json!(format!("{}{}", random.hex(), random.hex()));
        let headers = [
            (ShortStr::from_static("tenant"), FieldValue::text(order.tenant)),
            (ShortStr::from_static("region"), FieldValue::text(order.region)),
            (ShortStr::from_static(ORDER_HEADER), FieldValue::text(order.number.clone())),
        ];
        let properties = Properties {
            content_type: Some(ShortStr::from_static("application/json")),
            headers: Some(headers.into_iter().collect::<FieldTable>()),
            delivery_mode: Some(DeliveryMode::Persistent),
            message_id: Some(short(random.hex())),
            timestamp: u64::try_from(at.as_micros() / 1_000_000).ok(),
            app_id: Some(ShortStr::from_static("shop")),
            kind: Some(short(kind)),
            ..Properties::default()
        };
        Message {
            exchange: self.exchange.clone(),
            routing_key: short(format!("orders.{}.{}", what.word(), order.region)),
            properties,
            body: Bytes::from(body.to_string()),
        }
    }
}

impl Iterator for Shop {
    type Item = (What, Message);

    fn next(&mut self) -> Option<Self::Item> {
        let now = self.emitted;
        if now == self.events {
            return None;
        }
        self.emitted += 1;
        let due = self.open.first_entry().filter(|first| first.key().0 <= now);
        let (order, what) = match due {
            Some(due) => {
                let mut order = due.remove();
                let (what, ahead) =
                    order.ahead.split_first().expect("open orders have a next event");
                order.ahead = ahead;
                (order, *what)
            }
            None => (self.place(), What::Placed),
        };
        let left = SPAN.mul_f64((self.events - self.emitted) as f64 / self.events as f64);
        let message = self.message(&order, what, self.end.minus(left));
        if !order.ahead.is_empty() {
            let due = now + 1 + self.random.below((self.events / NEXT_WITHIN).max(2));
            // Unique: an order is open once.
            let number = order.number[2..].parse().expect("made of a number");
            self.open.insert((due, number), order);
        }
        Some((what, message))
    }
}

/// Two decimals as JSON has them.
fn money(cents: u64) -> f64 {
    cents as f64 / 100.0
}

fn short(text: String) -> ShortStr {
    ShortStr::try_from(text).expect("names of the shop are short")
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its outputs do not repeat, so made ids are
/// unique.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn hex(&mut self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn week(events: u64) -> Vec<(What, Message)> {
        let end = "2026-11-23T08:00:00Z".parse().unwrap();
        Shop::new(17, events, ShortStr::from_static("shop"), end).collect()
    }

    #[test]
    fn the_same_seed_emits_the_same_events() {
        assert_eq!(week(300), week(300));
    }

    #[test]
    fn every_event_has_its_own_id_and_its_place_in_the_week() {
        let events = week(1_000);
        assert_eq!(events.len(), 1_000);
        let ids: BTreeSet<_> =
            events.iter().map(|(_, e)| e.properties.message_id.clone()).collect();
        assert_eq!(ids.len(), 1_000);
        let times: Vec<_> = events.iter().map(|(_, e)| e.properties.timestamp).collect();
        assert!(times.is_sorted());
        let last = "2026-11-23T08:00:00Z".parse::<Timestamp>().unwrap();
        assert_eq!(times[999].map(Timestamp::from_secs), Some(last));
        assert!(Timestamp::from_secs(times[0].unwrap()) >= last.minus(SPAN));
    }

    #[test]
    fn bodies_are_json_of_a_realistic_size() {
        let events = week(1_000);
        let all: usize = events.iter().map(|(_, event)| event.body.len()).sum();
        assert!((600..1_000).contains(&(all / 1_000)), "{} bytes on average", all / 1_000);
        for (what, event) in &events {
            let body: Value = serde_json::from_slice(&event.body).unwrap();
            assert!(body["total"].as_f64().is_some_and(|total| total > 0.0), "{body}");
            assert!(body[what.word()].is_object(), "{body}");
        }
    }

    #[test]
    fn an_order_is_placed_first_and_ends_once() {
        let mut steps: BTreeMap<String, Vec<What>> = BTreeMap::new();
        for (what, event) in week(5_000) {
            let order = event.properties.header(ORDER_HEADER).unwrap();
            steps.entry(order.to_text_lossy()).or_default().push(what);
        }
        for (order, steps) in &steps {
            let (first, rest) = steps.split_first().unwrap();
            assert_eq!(*first, What::Placed, "{order}");
            assert!(FATES.iter().any(|(_, ahead)| ahead.starts_with(rest)), "{order}: {steps:?}");
        }
        assert!(steps.values().any(|steps| steps.ends_with(&[What::Shipped])));
    }
}
