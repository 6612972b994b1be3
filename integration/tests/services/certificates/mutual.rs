//! A broker that asks for the client's certificate (mTLS).

use std::fs;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::rabbit::Rabbit;
use dacapo_integration::tls::{self, Client};
use dacapo_integration::wait;
use serde_json::json;

use super::super::platform::{DEADLINE, Platform, ask, check_receipt, event_ids, ids, messages};
use super::{Node, USER, check_refused, installation};

const EVENTS: usize = 40;

/// Archives what is published and replays it, all over TLS.
#[track_caller]
fn check_pipeline(node: &Node, url: &str) {
    let plain = node.rabbit.amqp_url();
    let mut platform = Platform::on(&plain, Dacapo::new());
    platform.dacapo.file("dacapo.toml", node.configuration(&node.client));
    platform.dacapo.set("DACAPO_AMQP", url);
    ask(&plain, json!({ "op": "declare_queue", "queue": "orders" }));
    platform.archive(&messages(EVENTS));
    let to = ["--to-queue", "orders", "--json"];
    assert_eq!(platform.dacapo.json(["plan"].iter().chain(&to))["target"]["exists"], true);
    let receipt = platform.dacapo.json(["replay"].iter().chain(&to));
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    let taken = ask(&plain, json!({ "op": "get", "queue": "orders", "max": EVENTS + 1 }));
    assert_eq!(event_ids(taken["messages"].as_array().expect("a list")), ids(EVENTS));
    ask(&plain, json!({ "op": "delete_queue", "queue": "orders" }));
}

#[test]
fn a_client_with_a_certificate_archives_and_replays() {
    let node = Node::lock();
    check_pipeline(&node, &node.rabbit.amqps_url());
}

#[test]
fn a_client_is_known_by_its_certificate_without_a_password() {
    let node = Node::lock();
    check_pipeline(&node, &node.rabbit.amqps_url_external());
}

/// Checks how a client with another certificate than the right one is refused.
#[track_caller]
fn check_client(node: &Node, url: &str, client: Option<&Client>, reason: &str, hint: &str) {
    let dacapo = installation(url);
    let configuration = match client {
        Some(client) => node.configuration(client),
        None => format!("amqp_ca = '{}'\n", node.rabbit.authority().display()),
    };
    dacapo.file("dacapo.toml", configuration);
    check_refused(&dacapo, &[], reason, hint);
}

#[test]
fn a_client_without_a_certificate_is_told_to_give_one() {
    let node = Node::lock();
    let url = node.rabbit.amqps_url();
    check_client(&node, &url, None, "TLS: received fatal alert", "give one with its key");
}

#[test]
fn a_client_of_another_authority_is_told_so() {
    let node = Node::lock();
    let folder = node.folder.path().join("other");
    tls::certificates(&folder).unwrap();
    let other = tls::client(&folder, USER).unwrap();
    let hint = "does not trust the authority of the client certificate";
    check_client(&node, &node.rabbit.amqps_url(), Some(&other), "fatal alert: UnknownCA", hint);
}

#[test]
fn a_client_whose_certificate_has_expired_is_told_to_renew_it() {
    let node = Node::lock();
    let expired = tls::expired_client(node.folder.path(), USER).unwrap();
    let reason = "fatal alert: CertificateExpired";
    let hint = "renew the client certificate";
    check_client(&node, &node.rabbit.amqps_url(), Some(&expired), reason, hint);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let node = Node::lock();
    let other = tls::client(node.folder.path(), "other").unwrap();
    let mixed = Client { key: other.key, ..node.client.clone() };
    let hint = "do not belong together";
    check_client(&node, &node.rabbit.amqps_url(), Some(&mixed), "KeyMismatch", hint);
}

#[test]
fn a_certificate_of_nobody_whom_the_broker_knows_is_refused() {
    let node = Node::lock();
    let stranger = tls::client(node.folder.path(), "stranger").unwrap();
    let hint = "the broker must know a user of the name";
    let url = node.rabbit.amqps_url_external();
    check_client(&node, &url, Some(&stranger), "ACCESS_REFUSED", hint);
}

fn set_password(rabbit: &Rabbit, command: &str, password: &str) {
    rabbit.ctl(&[command, "rotating", password]).unwrap();
}

/// An archiver runs for months, and passwords and certificates are changed meanwhile.
#[test]
fn after_a_change_of_password_and_certificate_the_archiver_goes_on_with_the_new_ones() {
    let node = Node::lock();
    let folder = node.folder.path();
    set_password(&node.rabbit, "add_user", "first-password");
    node.rabbit.ctl(&["set_permissions", "rotating", ".*", ".*", ".*"]).unwrap();
    let mut platform = Platform::on(&node.rabbit.amqp_url(), Dacapo::new());
    let password = platform.dacapo.file("password", "first-password\n");
    let client = tls::client(folder, "rotating").unwrap();
    let more = format!("amqp_password_file = '{}'\n", password.display());
    platform.dacapo.file("dacapo.toml", node.configuration(&client) + &more);
    let url = node.rabbit.amqps_url();
    let (_, place) = url.rsplit_once('@').expect("the URL has credentials");
    platform.dacapo.set("DACAPO_AMQP", &format!("amqps://rotating@{place}"));
    let archiver = platform.start_archiver(&["--roll-age", "100ms"]);
    platform.publish(&messages(3));
    archiver.await_metric("events_total", 3);

    set_password(&node.rabbit, "change_password", "second-password");
    tls::expired_client(folder, "rotating").unwrap();
    for end in ["pem", "key"] {
        let of = |name: &str| folder.join(format!("{name}.{end}"));
        fs::copy(of("rotating-expired"), of("rotating")).unwrap();
    }
    node.rabbit.ctl(&["close_all_connections", "a test"]).unwrap();
    let ill = || Ok((archiver.health().0 == 503).then_some(()));
    wait::until("the archiver is refused", DEADLINE, ill).unwrap();
    tls::client(folder, "rotating").unwrap();
    platform.dacapo.file("password", "second-password\n");
    let well = || Ok((archiver.health().0 == 200).then_some(()));
    wait::until("the archiver has the new ones", DEADLINE, well).unwrap();
    archiver.stop();
    assert_eq!(platform.archived_ids().len(), 3);
}
