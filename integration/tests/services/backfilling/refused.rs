//! What a backfill refuses, and with what words.

use dacapo_integration::dacapo::Output;
use serde_json::json;

use super::{Backfill, services, witness};
use crate::platform::{DEADLINE, Platform, Watcher, ask, messages};

#[track_caller]
fn check_refused(output: &Output, status: i32, words: &str) {
    output.check(status);
    assert!(output.stderr.contains(words), "{}", output.stderr);
}

#[test]
fn what_cannot_come_to_a_good_end_is_refused_before_anything_is_made() {
    let platform = Platform::new();
    platform.archive(&messages(1));
    let backfill = Backfill::new(&platform);
    let run = |more: &[&str]| {
        let mut args = vec!["backfill", "--queue", &backfill.queue];
        args.extend(more);
        platform.dacapo.run(args)
    };
    let (exchange, archiver) = (platform.exchange.as_str(), platform.archive_queue.as_str());
    let missing = run(&["--bind", "no-such-exchange", "--archiver-queue", archiver]);
    check_refused(&missing, 5, "no-such-exchange");
    let nobody = run(&["--bind", exchange, "--archiver-queue", "nobodys"]);
    check_refused(&nobody, 5, "start the archiver");
    let literal = run(&["--bind", "amq.direct", "--archiver-queue", archiver]);
    check_refused(&literal, 2, "takes `#` literally");
    check_refused(&run(&[]), 2, "--bind");
    let same = ["backfill", "--queue", archiver, "--bind", exchange, "--archiver-queue", archiver];
    check_refused(&platform.dacapo.run(same), 2, "is an archiver's");
    let long = "q".repeat(217);
    check_refused(
        &platform.dacapo.run(["backfill", "--queue", &long, "--bind", "x"]),
        2,
        "217 bytes",
    );
    if let Some(management) = services::management() {
        let watcher = Watcher::new(&management);
        let url = watcher.url();
        let asked = ["--management", &url, "--archiver-queue", archiver, "--bind"];
        let fanout = run(&[&asked[..], &["amq.fanout"]].concat());
        check_refused(&fanout, 5, "not-archived");
        let bound = services::unique("bound");
        ask(&services::amqp(), json!({ "op": "declare_queue", "queue": bound }));
        let bind = json!({
            "op": "bind_queue", "queue": bound, "exchange": exchange, "routing_key": "#",
        });
        ask(&services::amqp(), bind);
        let mut args = vec!["backfill", "--queue", &bound];
        args.extend(asked);
        args.push(exchange);
        check_refused(&platform.dacapo.run(args), 5, "bound to exchange");
        ask(&services::amqp(), json!({ "op": "delete_queue", "queue": bound }));
    }
    assert!(!backfill.is_there(&backfill.queue));
    let listed = platform.dacapo.json(["backfill", "ls", "--json"]);
    assert_eq!(listed["backfills"], json!([]));
}

/// A policy that would have live publishers refused once the holding queue is full.
#[test]
fn without_room_for_what_is_to_be_held_nothing_is_held_and_later_it_goes_on() {
    let Some(management) = services::management() else { return };
    let platform = Platform::new();
    platform.archive(&messages(20));
    let archiver = platform.start_archiver(&[]);
    let backfill = Backfill::new(&platform);
    let watcher = Watcher::new(&management);
    let url = watcher.url();
    let policy = json!({
        "pattern": format!("^{}\\.holding", backfill.queue),
        "definition": { "max-length": 1 },
        "apply-to": "queues",
    });
    let path = format!("policies/%2F/{}", backfill.queue);
    witness::management(&management, &json!([["PUT", path, policy]])).unwrap();
    let (running, id) = backfill.start(&["--management", &url]);
    let ended = running.wait(DEADLINE);
    witness::management(&management, &json!([["DELETE", path, null]])).unwrap();
    check_refused(&ended, 5, "queue-drops-head: holding queue");
    assert!(!backfill.is_there(&backfill.holding_queue(&id)));
    let args = ["backfill", "resume", &id, "--management", &url, "--rate", "5000"];
    platform.dacapo.run(args).check(0);
    assert_eq!(backfill.take().len(), 20);
    archiver.stop();
}

/// Nothing of it could be found in another place, and what was played would be missing.
#[test]
fn it_goes_on_with_the_broker_and_the_queues_that_it_began_with_and_no_others() {
    let Some(management) = services::management() else { return };
    let platform = Platform::new();
    platform.archive(&messages(20));
    let archiver = platform.start_archiver(&[]);
    let backfill = Backfill::new(&platform);
    let id = backfill.interrupt_holding();

    let vhost = services::unique("beside");
    let of_vhost = |method: &str, what| {
        let request = json!([[method, format!("vhosts/{vhost}"), what]]);
        witness::management(&management, &request).unwrap();
    };
    of_vhost("PUT", json!({}));
    let url = services::amqp();
    let (server, _) = url.rsplit_once('/').expect("it names a virtual host");
    let elsewhere = format!("{server}/{vhost}");
    for command in ["resume", "cancel"] {
        let refused = platform.dacapo.run(["backfill", command, &id, "--amqp", &elsewhere]);
        check_refused(&refused, 3, "the backfill began in virtual host `/` of cluster `");
    }
    of_vhost("DELETE", json!(null));

    platform.ask(json!({ "op": "delete_queue", "queue": backfill.queue }));
    let resumed = platform.dacapo.run(["backfill", "resume", &id]);
    check_refused(&resumed, 5, "and with it what it had of history");
    platform.ask(json!({ "op": "delete_queue", "queue": backfill.holding_queue(&id) }));
    let cancelled = platform.dacapo.run(["backfill", "cancel", &id]);
    check_refused(&cancelled, 5, "cancel with --holding-is-gone");
    platform.dacapo.run(["backfill", "cancel", &id, "--holding-is-gone"]).check(0);
    archiver.stop();
}
