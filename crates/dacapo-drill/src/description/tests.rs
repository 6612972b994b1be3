//! What descriptions are read as, and how wrong ones are refused.

use super::*;
use crate::description::wire::parse;

const SMALL: &str = "name = 'n'\n[target]\nqueue = 'q'\n";

#[test]
fn the_least_is_a_name_and_a_queue_and_the_rest_has_defaults() {
    let drill = Description::parse(SMALL).unwrap();
    assert_eq!((drill.name.as_str(), drill.queue.as_str()), ("n", "q"));
    assert_eq!((drill.environment.vhost, drill.environment.shared), (Vhost::New, Shared::Refuse));
    assert_eq!((drill.service.stop, drill.service.command), (Stop::Terminate, None));
    assert_eq!((drill.targets, drill.checks.len()), (Targets::default(), 0));
}

#[test]
fn sections_of_flags_become_flags() {
    let more = "via_default_exchange = true\nkeep-priority = false\n[selection]\nfrom = 2026-11-01\n\
                type = ['a', 'b']\nrouting_key = 'x.#'\n[pace]\nrate = 5\n";
    let drill = Description::parse(&format!("{SMALL}{more}")).unwrap();
    let words = |flags: &[Flag]| flags.iter().map(|flag| flag.0.clone()).collect::<Vec<_>>();
    assert_eq!(words(&drill.target), ["--via-default-exchange"]);
    let selection = ["--from=2026-11-01", "--routing-key=x.#", "--type=a", "--type=b"];
    assert_eq!(words(&drill.selection), selection);
    assert_eq!(words(&drill.pace), ["--rate=5"]);
}

#[test]
fn questions_and_answers_are_typed() {
    let more = "[[check]]\nname = 'a'\ncommand = ['true']\n\
                [[check]]\nname = 'b'\nsql = 'S'\ndatabase = 'sqlite:f'\nexpect_number = 5\nwithin = '2m'\n\
                [[check]]\nname = 'c'\nhttp = 'http://h:1/x?token=sesame'\n\
                production = { http = 'http://p/x' }\n\
                [counts]\ncommand = ['c']\n";
    let drill = Description::parse(&format!("{SMALL}{more}")).unwrap();
    let [a, b, c] = drill.checks.as_slice() else { panic!("{:?}", drill.checks) };
    assert_eq!((&a.expect, a.within), (&Expect::Success, Duration::from_secs(30)));
    assert_eq!((&b.expect, b.within), (&Expect::Integer(5), Duration::from_secs(120)));
    assert!(matches!(c.expect, Expect::Production(_)));
    assert_eq!(c.query.to_string(), "GET http://h:1/x");
    assert!(drill.counts.is_some());
}

/// What is wrong is told with its line and a word, and no value is quoted.
#[track_caller]
fn check_refused(more: &str, line: usize, word: &str) {
    let text = format!("{SMALL}{more}");
    let error = parse(&text).unwrap_err();
    let DrillError::Description { line: told, problem } = &error else { panic!("{error}") };
    assert!(problem.contains(word), "{problem}");
    assert_eq!(*told, line, "{problem}");
    assert!(!error.to_string().contains("sesame"), "{error}");
}

#[test]
fn names_that_the_broker_would_make_up_times_without_end_and_passwords_in_arguments_are_refused() {
    check_refused("[[queue]]\nname = ''\n", 5, "1 to 255 bytes");
    check_refused("[service]\ndrain_within = '9000000000h'\n", 5, "a year");
    check_refused("[targets]\nrto = '366d'\n", 5, "a year");
    let secret = "'x', '--url=${DACAPO_DRILL_AMQP}'";
    check_refused(&format!("[service]\ncommand = [{secret}]\n"), 5, "environment");
    check_refused(&format!("[service]\nready = [{secret}]\n"), 5, "environment");
    check_refused(&format!("[counts]\ncommand = [{secret}]\n"), 4, "environment");
    let check = "[[check]]\nname = 'a'\ncommand = ['x']\n";
    check_refused(&format!("{check}production = {{ command = [{secret}] }}\n"), 4, "environment");
    check_refused(&format!("{check}expect_number = 'sesame'\n"), 7, "is a number");
    check_refused(&format!("{check}expect_number = nan\n"), 7, "is a number");
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    check_refused("x = 1\n", 4, "`target` has no `x`");
    check_refused("[nothing]\n", 4, "nothing");
    check_refused("[environment]\nvhots = 'sesame'\n", 5, "vhots");
    check_refused("[environment]\namqp = 5\n", 5, "expected a string");
    check_refused("[environment]\nmanagement = 'http://u:sesame@h'\n", 5, "which is missing");
    check_refused("[service]\nenv = 'sesame'\n", 5, "expected a map");
    check_refused("[service]\ncommand = 'sesame'\n", 5, "expected a sequence");
    check_refused("[service]\ncommand = []\n", 5, "a program");
    check_refused("[service]\nstop = 'SIGHUP'\n", 5, "SIGTERM");
    check_refused("[targets]\nrto = 'sesame'\n", 5, "duration");
    check_refused("[targets]\nrto = '0s'\n", 5, "duration");
    check_refused("[targets]\nrpo = '-5m'\n", 5, "duration");
    check_refused("[selection]\nfrom = { a = 'sesame' }\n", 5, "list of them");
    check_refused("[selection]\nrejects = 'f'\n", 5, "no `rejects`");
    check_refused("[[check]]\nname = 'a'\n", 4, "one of `command`");
    check_refused("[[check]]\nname = ''\ncommand = ['x']\n", 4, "1 to 100");
    check_refused("[[check]]\nname = 'a'\ncommand = []\n", 4, "needs a program");
    check_refused("[[check]]\nname = 'a'\ncommand = ['x']\nsql = 's'\n", 4, "one of `command`");
    check_refused("[[check]]\nname='a'\nsql='s'\ndatabase='postgres://u:sesame@h'\n", 4, "psql");
    check_refused("[[check]]\nname='a'\ncommand=['x']\nexpect='1'\nexpect_number=1\n", 4, "one of");
    check_refused("[[check]]\nname='a'\nhttp='https://h'\n", 4, "curl");
    check_refused("[[check]]\nname='a'\nhttp='http://u:sesame@h/'\n", 4, "login");
    check_refused("[rpo]\narchiver_metrics = 'h:9464'\n", 5, "http://");
    check_refused("[environment]\ndefinitions_vhost = 'v'\n", 5, "needs `definitions`");
    check_refused("[[queue]]\nname = 'q'\narguments = { x = [[[[[[[[[1]]]]]]]]] }\n", 5, "nests");
    check_refused("[environment\n", 4, "");
    let checks = "[[check]]\nname = 'a'\ncommand = ['x']\n".repeat(CHECKS_MAX + 1);
    check_refused(&checks, 4 + 3 * CHECKS_MAX, "more than 100");
    check_refused(&"#".repeat(DESCRIPTION_BYTES_MAX as usize), 1, "more than");
}

#[test]
fn a_name_and_a_queue_must_be_there() {
    for (text, word) in [
        ("", "name"),
        ("name = ' '\n[target]\nqueue='q'\n", "1 to 100"),
        ("name = 'n'\n", "target"),
        ("name = 'n'\n[target]\nqueue = ''\n", "needs `queue`"),
        ("name = 'n'\n[target]\nqueue = 5\n", "needs `queue`"),
    ] {
        let error = Description::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn no_form_of_a_description_shows_its_secrets() {
    let more = "[environment]\namqp = 'amqp://u:sesame@h'\nmanagement = 'http://u:sesame@h'\n\
                [service]\nenv = { PASSWORD = 'sesame' }\n";
    let drill = Description::parse(&format!("{SMALL}{more}")).unwrap();
    assert!(!format!("{drill:?}").contains("sesame"));
}
