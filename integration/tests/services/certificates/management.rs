//! The management plugin over TLS: trusted with the authority of its broker, and told nothing, the
//! password least of all, when it does not prove who it is.

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::tls::{self, Flaw};
use dacapo_integration::wait;
use serde_json::json;

use super::{Node, installation, text};
use crate::platform::{DEADLINE, ask};

/// Checks that the plan says why nothing was asked of the plugin.
#[track_caller]
fn check_unchecked(output: &Output, next_step: &str) {
    output.check(0);
    for words in ["https://localhost:", "is not trusted", next_step] {
        assert!(output.stdout.contains(words), "no “{words}” in {output:?}");
    }
    assert!(!output.stdout.contains("broker-disk-low: "), "{output:?}");
}

/// An installation that connects to the broker without TLS, and asks its plugin over it.
fn asking(node: &Node) -> Dacapo {
    let mut dacapo = installation(&node.rabbit.amqp_url());
    dacapo.set("DACAPO_MANAGEMENT", &node.rabbit.management_tls_url());
    ask(&node.rabbit.amqp_url(), json!({ "op": "declare_queue", "queue": "orders" }));
    dacapo
}

const PLAN: [&str; 3] = ["plan", "--to-queue", "orders"];

#[test]
fn a_plugin_over_tls_is_trusted_with_the_brokers_authority_and_with_no_other() {
    let node = Node::lock();
    let dacapo = asking(&node);
    let trusting = |authority: &str| dacapo.run(PLAN.iter().chain(&["--amqp-ca", authority]));
    let all_checked = || {
        let output = trusting(text(node.rabbit.authority()));
        output.check(0);
        Ok((!output.stdout.contains("unchecked")).then_some(()))
    };
    // A node that has just started does not tell of its disk yet.
    wait::until("the plugin is asked and tells all", DEADLINE, all_checked).unwrap();

    let other = tls::certificates(&dacapo.folder().join("other")).unwrap();
    check_unchecked(&trusting(text(&other.authority)), "trust its authority with a CA file");
    let archiver = ["archive", "run", "--bind", "amq.topic", "--queue", "over-tls"];
    let archiver = dacapo.spawn(archiver.iter().chain(&["--amqp-ca", text(&other.authority)]));
    let told = archiver.wait_for_line("how long the broker's disk lasts", DEADLINE);
    assert!(told.contains("trust its authority with a CA file"), "{told}");
    archiver.kill();
}

#[track_caller]
fn check_flawed(flaw: Flaw, next_step: &str) {
    let node = Node::lock();
    let dacapo = asking(&node);
    let plan = || dacapo.run(PLAN.iter().chain(&["--amqp-ca", text(node.rabbit.authority())]));
    node.rabbit.change_certificate(Some(flaw)).unwrap();
    check_unchecked(&plan(), next_step);
}

#[test]
fn a_plugin_with_a_certificate_of_another_host_is_not_trusted() {
    check_flawed(Flaw::OtherHost, "use the host name that is in its certificate");
}

#[test]
fn a_plugin_with_an_expired_certificate_is_not_trusted() {
    check_flawed(Flaw::Expired, "renew its certificate");
}

#[test]
fn a_plugin_without_tls_is_told_from_one_with_it() {
    let node = Node::lock();
    let mut dacapo = asking(&node);
    let plain = node.rabbit.management_url().replace("http://", "https://");
    dacapo.set("DACAPO_MANAGEMENT", &plain.replace("127.0.0.1", "localhost"));
    let output = dacapo.run(PLAN.iter().chain(&["--amqp-ca", text(node.rabbit.authority())]));
    check_unchecked(&output, "check that the port speaks TLS");
}
