//! The alert rules that are shipped, against the metrics that are served and the faults that they
//! are to tell of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use dacapo_integration::dacapo::{Dacapo, Running};
use dacapo_integration::environment;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::process::Signal;
use dacapo_integration::prometheus::{Prometheus, promtool, shipped};
use dacapo_integration::seaweed::{self, Seaweed};
use dacapo_integration::wait;
use serde_json::Value;

use super::platform::{DEADLINE, Platform, get, message};
use super::services;
use super::witness::Queue;

/// Jobs as docs/operations.md names them.
const ARCHIVER_JOB: &str = "dacapo-archiver";
const REPLAY_JOB: &str = "dacapo-replay";
const DRILL_JOB: &str = "dacapo-drill";

/// Events of the replay that is scraped: at one a second more than a test lasts.
const EVENTS: usize = 1_000;

/// What a test cannot wait for, in the shipped rules, and what stands there in the test.
const HASTE: [(&str, &str); 9] = [
    ("for: 1m\n", "for: 1s\n"),
    ("for: 2m\n", "for: 1s\n"),
    ("for: 5m\n", "for: 1s\n"),
    ("for: 10m\n", "for: 1s\n"),
    ("for: 15m\n", "for: 1s\n"),
    ("[15m]", "[30s]"),
    ("[1h]", "[30s]"),
    ("lag_seconds:max > 900\n", "lag_seconds:max > 8\n"),
    ("lag_seconds:max > 3600\n", "lag_seconds:max > 12\n"),
];

fn rules() -> String {
    fs::read_to_string(shipped().join("dacapo.rules.yml")).unwrap()
}

#[test]
fn promtool_accepts_the_rules_and_their_own_tests_pass() {
    promtool(&shipped(), &["check", "rules", "dacapo.rules.yml"]).unwrap();
    for tests in ["dacapo.rules.test.yml", "dacapo.rules.days.test.yml"] {
        promtool(&shipped(), &["test", "rules", tests]).unwrap();
    }
}

#[test]
fn a_rule_that_is_wrong_fails_its_test() {
    let folder = RunFolder::create().unwrap();
    let planted = rules().replace("lag_seconds:max > 900\n", "lag_seconds:max > 90000\n");
    fs::write(folder.path().join("dacapo.rules.yml"), planted).unwrap();
    let tests = "dacapo.rules.test.yml";
    fs::copy(shipped().join(tests), folder.path().join(tests)).unwrap();
    let error = promtool(folder.path(), &["test", "rules", tests]).unwrap_err().to_string();
    assert!(error.contains("DacapoLagHigh"), "{error}");
}

/// A replay that takes longer than the test.
struct Watched {
    running: Running,
    address: String,
}

impl Watched {
    fn start(platform: &Platform, queue: &Queue) -> Self {
        let pace = ["--to-queue", queue.name(), "--rate", "1"];
        let watched = ["--metrics", "127.0.0.1:0", "--log", "info"];
        let (running, _) = platform.start_replay(&[&pace[..], &watched[..]].concat());
        Watched::of(running)
    }

    /// Starts drills that cannot begin, and are tried again tomorrow.
    fn drilling(platform: &Platform) -> Self {
        let described = "name = 'd'\n[environment]\nvhost = '/'\n[target]\nqueue = 'q'\n";
        platform.dacapo.file("drill.toml", described);
        let flags = ["--every", "24h", "--metrics", "127.0.0.1:0", "--log", "info"];
        Watched::of(platform.dacapo.spawn(["drill", "drill.toml"].iter().chain(&flags)))
    }

    fn of(running: Running) -> Self {
        let line = running.wait_for_line("serving /metrics and /health", DEADLINE);
        let (_, address) = line.rsplit_once("address=").expect("it is a field of the line");
        Watched { running, address: address.trim().to_owned() }
    }
}

/// Returns a backfill that holds: it knows how far behind it is.
fn watched_backfill(platform: &Platform) -> Watched {
    let queue = services::unique("watched");
    let mut args = vec!["backfill", "--queue", &queue, "--bind", &platform.exchange];
    args.extend(["--archiver-queue", &platform.archive_queue]);
    args.extend(["--metrics", "127.0.0.1:0", "--log", "info"]);
    let running = platform.dacapo.spawn(args);
    let line = running.wait_for_line("serving /metrics and /health", DEADLINE);
    let (_, address) = line.rsplit_once("address=").expect("it is a field of the line");
    running.wait_for_line("live events are held", DEADLINE);
    Watched { address: address.trim().to_owned(), running }
}

/// Returns the names of the metrics that an address serves, each with its type.
fn served(address: &str) -> BTreeMap<String, String> {
    let (_, text) = get(address, "/metrics");
    let (mut family, mut found) = ((String::new(), String::new()), BTreeMap::new());
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            family = (name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert!(name.starts_with(&family.0), "`{line}` is not of {family:?}");
            found.insert(name.to_owned(), family.1.clone());
        }
    }
    found
}

/// Returns the metrics of the table in docs/operations.md, each with its type.
fn documented() -> BTreeMap<String, String> {
    let path = environment::root().join("docs/operations.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text
        .lines()
        .skip_while(|line| *line != "## Metrics")
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2);
    rows.map(|row| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let mut cell = || cells.next().expect("a row has three cells").trim_matches('`').to_owned();
        (cell(), cell())
    })
    .collect()
}

/// Returns each metric in the expressions with what is asked of its labels: `name` or
/// `name{label="value"}`.
fn selectors(expressions: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for expression in expressions {
        for prefix in ["dacapo_", "process_", "up{"] {
            for (at, _) in expression.match_indices(prefix) {
                let before = expression[..at].chars().next_back();
                if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let rest = &expression[at..];
                let name = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                let name = name.unwrap_or(rest.len());
                let labels = match rest[name..].starts_with('{') {
                    true => rest[name..].find('}').expect("a selector ends") + 1,
                    false => 0,
                };
                found.insert(rest[..name + labels].to_owned());
            }
        }
    }
    found
}

/// Returns the expressions of the rules that a server has loaded; each must have been evaluated.
fn evaluated(prometheus: &Prometheus) -> Vec<String> {
    let all = || {
        let groups = prometheus.api("rules")?;
        let rules: Vec<Value> = groups["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
            .collect();
        let done = !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok");
        Ok(done.then_some(rules))
    };
    let rules = wait::until("every rule is evaluated without an error", DEADLINE, all).unwrap();
    rules.iter().map(|rule| rule["query"].as_str().expect("it is text").to_owned()).collect()
}

#[test]
fn every_metric_is_documented_and_every_rule_asks_for_one_that_is_there() {
    let Some(management) = services::management() else { return };
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_MANAGEMENT", &management);
    let platform = Platform::on(&services::amqp(), dacapo);
    platform.import(EVENTS);
    let output = platform.dacapo.run(["archive", "verify"]);
    output.check(0);
    let archiver = platform.start_archiver(&[]);
    let queue = Queue::new("watched");
    let replay = Watched::start(&platform, &queue);
    // An estimate needs three readings.
    let known = || Ok(archiver.metric("broker_disk_seconds"));
    wait::until("the time left is known", DEADLINE, known).unwrap();

    let folder = RunFolder::create().unwrap();
    let drill = Watched::drilling(&platform);
    drill.running.wait_for_line("production's own virtual host", DEADLINE);
    let jobs = [
        (ARCHIVER_JOB, archiver.address()),
        (REPLAY_JOB, replay.address.as_str()),
        (DRILL_JOB, drill.address.as_str()),
    ];
    let prometheus = Prometheus::start(folder.path(), &rules(), &jobs).unwrap();
    let up = || Ok((prometheus.query("up == 1")?.len() == jobs.len()).then_some(()));
    wait::until("all are scraped", DEADLINE, up).unwrap();

    let backfill = watched_backfill(&platform);
    let mut metrics = served(archiver.address());
    metrics.extend(served(&replay.address));
    metrics.extend(served(&drill.address));
    assert_eq!(get(&drill.address, "/health").0, 503, "it could not begin");
    metrics.extend(served(&backfill.address));
    backfill.running.signal(Signal::Interrupt).unwrap();
    backfill.running.wait(DEADLINE).check(6);
    platform.dacapo.run(["backfill", "cancel", "20"]).check(0);
    assert_eq!(metrics, documented(), "/metrics and the table in docs/operations.md");

    let expressions = evaluated(&prometheus);
    let asked = selectors(&expressions);
    assert!(asked.contains("dacapo_replay_phase{phase=\"blocked\"}"), "{asked:?}");
    for selector in &asked {
        let series = prometheus.query(selector).unwrap();
        assert!(!series.is_empty(), "`{selector}` is in the rules, and there is no such series");
    }
    for expression in &expressions {
        for (at, function) in expression.match_indices("increase(") {
            let name = expression[at + function.len()..].split('[').next().unwrap_or_default();
            let kind = metrics.get(name).map(String::as_str);
            assert_eq!(kind, Some("counter"), "`{name}` in {expression}");
        }
    }
    for (metric, label) in
        [("dacapo_archiver_info", "stream"), ("dacapo_archiver_parked_total", "reason")]
    {
        for series in prometheus.query(metric).unwrap() {
            assert!(series["metric"][label].is_string(), "{series}");
        }
    }
    replay.running.signal(Signal::Interrupt).unwrap();
    replay.running.wait(DEADLINE).check(6);
    drill.running.signal(Signal::Terminate).unwrap();
    drill.running.wait(DEADLINE).check(5);
    archiver.stop();
}

/// Returns the names of the alerts that fire.
fn firing(prometheus: &Prometheus) -> BTreeSet<String> {
    let alerts = prometheus.query("ALERTS{alertstate=\"firing\"}").unwrap();
    let name = |alert: &Value| alert["metric"]["alertname"].as_str().map(str::to_owned);
    alerts.iter().filter_map(name).collect()
}

#[track_caller]
fn await_firing(prometheus: &Prometheus, what: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    let mut last = BTreeSet::new();
    let fires = || {
        last = firing(prometheus);
        Ok((last == expected).then_some(()))
    };
    let awaited = wait::until(what, 2 * DEADLINE, fires);
    assert!(awaited.is_ok(), "{what}: {last:?} fire and not {expected:?}");
}

#[test]
fn a_store_that_is_down_raises_its_alerts_and_they_end_when_it_is_back() {
    let folder = RunFolder::create().unwrap();
    let mut store = Seaweed::start(&folder.path().join("seaweed")).unwrap();
    let mut dacapo = Dacapo::new();
    for (name, value) in [
        ("DACAPO_ARCHIVE", format!("s3://{}/events", seaweed::BUCKET).as_str()),
        ("AWS_ENDPOINT_URL", &store.endpoint()),
        ("AWS_REGION", seaweed::REGION),
        ("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY),
    ] {
        dacapo.set(name, value);
    }
    let platform = Platform::on(&services::amqp(), dacapo);
    let archiver = platform.start_archiver(&["--roll-age", "1s"]);
    let mut hasty = rules();
    for (shipped, ours) in HASTE {
        assert!(hasty.contains(shipped), "{shipped:?} is not in the shipped rules");
        hasty = hasty.replace(shipped, ours);
    }
    let jobs = [(ARCHIVER_JOB, archiver.address())];
    let prometheus = Prometheus::start(&folder.path().join("prometheus"), &hasty, &jobs).unwrap();
    platform.publish(&[message("durable")]);
    archiver.await_metric("events_total", 1);
    evaluated(&prometheus);
    await_firing(&prometheus, "nothing is wrong", &[]);

    store.kill().unwrap();
    platform.publish(&[message("waits")]);
    let told = ["DacapoLagCritical", "DacapoLagHigh", "DacapoPutsFailing", "DacapoStoreDown"];
    await_firing(&prometheus, "the store is down", &told);
    let labels = prometheus.query("ALERTS{alertname=\"DacapoLagHigh\"}").unwrap();
    assert_eq!(labels[0]["metric"]["stream"], platform.archive_queue.as_str(), "{labels:?}");

    store.start_again().unwrap();
    archiver.await_metric("events_total", 2);
    await_firing(&prometheus, "all is well again", &[]);
    archiver.stop();
}
