//! The verdict: each thing that is missed or not measured, one by one.

use super::*;
use crate::report::tests::facts;
use crate::report::{Cause, Failure, Report};

/// Changes the facts of a drill that met everything, and checks the one requirement that this costs.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), name: &str, outcome: Outcome) {
    let mut facts = facts();
    change(&mut facts);
    let report = Report::new(facts);
    let unmet: Vec<_> = report
        .requirements
        .iter()
        .filter(|it| it.outcome != Outcome::Met)
        .map(|it| (it.name.as_str(), it.outcome))
        .collect();
    assert_eq!(unmet, [(name, outcome)]);
    assert_eq!(report.verdict, Verdict::Missed);
}

#[test]
fn a_drill_that_met_everything_is_met() {
    let report = Report::new(facts());
    assert_eq!(report.verdict, Verdict::Met, "{:?}", report.requirements);
    assert_eq!(report.requirements.len(), 10);
}

#[test]
fn each_thing_that_is_missed_costs_the_verdict() {
    use Outcome::Missed;
    let replay =
        |facts: &mut Facts, change: fn(&mut Replay)| change(facts.replay.as_mut().unwrap());
    let (rto, rpo) = ("recovery time (RTO)", "recovery point (RPO)");
    check(|it| it.rto = Some(Duration::from_millis(90_001)), rto, Missed);
    check(|it| it.rpo.as_mut().unwrap().time = Duration::from_secs(301), rpo, Missed);
    let gaps = |it: &mut Facts| it.archive.as_mut().unwrap().gaps.push("1 to 3".to_owned());
    check(gaps, "archive without gaps", Missed);
    let confirmed = "every selected event confirmed";
    check(|it| replay(it, |replay| replay.rejected = 1), confirmed, Missed);
    check(|it| replay(it, |replay| replay.remaining = 1), confirmed, Missed);
    check(|it| replay(it, |replay| replay.confirmed -= 1), confirmed, Missed);
    check(|it| replay(it, |replay| replay.state = "interrupted".to_owned()), confirmed, Missed);
    let nothing = |replay: &mut Replay| (replay.selected, replay.confirmed) = (0, 0);
    check(|it| replay(it, nothing), confirmed, Missed);
    let drained = "service drained its queue";
    check(|it| it.service.drained = Drained::No("late".to_owned()), drained, Missed);
    check(|it| it.service.ended = Some("exit status: 1".to_owned()), drained, Missed);
    let target = |it: &mut Facts| it.reconciliation.as_mut().unwrap().rows[0].target = None;
    check(target, "target has what the archive gave", Missed);
    let service = |it: &mut Facts| it.reconciliation.as_mut().unwrap().rows[0].service = Some(1);
    check(service, "service has what the archive gave", Missed);
    check(|it| it.checks[0].green = false, "check: every order is there", Missed);
    let failure =
        Failure { during: "plan".to_owned(), cause: Cause::Trouble, problem: "no".to_owned() };
    check(|it| it.failure = Some(failure), "drill carried out", Missed);
    let left = |it: &mut Facts| it.environment.left_behind.push("virtual host `v`".to_owned());
    check(left, "environment taken down", Missed);
}

#[test]
fn what_was_not_measured_is_not_met() {
    use Outcome::NotMeasured;
    check(|it| it.rto = None, "recovery time (RTO)", NotMeasured);
    check(|it| it.rpo = None, "recovery point (RPO)", NotMeasured);
    check(|it| it.archive = None, "archive without gaps", NotMeasured);
    check(|it| it.service.drained = Drained::NotReached, "service drained its queue", NotMeasured);
    let unknown = |it: &mut Facts| it.service.drained = Drained::NothingWaits;
    check(unknown, "service drained its queue", NotMeasured);
    check(|it| it.reconciliation = None, "target has what the archive gave", NotMeasured);
    let unasked = |it: &mut Facts| (it.checks[0].tries, it.checks[0].green) = (0, true);
    check(unasked, "check: every order is there", NotMeasured);
    let failed = |it: &mut Facts| it.reconciliation.as_mut().unwrap().service = ServiceSeen::Failed;
    check(failed, "service has what the archive gave", NotMeasured);
}

#[test]
fn without_a_witness_the_receipt_is_held_against_what_the_archive_gave() {
    let by_receipt = |it: &mut Facts| {
        let reconciliation = it.reconciliation.as_mut().unwrap();
        reconciliation.target = TargetSeen::Receipt;
        reconciliation.rows.iter_mut().for_each(|row| row.target = None);
    };
    let mut facts = facts();
    by_receipt(&mut facts);
    assert_eq!(Report::new(facts).verdict, Verdict::Met);
    let less = |it: &mut Facts| {
        by_receipt(it);
        it.reconciliation.as_mut().unwrap().repeats[0] = 1;
    };
    check(less, "target has what the archive gave", Outcome::Missed);
}

#[test]
fn what_nobody_asked_for_is_no_requirement() {
    let mut facts = facts();
    (facts.rto_target, facts.rpo_target, facts.rto, facts.rpo) = (None, None, None, None);
    facts.reconciliation.as_mut().unwrap().service = ServiceSeen::NotAsked;
    let report = Report::new(facts);
    assert_eq!((report.verdict, report.requirements.len()), (Verdict::Met, 7));
}
