//! No secret is told, even by the logs of the libraries and whatever is asked of them; the harness
//! looks at everything that the commands here write, as it does in every test.

use bytes::Bytes;
use dacapo_archive::store::Store as _;
use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::secrets::Secrets;
use dacapo_integration::stored;
use dacapo_s3::S3Store;

use super::platform::{DEADLINE, Platform, messages};
use super::witness::Queue;
use super::{fixtures, services};

/// Everything, and by name those that know a secret.
const LOUD: &str = "trace,lapin=trace,amq_protocol=trace,aws_config=trace,aws_sigv4=trace,\
                    aws_smithy_runtime=trace,hyper=trace,hyper_util=trace";

#[test]
fn the_loudest_logs_tell_no_secret() {
    const EVENTS: usize = 5;
    let mut dacapo = Dacapo::on_s3();
    dacapo.set("DACAPO_LOG", LOUD);
    if let Some(management) = services::management() {
        dacapo.set("DACAPO_MANAGEMENT", &management);
    }
    let platform = Platform::on(&services::amqp(), dacapo);
    let queue = Queue::new("loud");
    let archiver = platform.start_archiver(&["--log-format", "json"]);
    platform.publish(&messages(EVENTS));
    archiver.await_metric("unacked", EVENTS);
    if services::management().is_some() {
        // What the archiver knows of the broker's users must not come into the archive.
        archiver.running.wait_for_line("the broker's definitions were kept", DEADLINE);
    }
    archiver.stop();
    let to = ["--to-queue", queue.name()];
    platform.dacapo.run(["plan"].iter().chain(&to)).check(0);
    let output = platform.dacapo.run(["replay"].iter().chain(&to));
    output.check(0);
    // They do write: otherwise there would be nothing to tell a secret.
    for library in ["lapin", "aws_", "hyper"] {
        assert!(output.stderr.contains(library), "{library} is silent");
    }
    for command in [&["replays", "ls"][..], &["archive", "verify"], &["events"]] {
        platform.dacapo.run(command).check(0);
    }
}

/// The harness looks at all that an archive in the object store holds; so it has to see it.
#[tokio::test]
async fn a_secret_in_an_object_is_found() {
    let prefix = services::unique("told");
    let store = S3Store::connect(stored::options(&prefix)).await.unwrap();
    let mut secrets = Secrets::default();
    secrets.add("PLANTED", b"Pl4nted/s3cret");
    let put = async |key: &str, text: &'static str| {
        store.put_new(&key.parse().unwrap(), Bytes::from_static(text.as_bytes())).await.unwrap();
    };
    put("heads/shop.json", r#"{"stream": "shop"}"#).await;
    assert_eq!(stored::told_by_objects(&prefix, &secrets).unwrap(), []);
    put("definitions/x.json", r#"{"uri": "amqp://u:Pl4nted%2Fs3cret@h"}"#).await;
    let told = stored::told_by_objects(&prefix, &secrets).unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "definitions/x.json");
}

/// A server that knows no session tokens refuses the request, and that must not tell it either.
#[test]
fn a_session_token_is_not_told() {
    let mut dacapo = Dacapo::on_s3();
    dacapo.set("AWS_SESSION_TOKEN", "FwoGZXIvYXdzEBYaDPl4nted/T0ken+of=tests");
    dacapo.set("DACAPO_LOG", LOUD);
    let output = dacapo.run(["archive", "ls"]);
    assert!(output.stderr.contains("aws_"), "{output:?}");
}

#[test]
fn a_login_in_the_wrong_place_is_not_repeated() {
    const URL: &str = "amqp://ops:Pl4nted-s3cret@rabbit.example/shop";
    let dacapo = fixtures::shop();
    for (args, status) in [
        (&["plan", URL][..], 2),
        (&["plan", URL, "--json"], 2),
        (&["plan", "--to-queue", "q", "--ampq", URL], 2),
        (&["plan", "--to-queue", "q", "--window", URL], 2),
        (&["plan", "--archive", URL, "--to-queue", "q"], 3),
        (&["events", "--archive", "s3://AKIAX:Pl4nted/s3cret@bucket/prefix"], 3),
        (&["plan", "--to-queue", "q", "--amqp", "amqp://ops:12/Pl4nted-s3cret@h"], 3),
        (&["plan", "--to-queue", "q", "--amqp", "ops:Pl4nted-s3cret@h"], 3),
        (
            &[
                "archive",
                "run",
                "--amqp",
                URL,
                "--bind",
                "x",
                "--management",
                "http://o:1/Pl4nted@h",
            ],
            3,
        ),
    ] {
        let output = dacapo.run(args);
        output.check(status);
        assert!(!output.stderr.contains("l4nted"), "{output:?}");
        assert!(!output.stdout.contains("l4nted"), "{output:?}");
    }
}
