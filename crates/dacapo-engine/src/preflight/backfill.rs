//! What speaks against a backfill beside what speaks against a replay: that its history would lack
//! events, or that there is no room to hold live ones.

use std::collections::BTreeSet;

use dacapo_bus::broker::{Binding, Destination, ExchangeKind, Setting, Topology, parked_queue};
use dacapo_event::topic;

use super::{Check, Facts, Found, Load, Preflight, Wishes, check, queue};
use crate::backfill::Bound;

/// Returns the queues of archivers that any of these bindings' exchanges leads to, known by their
/// form; parking queues are left out.
pub fn archivers_of(topology: &Topology, bindings: &[Bound]) -> BTreeSet<String> {
    let reached = bindings.iter().flat_map(|bound| topology.reached(&bound.exchange, None));
    let is_archivers = |name: &&str| {
        topology.queues.get(*name).is_some_and(|queue| queue.is_archivers)
            && topology.queues.contains_key(&parked_queue(name))
    };
    reached.filter(is_archivers).map(str::to_owned).collect()
}

/// Looks whether one of the archivers' queues gets everything that each binding takes.
pub fn check_archived(
    topology: &Result<Topology, String>,
    bindings: &[Bound],
    archivers: &[String],
    wishes: Wishes,
) -> Preflight {
    let mut found = Found::default();
    match topology {
        Ok(topology) => {
            for bound in bindings {
                archived(topology, bound, archivers, &mut found);
            }
            fed_by_others(topology, bindings, &mut found);
        }
        Err(why) => found.unchecked(&[Check::NotArchived], why),
    }
    found.into_preflight(wishes)
}

fn archived(topology: &Topology, bound: &Bound, archivers: &[String], found: &mut Found) {
    let Bound { exchange, key } = bound;
    let kind = topology.exchanges.get(exchange).map(|exchange| exchange.kind);
    let leads_here = |binding: &&Binding| {
        let queue = match &binding.destination {
            Destination::Queue(queue) => archivers.contains(queue),
            Destination::Exchange(_) => false,
        };
        queue && binding.source == *exchange
    };
    let covers = |binding: &Binding| match kind {
        Some(ExchangeKind::Fanout) => true,
        Some(ExchangeKind::Direct) => binding.routing_key == *key,
        Some(ExchangeKind::Topic) => topic::covers(binding.routing_key.as_bytes(), key.as_bytes()),
        Some(ExchangeKind::Headers) => binding.headers.fields.is_empty(),
        Some(ExchangeKind::Other) | None => false,
    };
    if topology.bindings.iter().filter(leads_here).any(covers) {
        return;
    }
    let through_others = topology.reached(exchange, None);
    let direct = topology.bindings.iter().any(|binding| leads_here(&binding));
    if !direct && archivers.iter().any(|queue| through_others.contains(queue.as_str())) {
        let why = format!(
            "exchange `{exchange}` leads to an archiver's queue through other exchanges; look at their \
             bindings"
        );
        found.unchecked(&[Check::NotArchived], &why);
        return;
    }
    let queues: Vec<String> = archivers.iter().map(|queue| format!("`{queue}`")).collect();
    found.refuse(
        Check::NotArchived,
        format!(
            "no binding of {} covers exchange `{exchange}` with `{key}`, so its history would lack events",
            queues.join(", ")
        ),
        format!(
            "let an archiver bind it (`dacapo archive run --bind {exchange}={key}`) and name its queue \
             (--archiver-queue)"
        ),
    );
}

/// An event keeps the exchange that it was published to, so what comes to a bound exchange from another
/// one is no history of the bound one.
fn fed_by_others(topology: &Topology, bindings: &[Bound], found: &mut Found) {
    let is_bound = |exchange: &str| bindings.iter().any(|bound| bound.exchange == exchange);
    // Without a key: whatever is published to it.
    let has_all = |exchange: &str, fed_with: Option<&str>| {
        let kind = topology.exchanges.get(exchange).map(|exchange| exchange.kind);
        let covers = |bound: &&Bound| match (kind, fed_with) {
            (Some(ExchangeKind::Fanout), _) => true,
            (Some(ExchangeKind::Direct), Some(key)) => bound.key == key,
            (Some(ExchangeKind::Topic), Some(key)) => {
                topic::covers(bound.key.as_bytes(), key.as_bytes())
            }
            (Some(ExchangeKind::Topic), None) => topic::covers(bound.key.as_bytes(), b"#"),
            // A binding of the queue asks for no header.
            (Some(ExchangeKind::Headers), _) => true,
            (Some(ExchangeKind::Direct), None) | (Some(ExchangeKind::Other) | None, _) => false,
        };
        bindings.iter().filter(|bound| bound.exchange == exchange).any(|bound| covers(&bound))
    };
    let by_bindings = topology.bindings.iter().filter_map(|binding| match &binding.destination {
        Destination::Exchange(fed) => {
            Some((binding.source.as_str(), fed.as_str(), Some(binding.routing_key.as_str())))
        }
        Destination::Queue(_) => None,
    });
    let by_alternates = topology.exchanges.iter().filter_map(|(name, exchange)| {
        Some((name.as_str(), exchange.alternate.as_ref()?.value.as_str(), None))
    });
    let feeds: BTreeSet<(&str, &str)> = by_bindings
        .chain(by_alternates)
        .filter(|(from, fed, key)| is_bound(fed) && !has_all(from, *key))
        .map(|(from, fed, _)| (from, fed))
        .collect();
    for (from, fed) in feeds {
        found.refuse(
            Check::NotArchived,
            format!(
                "exchange `{fed}` gets events that are published to exchange `{from}`, and these are no \
                 history of `{fed}`"
            ),
            format!("bind `{from}` itself (--bind {from}) with all that comes from it"),
        );
    }
}

/// Looks whether there is room for what is to be held, in a queue that is there and not bound yet.
pub fn check_holding(load: &Load<'_>, facts: &Facts, wishes: Wishes) -> Preflight {
    // Nobody consumes it until history is played, and that is as it should be.
    let wishes = Wishes { require_consumer: false, ..wishes };
    let mut preflight = check(load, facts, wishes.clone());
    let mut found = Found::default();
    let holding = load.target.queue().and_then(|name| {
        let topology = facts.topology.as_ref().ok()?;
        Some((name, topology, topology.queues.get(name)?))
    });
    if let Some((name, topology, queue)) = holding {
        queue::check(load, facts, topology, &parked_queue(name), &mut found);
        // It refuses what is too much, and so would whoever publishes live be refused.
        for (limit, brought, unit) in
            [(&queue.length_max, load.events, "messages"), (&queue.bytes_max, load.bytes, "bytes")]
        {
            let Some(Setting { value, by }) = limit else { continue };
            let what = format!(
                "holding queue `{name}` takes no more than {value} {unit} ({by}), about {brought} are \
                 to be held, and past it live publishers are refused"
            );
            let next_step = "exempt it from the limit";
            match brought > *value / 2 {
                true => found.refuse(Check::QueueDropsHead, what, next_step),
                false => found.warn(Check::QueueDropsHead, what, next_step),
            }
        }
    }
    let more = found.into_preflight(wishes);
    preflight.findings.extend(more.findings);
    preflight.findings.sort_by_key(|finding| finding.check);
    preflight
}

#[cfg(test)]
mod tests {
    use dacapo_bus::broker::{DeadLetter, Exchange, Overflow, Queue};

    use super::*;
    use crate::request::Target;

    fn binding(source: &str, key: &str, queue: &str) -> Binding {
        Binding {
            source: source.to_owned(),
            destination: Destination::Queue(queue.to_owned()),
            routing_key: key.to_owned(),
            headers: Default::default(),
        }
    }

    fn topology() -> Topology {
        let exchange = |kind| Exchange { kind, alternate: None };
        let archivers = Queue {
            is_archivers: true,
            dead_letter: Some(DeadLetter { exchange: String::new(), routing_key: None }),
            ..Queue::default()
        };
        Topology {
            exchanges: [
                ("shop".to_owned(), exchange(ExchangeKind::Topic)),
                ("mail".to_owned(), exchange(ExchangeKind::Direct)),
                ("all".to_owned(), exchange(ExchangeKind::Fanout)),
            ]
            .into(),
            queues: [
                ("archive".to_owned(), archivers.clone()),
                ("archive.parked".to_owned(), archivers),
                ("loyalty".to_owned(), Queue::default()),
            ]
            .into(),
            bindings: vec![
                binding("shop", "order.#", "archive"),
                binding("mail", "sent", "archive"),
                binding("all", "", "archive"),
                binding("shop", "#", "loyalty"),
            ],
        }
    }

    fn bound(exchange: &str, key: &str) -> Bound {
        Bound { exchange: exchange.to_owned(), key: key.to_owned() }
    }

    #[track_caller]
    fn check_covered(exchange: &str, key: &str, covered: bool) {
        let archivers = ["archive".to_owned()];
        let asked = [bound(exchange, key)];
        let preflight = check_archived(&Ok(topology()), &asked, &archivers, Wishes::default());
        assert_eq!(preflight.refusals().count() == 0, covered, "{:?}", preflight.findings);
    }

    #[test]
    fn a_binding_that_no_archiver_covers_is_found() {
        for (exchange, key) in
            [("shop", "order.placed"), ("shop", "order.#"), ("mail", "sent"), ("all", "whatever")]
        {
            check_covered(exchange, key, true);
        }
        for (exchange, key) in [("shop", "#"), ("shop", "mail"), ("mail", "read"), ("gone", "#")] {
            check_covered(exchange, key, false);
        }
    }

    #[test]
    fn an_exchange_that_another_one_feeds_is_found() {
        let mut topology = topology();
        topology.bindings.push(Binding {
            destination: Destination::Exchange("shop".to_owned()),
            ..binding("mail", "sent", "")
        });
        let told = |asked: &[Bound]| {
            let archivers = ["archive".to_owned()];
            let topology = Ok(topology.clone());
            let found = check_archived(&topology, asked, &archivers, Wishes::default());
            found.findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
        };
        let alone = told(&[bound("shop", "order.#")]);
        let too_little = told(&[bound("shop", "order.#"), bound("mail", "read")]);
        let fed = |what: &String| what.contains("published to exchange `mail`");
        assert!(too_little.iter().any(fed), "{too_little:?}");
        assert!(alone[0].contains("exchange `shop` gets events"), "{alone:?}");
        assert_eq!(told(&[bound("shop", "order.#"), bound("mail", "sent")]), [""; 0]);
    }

    #[test]
    fn archivers_are_known_by_their_form() {
        assert_eq!(archivers_of(&topology(), &[bound("shop", "x")]), ["archive".to_owned()].into());
        assert_eq!(archivers_of(&topology(), &[bound("gone", "x")]), BTreeSet::new());
    }

    #[test]
    fn without_the_plugin_it_is_unchecked_and_overridden_it_refuses_nothing() {
        let why = Err("nobody looked".to_owned());
        let asked = [bound("shop", "#")];
        let blind = check_archived(&why, &asked, &[], Wishes::default());
        assert_eq!((blind.refusals().count(), blind.unchecked.len()), (0, 1));
        let overrides = [Check::NotArchived].into();
        let wishes = Wishes { overrides, ..Wishes::default() };
        let known = check_archived(&Ok(topology()), &asked, &[], wishes);
        assert_eq!((known.refusals().count(), known.findings.len()), (0, 1));
    }

    /// What is found of a holding queue and its parking queue, nobody consuming them: in `load`, 60
    /// events of 600 bytes.
    fn of_holding(holding: Queue, parked: Queue) -> Vec<(Check, bool, String)> {
        let queues =
            [("new.holding".to_owned(), holding), ("new.holding.parked".to_owned(), parked)];
        let topology = Topology { queues: queues.into(), ..Topology::default() };
        let (target, none) = (Target::Queue { queue: "new.holding".to_owned() }, BTreeSet::new());
        let load = Load {
            target: &target,
            exchanges: &none,
            exchanges_exact: true,
            events: 60,
            bytes: 600,
            depth_max: None,
        };
        let facts = Facts {
            exists: Some(true),
            depth: Some(0),
            consumers: Some(0),
            denied: Ok(Vec::new()),
            missing: BTreeSet::new(),
            unasked: BTreeSet::new(),
            nodes: Ok(Vec::new()),
            topology: Ok(topology),
        };
        let wishes = Wishes { require_consumer: true, ..Wishes::default() };
        let room = check_holding(&load, &facts, wishes);
        let refused: Vec<Check> = room.refusals().map(|finding| finding.check).collect();
        room.findings
            .into_iter()
            .map(|finding| (finding.check, refused.contains(&finding.check), finding.what))
            .collect()
    }

    fn set(value: u64) -> Option<Setting<u64>> {
        Some(Setting { value, by: "policy `p`".to_owned() })
    }

    /// As dacapo declares both: they refuse what is too much.
    fn refusing() -> Queue {
        Queue { overflow: Overflow::Reject, ..Queue::default() }
    }

    #[test]
    fn a_holding_queue_that_nobody_consumes_yet_has_nothing_against_it() {
        assert_eq!(of_holding(refusing(), refusing()), []);
    }

    /// Twice what is expected has to fit: past the limit it is live publishers who are refused.
    #[test]
    fn a_limit_of_the_holding_queue_is_told_and_a_near_one_refuses() {
        let check = |holding: Queue, refuses: bool| {
            let found = of_holding(holding, refusing());
            let [(check, refused, what)] = &found[..] else { panic!("{found:?}") };
            assert_eq!((*check, *refused), (Check::QueueDropsHead, refuses), "{what}");
            assert!(what.contains("live publishers are refused") && what.contains("`p`"), "{what}");
        };
        check(Queue { length_max: set(120), ..refusing() }, false);
        check(Queue { length_max: set(119), ..refusing() }, true);
        check(Queue { bytes_max: set(1_200), ..refusing() }, false);
        check(Queue { bytes_max: set(1_199), ..refusing() }, true);
    }

    #[test]
    fn a_parking_queue_that_loses_what_is_parked_is_found() {
        let parked = Queue { message_ttl: set(1_000), expires: set(60_000), ..refusing() };
        let found = of_holding(refusing(), parked);
        let checks: Vec<(Check, bool)> =
            found.iter().map(|(check, refused, _)| (*check, *refused)).collect();
        assert_eq!(checks, [(Check::QueueTtl, true), (Check::QueueExpires, true)], "{found:?}");
        for (_, _, what) in found {
            assert!(what.contains("`new.holding.parked`"), "{what}");
        }
    }
}
