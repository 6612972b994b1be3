//! How long a disk lasts, from readings that are made up.

use dacapo_management::Certificates;
use prometheus_client::encoding::text::encode;

use super::*;

const MB: u64 = 1_000_000;
const MINUTE: u64 = 60;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn disk(node: &str, free: u64) -> Disk {
    Disk { node: node.to_owned(), free: free * MB, limit: 50 * MB }
}

/// Returns a watch that was told these megabytes of free disk, one reading each 15 s, and what it
/// said last.
fn told(free: &[u64]) -> (Watch, Option<Reading>) {
    let mut watch = Watch::default();
    let mut last = None;
    for (n, free) in free.iter().enumerate() {
        last = watch.take(secs(15 * n as u64), vec![disk("a", *free)]);
    }
    (watch, last)
}

#[track_caller]
fn check(free: &[u64], expected: Outlook) {
    assert_eq!(told(free).1.expect("a node told").outlook, expected);
}

#[test]
fn a_disk_lasts_for_what_is_free_above_the_limit_at_the_rate_it_falls() {
    // 15 MB in 15 s, and 950 MB above the limit.
    check(&[1_030, 1_015, 1_000], Outlook::Lasts(secs(950)));
    check(&[1_000, 1_000, 1_000], Outlook::Steady);
    check(&[1_000, 1_010, 1_020], Outlook::Steady);
}

#[test]
fn one_or_two_readings_make_no_estimate() {
    check(&[1_000], Outlook::Unknown);
    check(&[1_000, 900], Outlook::Unknown);
}

#[test]
fn a_disk_at_its_limit_lasts_no_longer() {
    check(&[50], Outlook::Lasts(Duration::ZERO));
    check(&[30, 40, 45], Outlook::Lasts(Duration::ZERO));
}

#[test]
fn one_burst_among_many_readings_is_not_the_end() {
    let mut free = vec![10_000; 40];
    free.push(9_500);
    let Outlook::Lasts(left) = told(&free).1.unwrap().outlook else { panic!("it falls") };
    // First to last alone would say 11,340 s.
    assert!(left > secs(30_000), "{left:?}");
}

#[test]
fn what_was_longer_ago_than_the_window_is_forgotten() {
    let fast = (0..20).map(|n| 100_000 - n * 1_000);
    let steady = std::iter::repeat_n(81_000, 42);
    check(&fast.chain(steady).collect::<Vec<_>>(), Outlook::Steady);
    let (watch, _) = told(&vec![1_000; 1_000]);
    assert!(watch.nodes["a"].len() <= 41, "{}", watch.nodes["a"].len());
}

#[test]
fn the_node_whose_disk_lasts_the_shortest_is_the_one_told_of() {
    let mut watch = Watch::default();
    let mut last = None;
    for n in 0..4 {
        let disks = vec![disk("a", 200), disk("b", 9_000 - 100 * n), disk("c", 9_000 - 200 * n)];
        last = watch.take(secs(15 * n), disks);
    }
    assert_eq!(last.unwrap().disk.node, "c");
    // Without estimates, the one with the least room; a node that is gone is forgotten.
    let reading = watch.take(secs(60), vec![disk("d", 900), disk("e", 800)]).unwrap();
    assert_eq!((reading.disk.node.as_str(), reading.outlook), ("e", Outlook::Unknown));
    assert_eq!(watch.nodes.len(), 2);
    assert_eq!(watch.take(secs(75), Vec::new()), None);
}

#[test]
fn when_the_store_goes_down_the_rate_is_read_anew() {
    let (mut watch, _) = told(&[1_000; 40]);
    watch.store(true);
    let falling = [(600, 1_000), (615, 985), (630, 970)];
    let readings = falling.map(|(at, free)| {
        watch.store(true);
        watch.take(secs(at), vec![disk("a", free)]).unwrap().outlook
    });
    assert_eq!(readings, [Outlook::Unknown, Outlook::Unknown, Outlook::Lasts(secs(920))]);
}

#[track_caller]
fn check_warnings(told: &[(u64, Outlook, bool)], expected: &[Option<Warning>]) {
    let mut watch = Watch::default();
    let mut warning = |(at, outlook, down): &(u64, Outlook, bool)| {
        watch.store(*down);
        watch.warning(secs(*at), *outlook)
    };
    let warnings: Vec<_> = told.iter().map(&mut warning).collect();
    assert_eq!(warnings, expected);
}

#[test]
fn while_the_store_is_down_the_time_left_is_told_each_minute() {
    let day = Outlook::Lasts(secs(86_400));
    check_warnings(
        &[
            (0, day, false),
            (15, Outlook::Unknown, true),
            (30, day, true),
            (45, day, true),
            (90, Outlook::Steady, true),
            (105, day, false),
            (120, day, true),
        ],
        &[
            None,
            None,
            Some(Warning::StoreDown),
            None,
            Some(Warning::StoreDown),
            None,
            Some(Warning::StoreDown),
        ],
    );
}

#[test]
fn less_than_an_hour_is_told_once_each_time_it_comes_to_that() {
    let minutes = |minutes: u64| Outlook::Lasts(secs(MINUTE * minutes));
    check_warnings(
        &[
            (0, minutes(61), false),
            (15, minutes(59), false),
            (30, minutes(61), false),
            (45, minutes(50), false),
            (60, minutes(180), false),
            (75, minutes(50), false),
            (90, Outlook::Steady, false),
            (105, minutes(50), true),
            (120, minutes(49), true),
        ],
        &[
            None,
            Some(Warning::Short),
            None,
            None,
            None,
            Some(Warning::Short),
            None,
            Some(Warning::StoreDown),
            None,
        ],
    );
}

#[track_caller]
fn check_metrics(up: Option<bool>, reading: Option<Reading>, expected: &[&str]) {
    let mut registry = Registry::default();
    let management = Management::new("http://h", Certificates::default()).unwrap();
    let watching = Watching::register(&mut registry, management);
    *watching.latest.lock() = Known { up, reading };
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(values, expected);
}

#[test]
fn metrics_tell_what_is_known_and_nothing_else() {
    let reading = |outlook| Some(Reading { disk: disk("a", 900), outlook });
    let up = "dacapo_archiver_broker_management_up 1";
    let free = "dacapo_archiver_broker_disk_free_bytes 900000000";
    check_metrics(None, None, &[]);
    check_metrics(Some(false), None, &["dacapo_archiver_broker_management_up 0"]);
    check_metrics(Some(true), reading(Outlook::Unknown), &[up, free]);
    check_metrics(
        Some(true),
        reading(Outlook::Lasts(secs(90))),
        &[up, free, "dacapo_archiver_broker_disk_seconds 90.0"],
    );
    let steady = "dacapo_archiver_broker_disk_seconds inf";
    check_metrics(Some(true), reading(Outlook::Steady), &[up, free, steady]);
}

#[test]
fn only_running_nodes_that_know_their_disk_have_one() {
    let node = |runs, disk_free| Node {
        name: "a".to_owned(),
        runs,
        disk_free,
        disk_limit: Some(50 * MB),
        ..Node::default()
    };
    assert_eq!(disk_of(node(true, Some(900 * MB))), Some(disk("a", 900)));
    assert_eq!(disk_of(node(false, Some(900 * MB))), None);
    assert_eq!(disk_of(node(true, None)), None);
}
