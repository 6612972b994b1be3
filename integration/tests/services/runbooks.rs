//! The runbooks of docs/runbooks.md, run as they stand there: the commands are taken from the document,
//! and so is what they show. What a runbook introduces by `export` is the only thing that a test puts
//! in: a real broker and store, an archiver, and the example service with its start and stop.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::seaweed::{self, Seaweed};
use dacapo_integration::{environment, wait};
use regex::Regex;
use serde_json::json;

use super::consumer::service::{ENVELOPED, Service, history, settled};
use super::drilling::stage::Stage;
use super::fixtures::shop;
use super::platform::{DEADLINE, Platform, ids, messages};
use super::services;
use super::witness::Queue;

const DOCUMENT: &str = "docs/runbooks.md";

/// Each has a test below.
const RUNBOOKS: [&str; 6] = [
    "We lost the orders database",
    "A new service needs all history",
    "The quarterly drill",
    "An event poisoned a service",
    "S3 was down for six hours",
    "The archive shows a gap",
];

/// What a runbook introduces, and the values of the scene.
type Values<'a> = BTreeMap<&'a str, String>;

/// A numbered command of a runbook, and the lines that it shows.
#[derive(Debug)]
struct Step {
    command: String,
    shows: Vec<String>,
}

/// A runbook that is being run.
struct Runbook {
    shell: Dacapo,
    steps: std::vec::IntoIter<Step>,
    done: usize,
}

impl Runbook {
    /// Opens one with the values of the scene: one for each name that it introduces, and no other.
    fn open(title: &str, values: Values<'_>) -> Self {
        let text = section(title);
        let mut blocks = blocks(&text).into_iter();
        let (_, _, exports) = blocks.next().expect("it begins with what it introduces");
        let introduced: Vec<&str> = exports
            .lines()
            .map(|line| {
                let export = line.strip_prefix("export ").and_then(|line| line.split_once('='));
                export.unwrap_or_else(|| panic!("{title}: it is no export: {line}")).0
            })
            .collect();
        let mut sorted = introduced.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, values.keys().copied().collect::<Vec<_>>(), "{title}");
        let mut steps: Vec<Step> = Vec::new();
        for (number, language, text) in blocks {
            match language.as_str() {
                "sh" => {
                    assert_eq!(number, steps.len() + 1, "{title}: a command for each number");
                    steps.push(Step { command: text, shows: Vec::new() });
                }
                "text" => {
                    let step = steps.last_mut().expect("a command comes first");
                    step.shows = text.lines().map(str::to_owned).collect();
                }
                other => panic!("{title}: a block of `{other}`"),
            }
        }
        let mut shell = Dacapo::of_binary("bash".into());
        let binary = environment::get(environment::BIN).expect("the test is run by `servers`");
        let folder =
            Path::new(&binary).parent().expect("it lies in a folder").display().to_string();
        let path = environment::get("PATH").unwrap_or_default();
        shell.set("PATH", &format!("{folder}:{path}"));
        for (name, value) in &values {
            shell.set(name, value);
        }
        Runbook { shell, steps: steps.into_iter(), done: 0 }
    }

    /// Sets a variable that is the scene's and not the runbook's.
    fn with(mut self, name: &str, value: &str) -> Self {
        self.shell.set(name, value);
        self
    }

    /// Runs the next command, and checks what it shows.
    #[track_caller]
    fn step(&mut self) {
        let Step { command, shows } = self.steps.next().expect("there is a further step");
        self.done += 1;
        let number = self.done;
        // What a step exports is there for those after it.
        let name = Regex::new(r"(?m)^export ([A-Z_]+)=").unwrap();
        let kept: String = name
            .captures_iter(&command)
            .map(|found| format!("declare -p {} >> exported\n", &found[1]))
            .collect();
        let script = format!("exec 2>&1; touch exported; . ./exported\n{command}\n{kept}");
        let output = self.shell.run(["-euo", "pipefail", "-c", &script]);
        output.check(0);
        let mut lines = output.stdout.lines();
        for shown in shows {
            let pattern: Vec<String> = shown.split('…').map(regex::escape).collect();
            let pattern = Regex::new(&format!("^{}$", pattern.join(".*"))).unwrap();
            assert!(
                lines.any(|line| pattern.is_match(line)),
                "step {number} does not show `{shown}` in its place:\n{command}\n{}",
                output.stdout
            );
        }
    }

    /// Runs what is left.
    #[track_caller]
    fn finish(mut self) {
        while self.steps.len() > 0 {
            self.step();
        }
    }
}

/// Returns the text under a heading.
fn section(title: &str) -> String {
    let document = fs::read_to_string(environment::root().join(DOCUMENT)).unwrap();
    let heading = format!("## {title}");
    let lines = document.lines().skip_while(|line| *line != heading).skip(1);
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("## ")).collect();
    assert!(!lines.is_empty(), "there is no `{heading}`");
    lines.join("\n")
}

/// Returns the fenced blocks of a text: in which numbered item, language and lines.
fn blocks(text: &str) -> Vec<(usize, String, String)> {
    let mut blocks = Vec::new();
    let mut number = 0;
    let mut open: Option<(String, Vec<&str>)> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some((language, mut lines)) = open.take() {
            if trimmed == "```" {
                blocks.push((number, language, lines.join("\n")));
            } else {
                // What stands under a number is moved in by three.
                lines.push(if number > 0 {
                    line.strip_prefix("   ").unwrap_or(line)
                } else {
                    line
                });
                open = Some((language, lines));
            }
        } else if let Some(language) = trimmed.strip_prefix("```") {
            open = Some((language.to_owned(), Vec::new()));
        } else if let Some((item, _)) = line.split_once(". ")
            && let Ok(item) = item.parse()
        {
            number = item;
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

#[test]
fn every_runbook_is_run() {
    let document = fs::read_to_string(environment::root().join(DOCUMENT)).unwrap();
    let titles: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(titles, RUNBOOKS);
}

/// An archive under a private S3 server, that can be taken away.
fn on_s3(seaweed: &Seaweed) -> Dacapo {
    let mut dacapo = Dacapo::new();
    dacapo.set_archive(format!("s3://{}/{}", seaweed::BUCKET, services::unique("archive")));
    dacapo.set("AWS_ENDPOINT_URL", &seaweed.endpoint());
    dacapo
}

/// The values that most runbooks need.
fn values<'a>(dacapo: &Dacapo, queue: &str) -> Values<'a> {
    let state = dacapo.folder().join("state").display().to_string();
    BTreeMap::from([
        ("DACAPO_ARCHIVE", dacapo.archive().to_owned()),
        ("DACAPO_AMQP", services::amqp()),
        ("DACAPO_STATE", state),
        ("QUEUE", queue.to_owned()),
    ])
}

#[test]
fn we_lost_the_orders_database() {
    const ORDERS: usize = 12;
    let folder = RunFolder::create().unwrap();
    let seaweed = Seaweed::start(folder.path()).unwrap();
    let platform = Platform::on(&services::amqp(), on_s3(&seaweed));
    let service = Service::new(&platform);
    service.declare();
    let mut flags = vec!["--roll-age", "200ms"];
    flags.extend(ENVELOPED);
    let archiver = platform.start_archiver(&flags);
    platform.publish(&history(ORDERS));
    service.drain();
    let before = (service.state(), service.emitted().0);
    assert_eq!(before.1, settled(ORDERS));
    archiver.await_metric("events_total", 6 * ORDERS);

    let scripts = service.scripts();
    scripts.start();
    let mut values = values(&platform.dacapo, service.queue());
    values.extend([
        ("DATABASE", service.folder().join("orders.sqlite").display().to_string()),
        ("ARCHIVER", archiver.address().to_owned()),
        ("START", scripts.start_path()),
        ("STOP", scripts.stop_path()),
        ("SETTLE", "0".to_owned()),
    ]);
    let book = Runbook::open("We lost the orders database", values)
        .with("AWS_ENDPOINT_URL", &seaweed.endpoint())
        .with("ORDERS_AMQP", &services::amqp());
    book.finish();
    let whole = || Ok((service.state() == before.0).then_some(()));
    wait::until("its state is what it was", DEADLINE, whole).unwrap();
    scripts.stop();
    assert_eq!(service.emitted().1, 0, "nobody has heard of it");
    archiver.stop();
}

#[test]
fn a_new_service_needs_all_history() {
    const ORDERS: usize = 12;
    let Some(management) = services::management() else { return };
    let folder = RunFolder::create().unwrap();
    let seaweed = Seaweed::start(folder.path()).unwrap();
    let platform = Platform::on(&services::amqp(), on_s3(&seaweed));
    let mut flags = vec!["--roll-age", "200ms"];
    flags.extend(ENVELOPED);
    let archiver = platform.start_archiver(&flags);
    let events = history(ORDERS);
    let (old, new) = events.split_at(events.len() / 2);
    platform.publish(old);
    archiver.await_metric("events_total", old.len());
    let service = Service::new(&platform);
    let scripts = service.scripts();

    let mut values = values(&platform.dacapo, service.queue());
    values.extend([
        ("DACAPO_MANAGEMENT", management),
        ("EXCHANGE", platform.exchange.clone()),
        ("ARCHIVER", archiver.address().to_owned()),
        ("START", scripts.start_path()),
    ]);
    let book = Runbook::open("A new service needs all history", values)
        .with("AWS_ENDPOINT_URL", &seaweed.endpoint())
        .with("ORDERS_AMQP", &services::amqp());
    book.finish();
    // The queue is bound to live by now.
    platform.publish(new);
    // Five of each order, and what the service says of it.
    let all = 6 * ORDERS;
    let handled = || Ok((service.handled() == all).then_some(()));
    let waited = wait::until("every event is handled", DEADLINE, handled);
    assert!(waited.is_ok(), "{} of {all}: {}", service.handled(), scripts.log());
    scripts.stop();
    archiver.stop();

    let twin = Service::new(&platform);
    twin.declare();
    platform.publish(&events);
    twin.drain();
    assert_eq!(service.state(), twin.state());
}

#[test]
fn the_quarterly_drill() {
    let Some(stage) = Stage::new() else { return };
    let dacapo = &stage.platform.dacapo;
    let targets = "rto = '10m'\nrpo = '1h'";
    let folder = dacapo.folder().display().to_string();
    let definitions = format!("'{folder}/definitions.json'");
    let description = stage.description(targets).replace("'definitions.json'", &definitions);
    let description = dacapo.file("drill.toml", description);
    let mut values = values(dacapo, "");
    values.remove("QUEUE");
    values.extend([
        ("DACAPO_MANAGEMENT", services::management().unwrap()),
        ("DRILL", description.display().to_string()),
        ("KEYS", folder.clone()),
        ("REPORTS", format!("{folder}/reports")),
        ("WHO", "Ada, on call".to_owned()),
    ]);
    fs::remove_file(dacapo.folder().join("drill.key")).unwrap();
    Runbook::open("The quarterly drill", values).finish();
}

#[test]
fn an_event_poisoned_a_service() {
    let Some(management) = services::management() else { return };
    let folder = RunFolder::create().unwrap();
    let seaweed = Seaweed::start(folder.path()).unwrap();
    let platform = Platform::on(&services::amqp(), on_s3(&seaweed));
    let service = Service::new(&platform);
    service.declare();
    let mut flags = vec!["--roll-age", "200ms"];
    flags.extend(ENVELOPED);
    let archiver = platform.start_archiver(&flags);
    let scripts = service.scripts();
    // A wrong rule was shipped with the service.
    let ship = "CREATE TRIGGER wrong BEFORE INSERT ON orders WHEN NEW.total = 100 \
                AND NEW.number = 'order-1' BEGIN SELECT RAISE(ABORT, 'no such order'); END";
    let fix = scripts.database("fix", "DROP TRIGGER wrong");
    scripts.run(&scripts.database("ship", ship));
    scripts.start();
    let events = history(3);
    platform.publish(&events);
    archiver.await_metric("events_total", events.len());
    let buried = || Ok(scripts.log().contains("becomes a dead letter").then_some(()));
    wait::until("an event is buried", DEADLINE, buried).unwrap();

    let mut values = values(&platform.dacapo, service.queue());
    values.extend([
        ("DACAPO_MANAGEMENT", management),
        ("VHOST", "%2F".to_owned()),
        ("LOG", scripts.log_path()),
        ("FIX", fix),
    ]);
    let book = Runbook::open("An event poisoned a service", values)
        .with("AWS_ENDPOINT_URL", &seaweed.endpoint());
    book.finish();
    let handled = || Ok((service.handled() == events.len()).then_some(()));
    wait::until("every event is handled", DEADLINE, handled).unwrap();
    scripts.stop();
    assert_eq!(service.emitted().0, settled(3));
    assert_eq!(service.dead_letters(), [json!(null); 0], "it was taken away");
    archiver.stop();
}

#[test]
fn s3_was_down_for_six_hours() {
    let folder = RunFolder::create().unwrap();
    let mut seaweed = Seaweed::start(folder.path()).unwrap();
    let platform = Platform::on(&services::amqp(), on_s3(&seaweed));
    let archiver = platform.start_archiver(&["--roll-age", "200ms"]);
    let all = messages(60);
    platform.publish(&all[..20]);
    archiver.await_metric("events_total", 20);
    seaweed.kill().unwrap();
    platform.publish(&all[20..]);
    let ill = || Ok((archiver.health().0 == 503).then_some(()));
    wait::until("the archiver says that the store is away", DEADLINE, ill).unwrap();
    // Every put waits for its retries to be over first.
    let down = || Ok((archiver.metric("store_up") == Some(0.0)).then_some(()));
    wait::until("the store counts as down", DEADLINE, down).unwrap();

    let values = BTreeMap::from([
        ("DACAPO_ARCHIVE", platform.dacapo.archive().to_owned()),
        ("ARCHIVER", archiver.address().to_owned()),
    ]);
    let mut book = Runbook::open("S3 was down for six hours", values)
        .with("AWS_ENDPOINT_URL", &seaweed.endpoint());
    book.step();
    book.step();
    seaweed.start_again().unwrap();
    book.finish();
    assert_eq!(archiver.stop()["events"], 60);
    assert_eq!(platform.archived_ids().into_keys().collect::<Vec<_>>(), ids(60));
}

#[test]
fn the_archive_shows_a_gap() {
    let dacapo = shop();
    let queue = Queue::new("orders");
    let segments = dacapo.segments();
    let chain = Path::new(dacapo.archive()).join("chain/shop");
    let mut entries: Vec<_> =
        fs::read_dir(&chain).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    assert!(entries.len() > 2 && segments.len() == entries.len(), "{entries:?}");
    fs::remove_file(&entries[1]).unwrap();
    fs::remove_file(segments.last().unwrap()).unwrap();

    let mut values = values(&dacapo, queue.name());
    values.insert("RESTORE", "false".to_owned());
    let book = Runbook::open("The archive shows a gap", values);
    book.finish();
    let kept = dacapo.run(["events", "--json", "--limit", "0"]).ndjson().len();
    assert_eq!(queue.take(1_000).len(), kept, "everything but the gap");
}
