//! A platform's own schemas: events of the shop in its envelope, archived, and selected by what is in
//! their protobuf payload, through the descriptor set of the last release.

use std::path::PathBuf;

use dacapo_event::envelope::Envelope;
use dacapo_integration::environment;
use prost::Message as _;
use serde_json::{Value, json};

use released::shop::envelope::v1::Envelope as ShopEnvelope;
use released::shop::envelope::v1::payload::Action;

use super::platform::Platform;

/// The code of a release, as a service would have it.
mod released {
    #![expect(unreachable_pub, reason = "it is generated")]

    include!("../../../schemas/releases/1/rust/mod.rs");
}

const ENVELOPE: &str = "shop.envelope.v1.Envelope";

/// Returns the descriptor set of the last release.
fn released() -> String {
    let releases = std::fs::read_dir(environment::root().join("schemas/releases")).unwrap();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let last = releases.map(|entry| entry.unwrap().path()).max_by_key(number).unwrap();
    last.join("schemas.binpb").display().to_string()
}

/// Emits an event of the shop, as a service would make it.
fn emit(platform: &Platform, number: u64, kind: &str, order: &str, payload: &Value) {
    let body = json!({
        "id": format!("e-{number}"), "time_unix_us": 1_700_000_000_000_000 + number, "type": kind,
        "key": order, "content_type": "application/x-protobuf", "payload": payload,
    });
    let args = [
        "emit",
        "--json",
        "--descriptor-set",
        &released(),
        "--message",
        ENVELOPE,
        "--exchange",
        &platform.exchange,
        "--routing-key",
        kind,
        "--body",
        &body.to_string(),
    ];
    assert_eq!(platform.dacapo.json(args)["confirmed"], 1);
}

#[test]
fn where_reaches_into_the_payload_of_an_envelope_through_the_released_descriptor_set() {
    let platform = Platform::new();
    let queue = platform.service("shop");
    let mut flags = vec!["--id-from", "envelope:id", "--time-from", "envelope:time"];
    flags.extend(["--type-from", "envelope:type", "--key-from", "envelope:key"]);
    let archiver = platform.start_archiver(&flags);
    let placed = |order: &str, total: u32, channel: &str| {
        let items = json!([{ "sku": "tea", "quantity": total / 500 }]);
        json!({ "order_placed": { "order": order, "total": total, "items": items, "channel": channel } })
    };
    emit(&platform, 1, "order.placed", "o-1", &placed("o-1", 12_050, "CHANNEL_WEB"));
    emit(&platform, 2, "order.placed", "o-2", &placed("o-2", 990, "CHANNEL_SHOP"));
    let received =
        json!({ "payment_received": { "order": "o-1", "amount": 12_050, "method": "card" } });
    emit(&platform, 3, "payment.received", "o-1", &received);
    archiver.await_metric("unacked", 3);
    assert_eq!(archiver.stop()["events"], 3);

    // dacapo's own envelope reads it too: its payload is the same bytes.
    let taken = queue.take(1);
    let hex = taken[0]["body"]["hex"].as_str().map(unhex);
    let body = hex.or_else(|| taken[0]["body"].as_str().map(|text| text.as_bytes().to_vec()));
    let body = body.unwrap();
    let event = Envelope::decode(&body).unwrap();
    assert_eq!(
        (event.id.as_str(), event.kind.as_str(), event.key.as_str()),
        ("e-1", "order.placed", "o-1")
    );
    let plain = released::dacapo::envelope::v1::Envelope::decode(body.as_slice()).unwrap();
    assert_eq!((plain.id, plain.payload), (event.id, event.payload.to_vec()));
    // And so does the code of the release, all of it, as a service of the shop would.
    let action = ShopEnvelope::decode(body.as_slice()).unwrap().payload.unwrap().action;
    let Some(Action::OrderPlaced(placed)) = action else { panic!("{action:?}") };
    assert_eq!((placed.order.as_str(), placed.total), ("o-1", 12_050));
    assert_eq!(placed.channel(), released::shop::order::v1::Channel::Web);

    let set = released();
    let select = |expression: &str| -> Vec<String> {
        let args = ["events", "--json", "--limit", "0", "--descriptor-set", &set, "--message"];
        let output = platform.dacapo.run(args.iter().chain(&[ENVELOPE, "--where", expression]));
        output.check(0);
        output.ndjson().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        select("has(body.payload.order_placed) && body.payload.order_placed.total > 10000"),
        ["e-1"]
    );
    assert_eq!(
        select("type == 'order.placed' && body.payload.order_placed.channel == 'CHANNEL_SHOP'"),
        ["e-2"]
    );
    assert_eq!(select("body.payload.?payment_received.method.orValue('') == 'card'"), ["e-3"]);
    let many =
        "type == 'order.placed' && body.payload.order_placed.items.exists(i, i.quantity > 20)";
    assert_eq!(select(many), ["e-1"]);
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}
