//! The broker's definitions are kept at each change, and a lost broker is made again from them.

use std::fs;
use std::path::Path;

use dacapo_archive::layout::KeptDefinitions;
use dacapo_event::Digest;
use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform};
use super::witness;

const KEPT: &str = "the broker's definitions were kept";

/// Returns what the management plugin lists below a path, but for what RabbitMQ makes itself.
fn listed(rabbit: &Rabbit, path: &str) -> Vec<String> {
    let asked = json!([["GET", path, null]]);
    let answer = witness::management(&rabbit.management_url(), &asked).unwrap().remove(0);
    let own = |thing: &&Value| {
        let text = |member: &str| thing[member].as_str().unwrap_or("");
        !text("name").starts_with("amq.") && thing["name"] != "" && thing["source"] != ""
    };
    let told = |thing: &Value| {
        let members = ["name", "source", "destination", "routing_key", "arguments", "definition"];
        json!(members.map(|member| &thing[member])).to_string()
    };
    let mut all: Vec<String> = answer.as_array().unwrap().iter().filter(own).map(told).collect();
    all.sort();
    all
}

#[test]
fn a_lost_broker_is_made_again_from_what_the_archive_kept() {
    let folder = RunFolder::create().unwrap();
    let lost = Rabbit::start(&folder.path().join("lost")).unwrap();
    let management = lost.management_url();
    let put = |path: &str, body: Value| {
        witness::management(&management, &json!([["PUT", path, body]])).unwrap();
    };
    put("users/watcher", json!({ "password": "sesame", "tags": "monitoring" }));
    let nothing = json!({ "configure": "^$", "write": "^$", "read": "^$" });
    put("permissions/%2F/watcher", nothing);
    let limits = json!({ "max-length": 1_000_000, "overflow": "reject-publish" });
    let policy = json!({ "pattern": "^orders", "definition": limits, "apply-to": "queues" });
    put("policies/%2F/limits", policy.clone());
    put(
        "operator-policies/%2F/cap",
        json!({
            "pattern": "^orders", "definition": { "max-length": 2_000_000 }, "apply-to": "queues",
        }),
    );
    let arguments = json!({ "x-queue-type": "quorum" });
    put("queues/%2F/orders", json!({ "durable": true, "arguments": arguments }));

    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_MANAGEMENT", &management.replace("guest:guest", "watcher:sesame"));
    let platform = Platform::on(&lost.amqp_url(), dacapo);
    let bind = json!({ "op": "bind_queue", "queue": "orders", "exchange": platform.exchange,
                       "routing_key": "order.#" });
    platform.ask(bind);
    for _ in 0..2 {
        // A start without a change keeps nothing new.
        let archiver = platform.start_archiver(&[]);
        assert_eq!(archiver.metric("definitions_failures_total"), Some(0.0));
        if list(&platform).is_empty() {
            archiver.running.wait_for_line(KEPT, DEADLINE);
        }
        archiver.stop();
    }
    let before = list(&platform).len();
    put("queues/%2F/invoices", json!({ "durable": true }));
    let archiver = platform.start_archiver(&[]);
    archiver.running.wait_for_line(KEPT, DEADLINE);
    archiver.stop();
    let kept = list(&platform);
    assert_eq!(kept.len(), before + 1, "{kept:?}");

    let first = kept[0]["since"].as_str().unwrap();
    let older = platform.dacapo.json(["archive", "definitions", "--at", first]);
    let names = |definitions: &Value| definitions["queues"].to_string().contains("\"invoices\"");
    assert!(!names(&older), "{older}");
    let shown = platform.dacapo.run(["archive", "definitions"]);
    shown.check(0);
    assert!(names(&shown.json()), "{shown:?}");
    for told in ["sesame", "watcher", "password", "permissions", "users"] {
        assert!(!shown.stdout.contains(told), "“{told}” in {shown:?}");
    }

    let file = platform.dacapo.file("definitions.json", &shown.stdout);
    let again = Rabbit::start(&folder.path().join("again")).unwrap();
    again.ctl(&["import_definitions", file.to_str().unwrap()]).unwrap();
    for path in ["queues", "exchanges", "bindings", "policies", "operator-policies"] {
        let path =
            format!("{path}/%2F?columns=name,source,destination,routing_key,arguments,definition");
        assert_eq!(listed(&again, &path), listed(&lost, &path), "{path}");
    }
}

fn list(platform: &Platform) -> Vec<Value> {
    let listed = platform.dacapo.json(["archive", "definitions", "--list", "--json"]);
    listed["definitions"].as_array().unwrap().clone()
}

/// Keeps definitions without a broker, as an archiver would have.
fn keep(dacapo: &Dacapo, vhost: &str, definitions: &str) {
    let since = "2026-11-23T12:00:00Z".parse().unwrap();
    let digest = Digest::of(definitions.as_bytes());
    let kept = KeptDefinitions::new(vhost, since, &digest);
    let path = Path::new(dacapo.archive()).join(kept.key.as_str());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, definitions).unwrap();
}

#[test]
fn the_definitions_shown_are_those_of_the_brokers_virtual_host_and_others_are_named() {
    let mut dacapo = Dacapo::new();
    let shop = r#"{"queues":["of shop"]}"#;
    keep(&dacapo, "shop", shop);
    keep(&dacapo, "a/b", "{}");
    let show = |dacapo: &Dacapo, flags: &[&str]| {
        dacapo.run(["archive", "definitions"].iter().chain(flags))
    };
    let unnamed = show(&dacapo, &[]);
    unnamed.check(3);
    let words = "virtual host `/` were kept";
    assert!(unnamed.stderr.contains(words), "{unnamed:?}");
    assert!(
        unnamed.stderr.contains("give --vhost: there are those of `a/b`, `shop`"),
        "{unnamed:?}"
    );
    // The broker is lost, so nobody answers at its address.
    dacapo.set("DACAPO_AMQP", "amqp://dacapo:sesame@127.0.0.1:1/shop");
    let own = show(&dacapo, &[]);
    own.check(0);
    assert_eq!(own.stdout.trim_end(), shop);
    let other = show(&dacapo, &["--vhost", "a/b"]);
    other.check(0);
    assert_eq!(other.stdout.trim_end(), "{}");
    let early = show(&dacapo, &["--at", "2026-11-22"]);
    early.check(3);
    assert!(early.stderr.contains("the first ones are of 2026-11-23T12:00:00Z"), "{early:?}");

    let vhosts = |flags: &[&str]| -> Vec<String> {
        let listed = show(&dacapo, &[&["--list", "--json"], flags].concat()).json();
        let listed = listed["definitions"].as_array().unwrap().clone();
        listed.iter().map(|kept| kept["vhost"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(vhosts(&[]), ["a/b", "shop"]);
    assert_eq!(vhosts(&["--vhost", "shop"]), ["shop"]);
}
