//! The page: what is kept of it, and what no text of a drill can do to it.

use proptest::prelude::*;

use super::*;
use crate::report::tests::facts;
use crate::report::{Cause, Failure, Report};

/// The page as it is kept; `DACAPO_WRITE_GENERATED=1` writes it anew.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page.html");

fn shown(facts: Facts) -> String {
    let report = Report::new(facts);
    page(&report, &Digest::of(&report.to_json()))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a developer's switch of this test")]
fn the_page_is_the_one_that_is_kept() {
    let page = shown(facts());
    if std::env::var_os("DACAPO_WRITE_GENERATED").is_some() {
        std::fs::write(KEPT, &page).unwrap();
    }
    assert!(page == std::fs::read_to_string(KEPT).unwrap(), "look at the page and keep it anew");
}

/// Returns the names of all elements, in order.
fn elements(page: &str) -> Vec<&str> {
    page.split('<').skip(1).filter_map(|rest| rest.split([' ', '>']).next()).collect()
}

proptest! {
    #[test]
    fn no_text_becomes_an_element(text in ".*<script>.*|.*\"><img src=x onerror=.*|.*&.*'.*") {
        let mut hostile = facts();
        hostile.name = text.clone();
        hostile.checks[0].found = text.clone();
        hostile.environment.broker = text.clone();
        hostile.reconciliation.as_mut().unwrap().rows[0].kind = text.clone();
        let page = shown(hostile);
        let plain = shown(facts());
        prop_assert_eq!(elements(&page), elements(&plain));
    }
}

#[test]
fn a_drill_that_measured_nothing_has_a_page() {
    let mut bare = facts();
    (bare.archive, bare.plan, bare.replay, bare.reconciliation) = (None, None, None, None);
    (bare.rto, bare.rpo) = (None, None);
    bare.parts.clear();
    bare.checks.clear();
    bare.failure = Some(Failure {
        during: "environment".to_owned(),
        cause: Cause::Trouble,
        problem: "no <host>".to_owned(),
    });
    bare.environment.left_behind = vec!["virtual host `x`".to_owned()];
    let page = shown(bare);
    for words in [
        "targets missed",
        "no &lt;host&gt;",
        "not measured",
        "virtual host `x`",
        "not known to be deleted",
    ] {
        assert!(page.contains(words), "{words}");
    }
}
