//! What the tests of the product see of a command, tried on a shell in the binary's place.

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

fn shell() -> Dacapo {
    Dacapo::of_binary("/bin/sh".into())
}

#[test]
fn a_command_is_told_its_folders_and_nothing_of_the_developers() {
    let mut shell = shell();
    shell.set("EXTRA", "more");
    let script = r#"echo "$DACAPO_ARCHIVE $DACAPO_INDEX $DACAPO_STATE $HOME $PWD $EXTRA""#;
    let output = shell.run(["-c", script]);
    output.check(0);
    let folder = shell.folder().display();
    let expected =
        format!("{folder}/archive {folder}/index {folder}/state {folder} {folder} more\n");
    assert_eq!(output.stdout, expected);
}

#[test]
fn a_command_is_told_no_setting_of_the_developers() {
    const THIS: &str = "dacapo::tests::a_command_is_told_no_setting_of_the_developers";
    const SETTINGS: [&str; 7] = [
        "DACAPO_AMQP",
        "DACAPO_AMQP_PASSWORD",
        "DACAPO_CONFIG",
        "DACAPO_LOG",
        "DACAPO_LOG_FORMAT",
        "DACAPO_MANAGEMENT",
        "DACAPO_MEMORY",
    ];
    const AGAIN: &str = "again";
    if environment::get("DACAPO_PLANTED").as_deref() != Some(AGAIN) {
        // A process has its environment from the start: this test again, where a developer has all.
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", THIS]).envs(SETTINGS.map(|name| (name, "a developer's")));
        let ended = again.env("DACAPO_PLANTED", AGAIN).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
        return;
    }
    let output = shell().run(["-c", "env | grep ^DACAPO_ | grep -v ^DACAPO_TEST_ | cut -d= -f1"]);
    let mut told: Vec<&str> = output.stdout.lines().collect();
    told.sort_unstable();
    assert_eq!(told, ["DACAPO_ARCHIVE", "DACAPO_INDEX", "DACAPO_PLANTED", "DACAPO_STATE"]);
}

#[test]
fn output_status_and_input_are_kept_apart() {
    let script = "cat; printf '\\377' ; echo talk >&2; exit 7";
    let output = shell().run_with_input(["-c", script], b"data".to_vec());
    output.check(7);
    assert_eq!(output.stdout, "data\u{fffd}");
    assert_eq!(output.stdout_bytes, b"data\xff");
    assert_eq!(output.stderr, "talk\n");
}

#[test]
fn a_line_is_waited_for_and_then_the_command_is_signalled() {
    let script = "trap 'echo stopping; exit 3' INT; echo ready >&2; while :; do sleep 0.05; done";
    let mut running = shell().spawn(["-c", script]);
    assert_eq!(running.wait_for_line("read", DEADLINE), "ready");
    assert!(running.is_running().unwrap());
    running.signal(Signal::Interrupt).unwrap();
    running.wait_for_line("stopping", DEADLINE);
    running.wait(DEADLINE).check(3);
}

#[test]
fn a_killed_command_still_tells_what_it_wrote() {
    let running = shell().spawn(["-c", "echo begun; exec sleep 600"]);
    running.wait_for_line("begun", DEADLINE);
    let output = running.kill();
    assert_eq!((output.status, output.stdout.as_str()), (None, "begun\n"));
}

#[test]
#[should_panic(expected = "no line with “never”; stdout:\nsomething\n\nstderr:\n")]
fn a_line_that_never_comes_fails_as_soon_as_the_command_has_ended() {
    shell().spawn(["-c", "echo something"]).wait_for_line("never", Duration::from_secs(3_600));
}

#[test]
#[should_panic(expected = "gave up waiting until the command ends")]
fn a_command_that_hangs_fails() {
    shell().spawn(["-c", "exec sleep 600"]).wait(Duration::from_millis(100));
}

#[test]
fn the_one_json_value_on_stdout_is_returned() {
    let json = shell().json(["-c", r#"echo '{"events": 3}'"#]);
    assert_eq!(json["events"], 3);
    let lines = shell().run(["-c", r"printf '1\n2\n'"]).ndjson();
    assert_eq!(lines, [Value::from(1), Value::from(2)]);
}

const URL: &str = "amqp://u:s3cr%2Bt%2Fp%40ss@h";

/// Runs a script that is given a secret.
fn given_a_secret(script: &str) -> Dacapo {
    let mut shell = shell();
    shell.set("DACAPO_AMQP", URL);
    shell.run(["-c", script]);
    shell
}

#[test]
#[should_panic(expected = "the secret of `DACAPO_AMQP` is told at byte 4, as text of stdout of")]
fn a_command_that_tells_a_secret_fails_the_test() {
    given_a_secret("echo url $DACAPO_AMQP | sed s,amqp://u:,,");
}

#[test]
#[should_panic(expected = "is told at byte 9, as base64 of stderr of")]
fn a_command_that_tells_a_secret_in_base64_fails_the_test() {
    given_a_secret("printf 'Basic %s' dTpzM2NyK3QvcEBzcw== >&2");
}

#[test]
#[should_panic(expected = "as text of stdout of")]
fn a_command_that_told_a_secret_and_was_left_running_fails_the_test() {
    let mut shell = shell();
    shell.set("DACAPO_AMQP_PASSWORD", "tulips");
    shell.spawn(["-c", "echo tulips; exec sleep 600"]).wait_for_line("tulips", DEADLINE);
}

#[test]
#[should_panic(expected = "files tell secrets: [(\"")]
fn a_file_that_tells_a_secret_fails_the_test() {
    given_a_secret("mkdir state; echo 's3cr+t/p@ss' >state/plan.json");
}

#[test]
fn what_a_test_put_there_itself_is_not_told() {
    let shell = given_a_secret("echo $PWD");
    shell.file("dacapo.toml", format!("amqp = '{URL}'"));
}
