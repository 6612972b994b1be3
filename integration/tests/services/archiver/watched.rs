//! What an operator's monitoring sees of the archiver.

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use dacapo_integration::wait;
use serde_json::json;

use super::{DEADLINE, Platform, ids, messages};

#[test]
fn metrics_are_right_after_known_events() {
    let platform = Platform::new();
    let archiver = platform.start_archiver(&["--roll-age", "9m", "--prefetch", "100"]);
    let metric = |name: &str| archiver.metric(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(archiver.health(), (200, "ok\n".to_owned()));
    assert_eq!((metric("connected"), metric("active"), metric("lag_seconds")), (1.0, 0.0, 0.0));
    assert_eq!(metric("last_put_timestamp_seconds"), 0.0);

    // Too few to finish a segment: they are on the bus only, and that is the lag.
    platform.publish(&messages(49));
    archiver.await_metric("unacked", 49);
    let lag = metric("lag_seconds");
    let grown = || Ok((metric("lag_seconds") > lag).then_some(()));
    wait::until("the lag grows", DEADLINE, grown).unwrap();
    assert_eq!(metric("events_total"), 0.0);
    assert_eq!(metric("active"), 1.0);

    platform.publish(&messages(1));
    archiver.await_metric("events_total", 50);
    let durable = || Ok((metric("unacked") == 0.0).then_some(()));
    wait::until("all is acked", DEADLINE, durable).unwrap();
    assert_eq!(metric("lag_seconds"), 0.0);
    assert_eq!(metric("segments_total"), 1.0);
    let bodies: usize = ids(49).iter().map(|id| "body of ".len() + id.len()).sum();
    assert_eq!(metric("body_bytes_total"), (bodies + "body of e-000000".len()) as f64);
    let segments = platform.dacapo.segments();
    assert_eq!(metric("object_bytes_total"), segments[0].metadata().unwrap().len() as f64);
    assert_eq!((metric("skipped_replayed_total"), metric("failed_puts_total")), (0.0, 0.0));
    assert!(metric("last_put_timestamp_seconds") > 1.7e9);
    archiver.stop();
}

#[test]
fn a_lost_broker_is_told_and_archiving_goes_on_when_it_is_back() {
    let folder = RunFolder::create().unwrap();
    let mut rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let platform = Platform::on(&rabbit.amqp_url(), Dacapo::new());
    let archiver = platform.start_archiver(&["--roll-age", "100ms"]);
    platform.publish(&messages(10));
    archiver.await_metric("events_total", 10);
    // RabbitMQ 3.10 writes down that a quorum queue exists some 5 s after it was declared; one
    // that is younger when the node is killed never has a leader again.
    rabbit.ctl(&["eval", "[dets:sync(Table) || Table <- dets:all()]."]).unwrap();

    rabbit.kill().unwrap();
    let ill = || Ok(Some(archiver.health()).filter(|(status, _)| *status == 503));
    let (_, problem) = wait::until("the archiver is not healthy", DEADLINE, ill).unwrap();
    assert!(problem.contains("no connection to the bus"), "{problem}");
    assert_eq!(archiver.metric("connected"), Some(0.0));
    let lags = || Ok((archiver.metric("lag_seconds") > Some(0.0)).then_some(()));
    wait::until("the lag is not zero", DEADLINE, lags).unwrap();

    rabbit.start_again().unwrap();
    let well = || Ok((archiver.health().0 == 200).then_some(()));
    wait::until("the archiver is healthy again", DEADLINE, well).unwrap();
    let more: Vec<_> = (10..20).map(|n| super::message(&super::super::platform::id(n))).collect();
    platform.publish(&more);
    archiver.await_metric("events_total", 20);
    archiver.stop();
    super::check_kept(&platform, &ids(20));
    drop(platform);
    assert_eq!(rabbit.ctl(&["list_queues", "-s", "name"]).unwrap().trim(), "");
}

#[test]
fn without_its_store_the_archiver_acks_nothing_and_says_so() {
    let platform = Platform::new();
    let archiver = platform.start_archiver(&["--roll-age", "100ms"]);
    platform.publish(&messages(5));
    archiver.await_metric("events_total", 5);
    // In the place of the archive there is a file: every put fails until it is back.
    let archive = std::path::PathBuf::from(platform.dacapo.archive());
    let aside = archive.with_extension("aside");
    std::fs::rename(&archive, &aside).unwrap();
    std::fs::write(&archive, "not a folder").unwrap();
    let more: Vec<_> = (5..9).map(|n| super::message(&super::super::platform::id(n))).collect();
    platform.publish(&more);
    let ill = || Ok((archiver.health().0 == 503).then_some(()));
    let ended = wait::until("the archiver is not healthy", DEADLINE, ill);
    assert!(ended.is_ok(), "{ended:?} {:?}", archiver.running.written());
    assert_eq!(archiver.metric("events_total"), Some(5.0));
    assert!(archiver.metric("failed_puts_total") >= Some(1.0));

    std::fs::remove_file(&archive).unwrap();
    std::fs::rename(&aside, &archive).unwrap();
    archiver.await_metric("events_total", 9);
    assert_eq!(archiver.health().0, 200);
    assert_eq!(archiver.stop()["events"], json!(9));
    super::check_kept(&platform, &ids(9));
}
