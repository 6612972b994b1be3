//! Whatever a description, definitions, a report or a key is made of: no panic, bounded memory.

#![cfg(test)]

use dacapo_drill::definitions::Topology;
use dacapo_drill::description::Description;
use dacapo_drill::page::page;
use dacapo_drill::report::Report;
use dacapo_drill::signature::{PublicKey, SigningKey};
use dacapo_event::Digest;
use dacapo_fuzz::Attack;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Inputs have 256 KiB at the most; as trees of TOML or JSON they take some hundred bytes a value.
const MEMORY: usize = 64 * 1024 * 1024;

const EXAMPLE: &[u8] = include_bytes!("../../dacapo-cli/src/commands/drill/example.toml");
const REPORT: &[u8] = include_bytes!("report.json");
const DEFINITIONS: &[u8] = br#"{
    "users": [{"name": "u"}], "vhosts": [{"name": "/"}],
    "exchanges": [{"name": "x", "vhost": "/", "type": "topic", "arguments": {"alternate-exchange": "y"}}],
    "queues": [{"name": "q", "vhost": "/", "arguments": {"x-max-length": 5, "x": [1.5, null, {"a": true}]}}],
    "bindings": [{"source": "x", "vhost": "/", "destination": "q", "destination_type": "queue",
                  "routing_key": "a.*", "arguments": {}}]}"#;
const KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

#[test]
fn a_description_of_any_kind_is_read_or_refused() {
    let attack = Attack::new(HERE, "description", MEMORY).seeds([EXAMPLE.to_vec()]);
    attack.run(|input| drop(Description::parse(&String::from_utf8_lossy(input))));
}

#[test]
fn definitions_of_any_kind_are_read_or_refused() {
    let attack = Attack::new(HERE, "definitions", MEMORY).seeds([DEFINITIONS.to_vec()]);
    attack.run(|input| drop(Topology::parse(input, None)));
}

#[test]
fn a_report_of_any_kind_is_shown_or_refused() {
    let attack = Attack::new(HERE, "report", MEMORY).seeds([REPORT.to_vec()]);
    attack.run(|input| {
        if let Ok(report) = Report::parse(input) {
            assert!(page(&report, &Digest::of(input)).ends_with("</html>\n"));
        }
    });
}

#[test]
fn a_key_of_any_kind_is_taken_or_refused() {
    Attack::new(HERE, "key", MEMORY).seeds([KEY.to_vec()]).run(|input| {
        drop(SigningKey::from_pem(input));
        drop(PublicKey::from_pem(input).map(|key| key.check(input, input)));
    });
}
