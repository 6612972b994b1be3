//! The S3 policies, as they stand in the document, on a server that enforces them.

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::seaweed::{self, Seaweed};
use serde_json::{Value, json};

use crate::platform::Platform;
use crate::services;

const PREFIX: &str = "events/production";

/// Returns the policies of who reads, who writes, and who compacts.
fn policies() -> [Value; 3] {
    let text = super::operations();
    let blocks = text.split("```json\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let policies: Vec<Value> = blocks
        .map(|(block, _)| block.replace("BUCKET", seaweed::BUCKET).replace("PREFIX", PREFIX))
        .map(|block| serde_json::from_str(&block).expect("a policy is JSON"))
        .collect();
    policies.try_into().expect("the document has three policies")
}

/// Returns the policy without each of its actions, and what it is without.
fn each_action_less(policy: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (at, statement) in policy["Statement"].as_array().expect("statements").iter().enumerate() {
        for (n, action) in statement["Action"].as_array().expect("actions").iter().enumerate() {
            let mut less = policy.clone();
            let actions = less["Statement"][at]["Action"].as_array_mut().expect("actions");
            actions.remove(n);
            // A statement with no action is none.
            if actions.is_empty() {
                less["Statement"].as_array_mut().expect("statements").remove(at);
            }
            all.push((action.as_str().expect("a name").replace("s3:", "no-"), less));
        }
    }
    all
}

/// Returns an installation of this user.
fn installation(server: &Seaweed, user: &str) -> Dacapo {
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_ARCHIVE", &format!("s3://{}/{PREFIX}", seaweed::BUCKET));
    dacapo.set("AWS_ENDPOINT_URL", &server.endpoint());
    dacapo.set("AWS_REGION", seaweed::REGION);
    dacapo.set("AWS_ACCESS_KEY_ID", user);
    dacapo.set("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY);
    dacapo
}

fn allowed_to_write(server: &Seaweed) -> Dacapo {
    installation(server, "writer")
}

fn import(dacapo: &Dacapo, stream: &str) -> Output {
    let event = json!({ "id": stream, "type": "t", "body": { "stream": stream } });
    let lines = format!("{event}\n").into_bytes();
    dacapo.run_with_input(["archive", "import", "-", "--name", stream], lines)
}

const READING: [&[&str]; 6] = [
    &["archive", "ls"],
    &["archive", "verify"],
    &["index", "sync"],
    &["events", "--json"],
    &["plan", "--exact"],
    &["replay", "--to-file", "replayed.ndjson"],
];

/// Checks that a command was refused by the store, in words that say what to do.
#[track_caller]
fn check_refused(output: &Output, without: &str) {
    assert_eq!(output.status, Some(3), "{without}: {output:?}");
    for words in ["access to `", "was refused", "check the credentials and the policy"] {
        assert!(output.stderr.contains(words), "{without}: {output:?}");
    }
}

#[test]
fn each_command_works_with_its_policy_and_with_no_action_less() {
    let [reader, writer, compactor] = policies();
    let (readers, writers) = (each_action_less(&reader), each_action_less(&writer));
    let compactors = each_action_less(&compactor);
    let named = |role: &str, all: &[(String, Value)]| -> Vec<(String, Value)> {
        all.iter().map(|(less, policy)| (format!("{role}-{less}"), policy.clone())).collect()
    };
    let mut users = vec![
        ("reader".to_owned(), reader),
        ("writer".to_owned(), writer),
        ("compactor".to_owned(), compactor),
    ];
    let (readers, writers) = (named("reader", &readers), named("writer", &writers));
    let compactors = named("compactor", &compactors);
    users.extend(readers.iter().chain(&writers).chain(&compactors).cloned());
    let folder = RunFolder::create().unwrap();
    let server = Seaweed::start_with_users(&folder.path().join("seaweed"), &users).unwrap();

    let allowed = installation(&server, "writer");
    import(&allowed, "history").check(0);
    let platform = Platform::on(&services::amqp(), allowed);
    platform.archive(&[crate::platform::message("live")]);

    let reading = installation(&server, "reader");
    for command in READING {
        reading.run(command).check(0);
    }
    assert_eq!(reading.run(["events", "--json"]).ndjson().len(), 2);
    check_refused(&import(&reading, "more"), "reader");

    // A backfill reads; its archiver writes the answers to its barriers.
    let archiver = platform.start_archiver(&[]);
    let queue = services::unique("backfilled");
    let mut backfill = vec!["backfill", "--queue", &queue, "--bind", &platform.exchange];
    backfill.extend(["--archiver-queue", &platform.archive_queue]);
    let amqp = services::amqp();
    backfill.extend(["--amqp", &amqp]);
    reading.run(backfill).check(0);
    platform.ask(json!({ "op": "delete_queue", "queue": queue }));
    archiver.stop();

    for (user, _) in readers {
        let less = installation(&server, &user);
        let outputs: Vec<Output> = READING.iter().map(|command| less.run(*command)).collect();
        // Bodies are read by some of them only, a listing by the others.
        let refused = outputs.iter().find(|output| output.status != Some(0));
        check_refused(refused.unwrap_or_else(|| panic!("{user} may do everything")), &user);
    }
    for (user, _) in writers {
        check_refused(&import(&installation(&server, &user), &user), &user);
    }

    let stream = |name: &str| {
        let small = crate::fixtures::SMALL_SEGMENTS;
        crate::fixtures::import(
            &allowed_to_write(&server),
            name,
            &crate::fixtures::lines(50),
            &[small],
        );
    };
    let args = |stream: &str| {
        ["archive", "compact", "--older-than", "0s", "--grace", "0s", "--stream", stream]
            .map(str::to_owned)
    };
    stream("compacted");
    // The first merges, the second deletes; the one without a right fails in one of them.
    let compacting = installation(&server, "compactor");
    for _ in 0..2 {
        compacting.run(args("compacted")).check(0);
    }
    check_refused(&reading.run(args("compacted")), "reader");
    for (user, _) in compactors {
        stream(&user);
        let less = installation(&server, &user);
        let outputs = [less.run(args(&user)), less.run(args(&user))];
        let refused = outputs.iter().find(|output| output.status != Some(0));
        check_refused(refused.unwrap_or_else(|| panic!("{user} may do everything")), &user);
    }
}
