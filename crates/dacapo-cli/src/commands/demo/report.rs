//! What a demo has shown: figures, checks, and what to try next. Pure.

use std::collections::BTreeMap;

use dacapo_engine::receipt::Receipt;
use dacapo_event::Digest;
use serde_json::{Value, json};

use super::services::Orders;
use super::shop::What;
use crate::format;

/// What was seen of the demo's parts.
#[derive(Debug)]
pub(crate) struct Figures {
    /// The demo's name.
    pub(crate) name: String,
    /// Where what it leaves is.
    pub(crate) folder: String,
    /// Where it took place.
    pub(crate) bus: String,
    /// Events emitted, by type.
    pub(crate) by_type: BTreeMap<What, u64>,
    /// The archive when all was emitted.
    pub(crate) archive: Archive,
    /// Events in the archive at the end.
    pub(crate) archived_at_the_end: u64,
    /// `orders` before it lost its state, without it, and after the replay.
    pub(crate) orders: [OrdersState; 3],
    /// `mailer` before the replay, and after it.
    pub(crate) mailer: [MailerState; 2],
    /// What the replay did.
    pub(crate) receipt: Receipt,
    /// How long all of it took.
    pub(crate) seconds: f64,
    /// Commands to try, each with what it shows.
    pub(crate) commands: Vec<(&'static str, String)>,
}

/// How much an archive holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Archive {
    pub(crate) events: u64,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

/// What `orders` knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrdersState {
    pub(crate) orders: u64,
    pub(crate) digest: Digest,
}

/// What `mailer` was given and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MailerState {
    /// Messages it was given.
    pub(crate) received: u64,
    /// Messages that wait in its queue.
    pub(crate) waiting: u64,
    /// Mails it sent; known when it has stopped.
    pub(crate) sent: u64,
    /// Messages that it was given again.
    pub(crate) repeats: u64,
}

/// Something that must hold.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) holds: bool,
}

impl OrdersState {
    /// Returns what is known now.
    pub(crate) fn of(orders: &Orders) -> Self {
        OrdersState { orders: orders.len(), digest: orders.digest() }
    }
}

impl Figures {
    /// Returns how many events were emitted.
    pub(crate) fn emitted(&self) -> u64 {
        self.by_type.values().sum()
    }

    /// Returns everything that the demo is to show, and whether it did.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let emitted = self.emitted();
        let [before, lost, after] = &self.orders;
        let [then, now] = &self.mailer;
        let counts = &self.receipt.counts;
        let check = |what, holds| Check { what, holds };
        vec![
            check("every event is in the archive", self.archive.events == emitted),
            check("`orders` had lost its state", before.digest != lost.digest),
            check("the state of `orders` is what it was", before.digest == after.digest),
            check(
                "every event was replayed and confirmed",
                counts.confirmed == emitted
                    && self.receipt.remaining() == 0
                    && self.receipt.rejected == 0,
            ),
            check(
                "`mailer` got none of the replay",
                then.received == now.received && now.waiting == 0,
            ),
            check("`mailer` sent no mail twice", now.repeats == 0 && now.sent == then.received),
            check("the replay was not archived again", self.archived_at_the_end == emitted),
        ]
    }

    /// Returns whether everything holds.
    pub(crate) fn passed(&self) -> bool {
        self.checks().iter().all(|check| check.holds)
    }

    /// Returns all of it for scripts.
    pub(crate) fn to_json(&self) -> Value {
        let by_type = self.by_type.iter().map(|(what, count)| (what.kind(), Value::from(*count)));
        let by_type: serde_json::Map<_, _> = by_type.collect();
        let orders = |state: &OrdersState| json!({ "orders": state.orders, "digest": state.digest.to_string() });
        let mailer =
            |state: &MailerState| json!({ "received": state.received, "waiting": state.waiting });
        let checks: Vec<Value> = self
            .checks()
            .iter()
            .map(|check| json!({ "check": check.what, "holds": check.holds }))
            .collect();
        let commands: Vec<&str> = self.commands.iter().map(|(_, command)| &**command).collect();
        let [before, lost, after] = &self.orders;
        let [then, now] = &self.mailer;
        json!({
            "demo": self.name,
            "passed": self.passed(),
            "bus": self.bus,
            "dir": self.folder,
            "events": self.emitted(),
            "by_type": by_type,
            "archive": {
                "events": self.archive.events,
                "events_at_the_end": self.archived_at_the_end,
                "segments": self.archive.segments,
                "bytes": self.archive.bytes,
            },
            "orders": { "before": orders(before), "lost": orders(lost), "after": orders(after) },
            "mailer": {
                "before": mailer(then),
                "after": mailer(now),
                "sent": now.sent,
                "sent_twice": now.repeats,
            },
            "replay": self.receipt.to_json(),
            "checks": checks,
            "commands": commands,
            "seconds": self.seconds,
        })
    }

    /// Returns the end of the story, as a person reads it.
    pub(crate) fn text(&self) -> String {
        let failed: Vec<&str> =
            self.checks().iter().filter(|check| !check.holds).map(|check| check.what).collect();
        let took = format::seconds(self.seconds);
        let mut text = match failed.is_empty() {
            true => format!(
                "\nPASS: `orders` is what it was, from the archive alone, and nobody else noticed.\n\
                 It took {took}; all of it is in `{}` (yours to delete).\n",
                self.folder
            ),
            false => format!(
                "\nFAIL: this does not hold: {}.\nIt took {took}; all of it is in `{}`.\n",
                failed.join("; "),
                self.folder
            ),
        };
        text += "\nTry on what is there:\n";
        for (shows, command) in &self.commands {
            text += &format!("\n# {shows}\n{command}\n");
        }
        text
    }
}

/// Returns the beginning of a digest: enough for a person to compare.
pub(crate) fn short(digest: &Digest) -> String {
    digest.to_string()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use dacapo_engine::journal::{Counts, Phase};
    use dacapo_engine::state::ReplayId;
    use dacapo_event::Timestamp;

    use super::*;

    fn figures() -> Figures {
        let state = |text: &str| OrdersState { orders: 1, digest: Digest::of(text.as_bytes()) };
        let mailer = MailerState { received: 2, waiting: 0, sent: 2, repeats: 0 };
        let nothing = Digest::of(b"");
        Figures {
            name: "dacapo-demo-1".to_owned(),
            folder: "d".to_owned(),
            bus: "a bus in memory".to_owned(),
            by_type: BTreeMap::from([(What::Placed, 1), (What::Paid, 1), (What::Shipped, 1)]),
            archive: Archive { events: 3, segments: 1, bytes: 100 },
            archived_at_the_end: 3,
            orders: [state("whole"), state(""), state("whole")],
            mailer: [mailer, mailer],
            receipt: Receipt {
                id: ReplayId::new(Timestamp::EPOCH, &nothing, 1),
                phase: Phase::Completed,
                selected: 3,
                selected_exact: true,
                rejected: 0,
                rejects: None,
                counts: Counts { confirmed: 3, ..Counts::default() },
                bytes_full_scan: 100,
                plan: nothing.to_string(),
                target: "queue `orders`".to_owned(),
                overridden: Vec::new(),
                approval: None,
                refusal: None,
            },
            seconds: 1.0,
            commands: vec![("nothing", "true".to_owned())],
        }
    }

    #[test]
    fn a_demo_that_shows_everything_passes() {
        let figures = figures();
        assert!(figures.passed(), "{:?}", figures.checks());
        assert!(figures.text().starts_with("\nPASS: "));
        assert_eq!(figures.to_json()["by_type"]["order.paid"], 1);
    }

    /// Checks that one thing that is wrong fails this check, and no other.
    #[track_caller]
    fn check(expected: &str, harm: fn(&mut Figures)) {
        let mut figures = figures();
        harm(&mut figures);
        let failed: Vec<_> =
            figures.checks().iter().filter(|check| !check.holds).map(|check| check.what).collect();
        assert_eq!(failed, [expected]);
        assert!(!figures.passed());
        let text = figures.text();
        assert!(text.starts_with(&format!("\nFAIL: this does not hold: {expected}.")), "{text}");
    }

    #[test]
    fn each_thing_that_is_wrong_fails_the_demo() {
        check("every event is in the archive", |f| f.archive.events = 2);
        check("`orders` had lost its state", |f| f.orders[1] = f.orders[0]);
        check("the state of `orders` is what it was", |f| f.orders[2].digest = Digest::of(b"half"));
        let replayed = "every event was replayed and confirmed";
        check(replayed, |f| f.receipt.counts.confirmed = 2);
        check(replayed, |f| f.receipt.selected = 4);
        let spared = "`mailer` got none of the replay";
        check(spared, |f| f.mailer[1].received = 3);
        check(spared, |f| f.mailer[1].waiting = 1);
        check("`mailer` sent no mail twice", |f| f.mailer[1].repeats = 1);
        check("the replay was not archived again", |f| f.archived_at_the_end = 6);
    }
}
