//! The harness keeps its own promises: a private broker and S3 server can be taken away and come
//! back with what they had.

use std::time::Duration;

use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use dacapo_integration::seaweed::Seaweed;
use dacapo_integration::{reference, wait};
use serde_json::{Value, json};

use super::witness::Queue;
use super::{services, witness};

/// Long beside what a loaded machine takes to read a queue back.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_private_broker_comes_back_from_a_kill_with_its_messages() {
    let folder = RunFolder::create().unwrap();
    let mut rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let ask =
        |rabbit: &Rabbit, operations: &[Value]| witness::raw_amqp(&rabbit.amqp_url(), operations);
    let persistent = json!({ "delivery_mode": 2 });
    let before = ask(
        &rabbit,
        &[
            json!({ "op": "declare_queue", "queue": "q" }),
            json!({ "op": "publish", "routing_key": "q", "properties": persistent, "body": "kept" }),
        ],
    )
    .unwrap();
    assert_eq!(before[1], json!({ "outcome": "ack", "returned": null }));

    rabbit.kill().unwrap();
    assert!(ask(&rabbit, &[]).is_err(), "it is still there");
    rabbit.start_again().unwrap();
    // It listens before it has read back every queue.
    let body = wait::until("the message is back", DEADLINE, || {
        let after = ask(&rabbit, &[json!({ "op": "get", "queue": "q" })])?;
        Ok(after[0]["messages"][0]["body"].as_str().map(str::to_owned))
    });
    assert_eq!(body.unwrap(), "kept");

    rabbit.stop().unwrap();
    rabbit.start_again().unwrap();
    assert!(rabbit.ctl(&["list_queues", "name"]).unwrap().contains('q'));
}

#[test]
fn a_private_s3_server_comes_back_from_a_kill() {
    let folder = RunFolder::create().unwrap();
    let mut seaweed = Seaweed::start(&folder.path().join("seaweed")).unwrap();
    seaweed.kill().unwrap();
    seaweed.start_again().unwrap();
}

/// Another client takes what it published, and it takes all there is.
#[test]
fn the_reference_client_speaks_to_a_real_broker() {
    let (url, queue) = (services::amqp(), Queue::new("reference"));
    // More than a window, and a body of several frames.
    reference::publish(&url, queue.name(), 1_500, 10).unwrap();
    reference::publish(&url, queue.name(), 1, 300_000).unwrap();
    let first = &queue.take(1)[0];
    assert_eq!((&first["body"], first["exchange"].as_str()), (&json!("xxxxxxxxxx"), Some("")));
    reference::consume(&url, queue.name(), 1_500).unwrap();
    let empty = || Ok((queue.depth() == 0).then_some(()));
    wait::until("all is acked", DEADLINE, empty).unwrap();
    assert!(reference::publish(&url, "x".repeat(300).as_str(), 1, 1).is_err());
    let nowhere = reference::publish(&url, "no-such-queue", 1, 1).unwrap_err();
    assert!(nowhere.to_string().contains("to a publish"), "{nowhere}");
}
