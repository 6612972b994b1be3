//! `dacapo demo` shows what it says, leaves commands that work, and leaves nothing on a broker.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dacapo_amqp::{AmqpTarget, Via, inspect};
use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::environment;
use dacapo_integration::process::Signal;
use serde_json::{Value, json};

use super::amqp_direct::broker;
use super::services;

/// Enough for several segments, and for a replay that lasts.
const EVENTS: &str = "2000";

/// What a command is told by the environment.
const VARIABLES: [&str; 5] =
    ["DACAPO_ARCHIVE", "DACAPO_INDEX", "DACAPO_STATE", "DACAPO_CONFIG", "DACAPO_AMQP"];

#[track_caller]
fn check_story(story: &Value) {
    assert_eq!(story["passed"], true, "{story:#}");
    assert_eq!(story["events"], 2_000);
    assert_eq!(story["archive"]["events"], 2_000);
    assert_eq!(story["archive"]["events_at_the_end"], 2_000);
    let orders = &story["orders"];
    assert_eq!(orders["before"], orders["after"]);
    assert_ne!(orders["before"]["digest"], orders["lost"]["digest"]);
    assert_eq!(orders["lost"]["orders"], 0);
    assert_eq!(orders["before"]["orders"], story["by_type"]["order.placed"]);
    let mailer = &story["mailer"];
    let count = |kind: &str| story["by_type"][kind].as_u64().expect("a count");
    let mails = json!(count("order.placed") + count("order.shipped"));
    assert_eq!(mailer["before"]["received"], mails);
    assert_eq!(mailer["after"], json!({ "received": mails, "waiting": 0 }));
    assert_eq!((&mailer["sent"], &mailer["sent_twice"]), (&mails, &json!(0)));
    let replay = &story["replay"];
    assert_eq!((&replay["state"], &replay["confirmed"]), (&json!("completed"), &json!(2_000)));
    assert!(
        story["checks"].as_array().expect("an array").iter().all(|check| check["holds"] == true)
    );
}

/// Runs commands as a person does who copies them.
#[track_caller]
fn check_commands<'a>(commands: impl IntoIterator<Item = &'a str>, folder: &Path) {
    let mut ran = 0;
    for command in commands {
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(folder)
            .output()
            .expect("there is a shell");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{command}\n{said}");
        assert!(!output.stdout.is_empty(), "{command}\n{said}");
        ran += 1;
    }
    assert!(ran >= 5, "{ran} commands");
}

/// Checks that the broker has nothing of the demo's.
async fn check_nothing_left(name: &str) {
    let via = || Via::DefaultExchange;
    let queue = |queue: &str| AmqpTarget::Queue { queue: format!("{name}.{queue}"), via: via() };
    let exchange = |exchange: &str| AmqpTarget::Exchange {
        exchange: format!("{name}.{exchange}"),
        routing_key: None,
    };
    let mut targets = vec![exchange("shop"), exchange("replay")];
    for role in ["orders", "mailer", "archive"] {
        targets.extend([queue(role), queue(&format!("{role}.parked"))]);
    }
    for target in targets {
        assert!(
            !inspect(&broker(), &target).await.expect("the broker answers").exists,
            "{target:?} is still there"
        );
    }
}

#[test]
fn the_story_is_true_and_its_commands_work_where_variables_say_otherwise() {
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_AMQP", "amqp://nobody:secret@127.0.0.1:1/");
    let output = dacapo.run(["demo", "--json", "--events", EVENTS, "--dir", "it's $HOME"]);
    output.check(0);
    let story = output.json();
    check_story(&story);
    assert!(output.stderr.contains("is left alone"), "a configured broker is not gone to");
    assert!(!output.stderr.contains("secret"));
    let commands = story["commands"].as_array().unwrap();
    check_commands(commands.iter().map(|command| command.as_str().unwrap()), dacapo.folder());
    assert!(!Path::new(dacapo.archive()).exists(), "the user's own archive is left alone");
}

#[test]
fn the_printed_commands_work_as_printed() {
    let dacapo = Dacapo::new();
    let mut demo = Command::new(environment::get(environment::BIN).unwrap());
    demo.args(["demo", "--events", EVENTS]).current_dir(dacapo.folder());
    demo.env("TMPDIR", dacapo.folder()).env("HOME", dacapo.folder());
    for variable in VARIABLES {
        demo.env_remove(variable);
    }
    let output = demo.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("PASS: "), "{said}");
    let (_, printed) = said.split_once("Try on what is there:\n").unwrap();
    let commands = printed.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    check_commands(commands, dacapo.folder());
}

#[test]
fn a_folder_in_use_is_refused_and_left_alone() {
    let dacapo = Dacapo::new();
    dacapo.file("mine", "precious");
    let output = dacapo.run(["demo", "--dir", "."]);
    output.check(3);
    assert_eq!(output.stderr, "error: `.` is not empty; give a new or empty folder with --dir\n");
    assert_eq!(std::fs::read_dir(dacapo.folder()).unwrap().count(), 1);
}

#[test]
fn flags_that_the_demo_would_ignore_are_refused() {
    let output = Dacapo::new().run(["demo", "--archive", "elsewhere"]);
    output.check(2);
    let expected = "error: the demo has its own archive, below --dir; leave --archive out\n";
    assert_eq!(output.stderr, expected);
}

#[test]
fn a_broker_that_is_not_there_leaves_nothing_behind() {
    let dacapo = Dacapo::new();
    let output = dacapo.run(["demo", "--dir", "d", "--amqp", "amqp://guest:guest@127.0.0.1:1/"]);
    output.check(8);
    assert!(output.stderr.starts_with("error: "), "{}", output.stderr);
    assert!(!dacapo.folder().join("d").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_story_on_a_broker_leaves_nothing_there() {
    let amqp = services::amqp();
    let (dacapo, story) = tokio::task::spawn_blocking(move || {
        let dacapo = Dacapo::new();
        let args = ["demo", "--json", "--events", EVENTS, "--dir", "d", "--amqp", &amqp];
        let story = dacapo.json(args);
        (dacapo, story)
    })
    .await
    .unwrap();
    check_story(&story);
    let commands = story["commands"].as_array().unwrap();
    check_commands(commands.iter().map(|command| command.as_str().unwrap()), dacapo.folder());
    check_nothing_left(story["demo"].as_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_interrupted_leaves_nothing_on_the_broker() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let amqp = services::amqp();
    let name = tokio::task::spawn_blocking(move || {
        let mut dacapo = Dacapo::new();
        let folder = dacapo.folder().display().to_string();
        dacapo.set("TMPDIR", &folder);
        let demo = dacapo.spawn(["demo", "--events", EVENTS, "--amqp", &amqp]);
        let place = demo.wait_for_line("with a folder of its own", PATIENCE);
        demo.wait_for_line("5 plan", PATIENCE);
        demo.signal(Signal::Interrupt).unwrap();
        let output = demo.wait(PATIENCE);
        output.check(1);
        assert!(output.stderr.contains("interrupted"), "{}", output.stderr);
        let (_, name) = place.rsplit_once('/').unwrap();
        name.trim_end_matches('`').to_owned()
    })
    .await
    .unwrap();
    assert!(name.starts_with("dacapo-demo-"), "{name}");
    check_nothing_left(&name).await;
}
