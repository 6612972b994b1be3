//! The example service of `dacapo-consumer` on a real broker, its state compared with that of a
//! twin that got every event once, in order, and was never stopped.

pub(crate) mod service;
mod steps;

use std::time::Duration;

use dacapo_integration::campaign::schedule::Dice;
use dacapo_integration::environment;
use dacapo_integration::process::Signal;
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform, headers};
use service::{CAUSES, ENVELOPED, OWN, Service, event, history, pause, settled};

/// How often the service is killed while it has some events behind it and some before it.
const KILLS: usize = 16;

/// The longest that it runs between two kills: a few dozen events.
const ALIVE_MS_MAX: u64 = 150;

/// Returns the state of a service that got these events once, in order.
fn state_of_twin(events: &[Value]) -> Value {
    let platform = Platform::new();
    let twin = Service::new(&platform);
    twin.declare();
    platform.publish(events);
    twin.drain();
    twin.state()
}

/// Returns each event twice, in an order that is no order.
fn twice_and_shuffled(events: &[Value], dice: &mut Dice) -> Vec<Value> {
    let mut doubled: Vec<Value> = events.iter().chain(events).cloned().collect();
    for last in (1..doubled.len()).rev() {
        let other = dice.below(last as u64 + 1);
        doubled.swap(last, usize::try_from(other).unwrap());
    }
    doubled
}

#[test]
fn each_event_twice_and_out_of_order_is_handled_once() {
    const ORDERS: usize = 30;
    let platform = Platform::new();
    let service = Service::new(&platform);
    service.declare();
    let events = history(ORDERS);
    platform.publish(&twice_and_shuffled(&events, &mut Dice::new(1)));
    let metrics = service.drain();

    assert_eq!(service.state(), state_of_twin(&events));
    assert_eq!(service.emitted(), (settled(ORDERS), ORDERS), "each once, for it was not killed");
    let live = |outcome: &str| {
        metrics.of(&format!("events_total{{outcome=\"{outcome}\",origin=\"live\"}}"))
    };
    // Each is handled or older at its first delivery, and a repeat at its second.
    assert_eq!(live("repeat"), events.len(), "{metrics:?}");
    assert_eq!(live("handled") + live("older"), events.len(), "{metrics:?}");
    assert!(live("older") > 0, "{metrics:?}");

    let documents = environment::root().join("docs/writing-a-service.md");
    let documents = std::fs::read_to_string(documents).unwrap();
    let row = |line: &str| {
        Some(line.strip_prefix("| `dacapo_consumer_")?.split(['{', '`']).next()?.to_owned())
    };
    let documented: Vec<String> = documents.lines().filter_map(row).collect();
    assert_eq!(metrics.metrics(), documented.iter().map(String::as_str).collect());
}

#[test]
fn killed_at_any_instant_its_state_is_that_of_a_twin_that_never_stopped() {
    const ORDERS: usize = 100;
    let platform = Platform::new();
    let service = Service::new(&platform);
    service.declare();
    let events = history(ORDERS);
    let mut dice = Dice::new(2);
    platform.publish(&twice_and_shuffled(&events, &mut dice));

    let mut kills = 0;
    while kills < KILLS && service.handled() < events.len() {
        let before = service.handled();
        let running = service.start();
        // At an instant that nobody has chosen: in a transaction, an emission or an ack.
        pause(Duration::from_millis(dice.below(ALIVE_MS_MAX)));
        running.kill();
        kills += usize::from(service.handled() > before);
    }
    println!("killed {kills} times at work, {} of {} handled", service.handled(), events.len());
    assert!(kills > KILLS / 3, "it was done before it was killed {kills} times");
    service.drain();

    assert_eq!(service.state(), state_of_twin(&events));
    assert_eq!(service.emitted().0, settled(ORDERS), "perhaps more than once, with the same id");
}

#[test]
fn an_event_of_its_own_that_nobody_is_bound_to_is_told_and_holds_up_nothing() {
    let platform = Platform::new();
    let service = Service::new(&platform);
    service.declare();
    service.is_not_heard();
    let events = history(2);
    platform.publish(&events);
    let told = service.drain();
    assert_eq!(service.state(), state_of_twin(&events));
    assert_eq!(service.outbox(), json!([["order-0:settled", 2], ["order-1:settled", 2]]));
    assert_eq!(told.unroutable(), 2);
}

#[test]
fn a_lost_database_is_rebuilt_by_a_replay_and_nobody_else_hears_of_it() {
    const ORDERS: usize = 41;
    let platform = Platform::new();
    let service = Service::new(&platform);
    service.declare();
    let mut flags = vec!["--roll-age", "200ms"];
    flags.extend(ENVELOPED);
    let archiver = platform.start_archiver(&flags);
    let events = history(ORDERS);
    // In the middle of an order.
    let (before, after) = events.split_at(events.len() / 2);
    platform.publish(&twice_and_shuffled(before, &mut Dice::new(3)));
    assert_eq!(service.drain().mails(), before.len().div_ceil(5));
    let (told, _) = service.emitted();
    assert_eq!(told, settled(ORDERS / 2));

    service.lose_database();
    // Live events go on coming, and are archived, too.
    platform.publish(after);
    archiver.await_metric("events_total", 2 * before.len() + after.len() + told.len());
    archiver.stop();
    let replay = |selection: &[&str]| {
        let to = ["replay", "--json", "--to-queue", service.queue()];
        platform.dacapo.json(to.iter().chain(selection))["confirmed"].clone()
    };
    assert_eq!(replay(&OWN), told.len(), "so that it knows what it has emitted");
    assert_eq!(replay(&CAUSES), 2 * before.len() + after.len());
    let last = service.drain();

    assert_eq!(service.state(), state_of_twin(&events));
    let rest = &settled(ORDERS) - &told;
    assert_eq!(service.emitted(), (rest.clone(), rest.len()), "what was told is not told again");
    assert!(last.of("events_total{outcome=\"handled\",origin=\"replay\"}") > before.len());
    let live = after.iter().filter(|event| event["routing_key"] == "order.placed").count();
    assert_eq!(last.mails(), live, "none of a replayed event");
}

#[test]
fn poison_goes_to_the_queue_of_dead_letters_with_its_reason_and_the_rest_flows() {
    let platform = Platform::new();
    let service = Service::new(&platform);
    service.declare();
    let events = history(1);
    let mut poison = event("poison", "order.paid", "order-0", 1, &json!({ "sum": 5 }));
    poison["properties"]["expiration"] = "600000".into();
    let nameless = json!({ "routing_key": "order.paid", "body": "no envelope" });
    // Short strings that are not UTF-8: lapin would neither read nor send them.
    let mut unreadable = event("unreadable", "order.paid", "order-0", 1, &json!({ "amount": 5 }));
    unreadable["properties"]["type"] = json!({ "hex": "ff" });
    let amount = json!({ "amount": 5 });
    // What it would emit of this order has too long an id.
    let unspeakable = event("unspeakable", "order.paid", &"o".repeat(248), 1, &amount);
    let of_nothing = event("of-nothing", "order.paid", "", 1, &amount);
    let unfit = [poison, nameless, unreadable, unspeakable, of_nothing];
    platform.publish(&[&unfit, &events[..]].concat());
    let metrics = service.drain_burying(5);

    assert_eq!(service.state(), state_of_twin(&events));
    assert_eq!(metrics.of("events_total{outcome=\"dead_lettered\",origin=\"live\"}"), 5 + 1);
    let letters = service.dead_letters();
    let said = |letter: &Value, name: &str| {
        headers(letter)
            .get(&format!("\"x-dacapo-{name}\""))
            .map_or(Value::Null, |row| row[1].clone())
    };
    let reasons: Vec<Value> = letters.iter().map(|letter| said(letter, "dead-reason")).collect();
    assert_eq!(
        reasons,
        [
            "its payload has no `amount`",
            "it has no id, so it cannot be told from a repeat of itself",
            "its properties cannot be read as text or as a table",
            "`oooooooooooooooooooooooooooooooooooooooo…` has 256 bytes; AMQP allows 255 in a short string",
            "it has no key",
        ]
    );
    assert_eq!(said(&letters[0], "dead-event-id"), "poison");
    assert_eq!(said(&letters[0], "dead-queue"), service.queue());
    assert_eq!(said(&letters[0], "original-routing-key"), "order.paid");
    assert_eq!(letters[0]["properties"]["expiration"], Value::Null, "it waits for a person");
    assert_eq!(letters[1]["body"], "no envelope");
}

#[test]
fn asked_to_end_it_ends_in_order_at_once() {
    let platform = Platform::new();
    let service = Service::new(&platform);
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let running = service.start();
        running.wait_for_line("consuming", DEADLINE);
        running.signal(signal).unwrap();
        running.wait(DEADLINE).check(0);
    }
}
