//! Policies that can lose what waits for an archiver, as its operator is told of them.

use dacapo_integration::dacapo::Dacapo;
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform};
use super::services;
use super::witness::{self, Queue};

struct Policy {
    management: String,
    path: String,
}

impl Policy {
    fn put(management: &str, kind: &str, pattern: &str, definition: &Value) -> Self {
        let path = format!("{kind}/%2F/{}", services::unique("limits"));
        let body = json!({ "pattern": pattern, "definition": definition, "apply-to": "queues",
                           "priority": 50 });
        witness::management(management, &json!([["PUT", path, body]])).unwrap();
        Policy { management: management.to_owned(), path }
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let delete = json!([["DELETE", self.path, null]]);
        witness::management(&self.management, &delete).expect("it was there");
    }
}

#[test]
fn policies_that_can_lose_events_are_told_at_the_start_and_stop_nothing() {
    let Some(management) = services::management() else { return };
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_MANAGEMENT", &management);
    let platform = Platform::on(&services::amqp(), dacapo);
    let archiver = platform.start_archiver(&[]);
    archiver.await_metric("broker_management_up", 1);
    assert_eq!(archiver.metric("broker_lossy_limits"), Some(0.0));
    archiver.stop();

    let queue = platform.archive_queue.clone();
    let pattern = format!("^{}", queue.replace('.', r"\."));
    let user = json!({ "message-ttl": 3_600_000, "max-length": 1_000_000 });
    let operator = json!({ "expires": 86_400_000 });
    let policies = [
        Policy::put(&management, "policies", &pattern, &user),
        Policy::put(&management, "operator-policies", &pattern, &operator),
    ];
    let archiver = platform.start_archiver(&[]);
    for told in [
        format!("`{queue}` is deleted, with all that waits in it, 86400000 ms after"),
        format!("`{queue}.parked` is deleted"),
        format!("`{queue}.parked` drops what waits for 3600000 ms (policy `"),
        format!("`{queue}` takes no more than 1000000 messages (policy `"),
    ] {
        archiver.running.wait_for_line(&told, DEADLINE);
    }
    archiver.await_metric("broker_lossy_limits", 4);
    assert_eq!(archiver.health().0, 200);
    archiver.stop();
    drop(policies);
}

/// Quorum queues take a policy's overflow before their argument's, other queues the argument: were
/// that to change, what is told of `drop-head` would not be true any more.
#[test]
fn a_policy_can_have_a_quorum_queue_drop_its_oldest_messages_against_its_argument() {
    const LENGTH: usize = 5;
    const PUBLISHED: usize = 40;
    let Some(management) = services::management() else { return };
    let refuses = |kind: &str, policy: Value| {
        let arguments = json!([
            ["x-queue-type", "S", kind],
            ["x-max-length", "I", LENGTH],
            ["x-overflow", "S", "reject-publish"],
        ]);
        let queue = Queue::with_arguments("overflow", &arguments);
        let pattern = format!("^{}$", queue.name().replace('.', r"\."));
        let _policy = Policy::put(&management, "policies", &pattern, &policy);
        (0..PUBLISHED).any(|number| {
            let body = json!({ "properties": {}, "routing_key": queue.name(),
                               "payload": number.to_string(), "payload_encoding": "string" });
            let publish = json!([["POST", "exchanges/%2F/amq.default/publish", body]]);
            witness::management(&management, &publish).is_err_and(|error| {
                assert!(error.to_string().contains("Check queue limits"), "{error:#}");
                true
            })
        })
    };
    let drop_head = json!({ "overflow": "drop-head" });
    assert!(refuses("quorum", json!({ "max-length": LENGTH })));
    assert!(!refuses("quorum", drop_head.clone()));
    assert!(refuses("classic", drop_head));
}
