//! What a backfill says on the way: where it is, how far behind, and what does not get better.

use std::time::Duration;

use dacapo_engine::backfill::held::{Holding, LITTLE_HELD, Until};
use dacapo_engine::backfill::{Counts, Facts, Happened, Round, Stage, Standing};
use dacapo_engine::plan::Plan;
use dacapo_event::{Clock, Timestamp};
use dacapo_republish::{Phase as Doing, Progress, Totals};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::format;
use crate::output::Output;
use crate::progress::Steps;

/// How often progress is shown while nothing moves.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// Over how long what is held must have grown before that is said.
const GROWING: Duration = Duration::from_secs(30);

/// A shorter round says nothing of whether history grows: an archiver rolls once a minute.
const GROWING_ROUND: Duration = Duration::from_secs(60);

/// What Prometheus is told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub stage: Stage,
    /// How old what the queue lacks may be, if that is known.
    pub behind: Option<Duration>,
    /// Messages in the holding queue.
    pub held: u64,
    pub counts: Counts,
    /// What the round at hand has done beside these counts.
    pub round: Totals,
    /// Whether publishing is held up, in words.
    pub trouble: Option<String>,
}

impl Told {
    pub fn of(standing: &Standing) -> Self {
        Told { stage: standing.stage, counts: standing.counts, ..Told::default() }
    }
}

/// Talks, and tells Prometheus.
pub struct Telling<'a> {
    output: &'a Output,
    told: &'a watch::Sender<Told>,
    clock: Clock,
    /// The last round of this run: its events and when it began.
    last: Option<(u64, Instant)>,
    /// Whether it was said that history grows as fast as it is played.
    grows: bool,
    /// How often the archive was found short, and when that was last said.
    short: Option<(u32, Instant)>,
}

impl<'a> Telling<'a> {
    pub fn new(output: &'a Output, told: &'a watch::Sender<Told>, clock: Clock) -> Self {
        Telling { output, told, clock, last: None, grows: false, short: None }
    }

    /// Notes how far behind it is.
    pub fn behind(&self, standing: &Standing, facts: &Facts) {
        if standing.needs_ends() {
            let behind = standing.behind(facts);
            self.told.send_modify(|told| told.behind = behind);
        }
    }

    /// Notes that it waits, and falls behind.
    pub fn waits(&self, standing: &Standing) {
        let since = standing.played_to.or(standing.asked_at);
        let behind = since.map(|at| (self.clock)().since(at));
        self.told.send_modify(|told| told.behind = behind.or(told.behind));
    }

    /// Notes how much is held while history is still played.
    pub fn holds(&self, depth: u64) {
        self.told.send_modify(|told| told.held = depth);
    }

    /// Says what an operator wants to know of.
    pub fn happened(&self, happened: &Happened, standing: &Standing) {
        let line = match happened {
            Happened::Prepared => {
                "history: rounds follow until what is left is young enough".to_owned()
            }
            Happened::RoundPlanned(round) if !round.is_last => return,
            Happened::RoundPlanned(_) => {
                "catching up: what history has gained until the holding queue was bound".to_owned()
            }
            Happened::RoundPlayed(played) if played.events > 0 => {
                let events = format::counted(played.events, "event");
                format!("round {} played: {events}", standing.rounds)
            }
            Happened::Near(..) => {
                "history is almost played; the archivers are asked how far they are".to_owned()
            }
            Happened::Stale => {
                "the archivers took too long to answer; history is followed again first".to_owned()
            }
            Happened::Bound => "live events are held from now on".to_owned(),
            Happened::LittleHeld => {
                "little is held; the queue is bound to the live stream".to_owned()
            }
            Happened::Switched => {
                "live: the queue gets live events; the last held ones follow".to_owned()
            }
            Happened::Removed => "done: the holding queue is gone".to_owned(),
            _ => return,
        };
        self.output.talk(&line);
    }

    /// Notes how the backfill stands.
    pub fn stands(&self, standing: &Standing) {
        let is_live = matches!(standing.stage, Stage::Removing | Stage::Completed);
        self.told.send_modify(|told| {
            told.stage = standing.stage;
            told.counts = standing.counts;
            told.round = Totals::default();
            told.trouble = None;
            if is_live {
                told.behind = Some(Duration::ZERO);
                told.held = 0;
            }
        });
    }

    /// Notes that a round begins; says so if history grows as fast as it is played.
    pub fn round_begins(&mut self, round: &Round, plan: &Plan) {
        let now = Instant::now();
        let Some((events, began)) = self.last.replace((plan.events, now)) else { return };
        if round.is_last {
            return;
        }
        let growth = growth(round.number.saturating_sub(1), events, now - began, plan.events);
        let grew = std::mem::replace(&mut self.grows, growth.is_some());
        if let (Some(words), false) = (growth, grew) {
            self.output.talk(&words);
        }
    }

    /// Says that the archive is not as long as its archivers say, once in a while.
    pub fn archive_is_short(&mut self) {
        let (waits, last) = self.short.get_or_insert((0, Instant::now()));
        if *waits > 0 && last.elapsed() < GROWING {
            return;
        }
        (*waits, *last) = (*waits + 1, Instant::now());
        if *waits > 1 {
            self.output.talk(
                "waiting: the archive does not have yet what its archivers say is durable; run `dacapo \
                 archive verify` if that does not end",
            );
        }
    }

    /// Shows a round for ever.
    pub async fn show_round(
        &self,
        mut watched: watch::Receiver<Progress>,
        round: &Round,
        plan: &Plan,
        played_to: Option<Timestamp>,
    ) {
        let mut steps = Steps::new(self.output, "history");
        loop {
            let Progress { totals, phase } = watched.borrow_and_update().clone();
            let trouble = trouble(&phase);
            let behind = played_to.map(|at| (self.clock)().since(at));
            let mut remark = format!("round {}", round.number);
            if let Some(behind) = behind {
                remark += &format!(", {} behind", format::duration(behind));
            }
            if self.grows {
                remark += ", grows as fast as it is played";
            }
            if round.is_last {
                remark += &format!(", {} held", format::number(self.told.borrow().held));
            }
            if let Some(trouble) = &trouble {
                remark += &format!(", {trouble}");
            }
            steps.show(totals.confirmed, plan.events, &remark);
            self.told.send_modify(|told| {
                told.round = totals;
                told.trouble = trouble;
                told.behind = behind.or(told.behind);
            });
            changed(&mut watched).await;
        }
    }

    /// Shows what is held for ever.
    pub fn show_held(
        &self,
        watched: watch::Receiver<Progress>,
        held: watch::Receiver<Holding>,
        until: Until,
        standing: &Standing,
    ) -> impl Future<Output = ()> + use<'a> {
        let (output, told, clock) = (self.output, self.told, self.clock);
        let before = standing.counts;
        async move { show_held(output, told, clock, watched, held, until, before).await }
    }
}

async fn show_held(
    output: &Output,
    told: &watch::Sender<Told>,
    clock: Clock,
    mut watched: watch::Receiver<Progress>,
    held: watch::Receiver<Holding>,
    until: Until,
    before: Counts,
) {
    let mut steps = Steps::new(output, "held events");
    let (mut compared, mut grown) = ((Instant::now(), 0_u64), false);
    loop {
        let Progress { phase, totals } = watched.borrow_and_update().clone();
        let Holding { depth, settled, reached } = held.borrow().clone();
        if compared.0.elapsed() >= GROWING {
            let grows = until == Until::LittleHeld && depth > compared.1.max(LITTLE_HELD);
            if grows && !grown {
                output.talk(&format!(
                    "more is published than is passed on: {} are held, {} more than {} ago; let the queue be \
                     consumed faster, or go on with a higher --rate or --max-queue-depth (`dacapo \
                     backfill resume`) if they hold it up",
                    format::number(depth),
                    format::number(depth - compared.1),
                    format::duration(GROWING),
                ));
            }
            (compared, grown) = ((Instant::now(), depth), grows);
        }
        let trouble = trouble(&phase);
        let behind = behind(depth, reached, clock);
        let mut remark = format!("{} held", format::number(depth));
        if let Some(behind) = behind {
            remark += &format!(", {} behind", format::duration(behind));
        }
        if grown {
            remark += " and growing";
        }
        if let Some(trouble) = &trouble {
            remark += &format!(", {trouble}");
        }
        steps.show(settled, settled + depth, &remark);
        told.send_modify(|told| {
            told.held = depth;
            told.trouble = trouble;
            told.behind = behind.or(told.behind);
            told.counts.forwarded = before.forwarded + totals.confirmed;
        });
        changed(&mut watched).await;
    }
}

/// Returns words if what came while a round was played is no less than the round.
fn growth(round: u64, events: u64, took: Duration, came: u64) -> Option<String> {
    let seconds = took.as_secs_f64();
    // A round of what one look at the archive brings says nothing.
    if took < GROWING_ROUND || came < events {
        return None;
    }
    let rate = |events: u64| format::number((events as f64 / seconds) as u64);
    Some(format!(
        "history grows as fast as it is played: round {round} had {} and took {} ({}/s), and {} came \
         meanwhile ({}/s); let the queue be consumed faster, or go on with a higher --rate or \
         --max-queue-depth (`dacapo backfill resume`) if they hold it up",
        format::counted(events, "event"),
        format::seconds(seconds),
        rate(events),
        format::counted(came, "event"),
        rate(came),
    ))
}

/// How old what is held may be: as old as the last that was passed on, by its own word.
fn behind(depth: u64, reached: Option<Timestamp>, clock: Clock) -> Option<Duration> {
    match depth {
        0 => Some(Duration::ZERO),
        _ => reached.map(|reached| clock().since(reached)),
    }
}

/// What waits does not change, and is to be told all the same.
async fn changed(watched: &mut watch::Receiver<Progress>) {
    if let Ok(Err(_)) = timeout(SHOW_INTERVAL, watched.changed()).await {
        std::future::pending::<()>().await;
    }
}

/// Returns what holds publishing up.
fn trouble(phase: &Doing) -> Option<String> {
    match phase {
        Doing::Publishing | Doing::Finishing => None,
        Doing::Paused => Some("paused by its operator".to_owned()),
        Doing::Blocked => {
            Some("the broker has blocked publishers (memory or disk alarm)".to_owned())
        }
        Doing::TooDeep { depth } => {
            Some(format!("waiting, {} in the queue", format::number(*depth)))
        }
        Doing::Retrying { reason, delay } => {
            Some(format!("trying again in {}: {reason}", format::duration(*delay)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_grows_as_fast_as_it_is_played_is_told_with_both_rates() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let told = growth(3, 12_000, minutes(2), 24_000).unwrap().replace('\u{202f}', " ");
        assert!(told.contains("round 3 had 12 000 events and took"), "{told}");
        assert!(told.contains("(100/s)") && told.contains("(200/s)"), "{told}");
        assert_eq!(growth(3, 12_000, minutes(2), 11_999), None);
        assert_eq!(growth(3, 12_000, Duration::from_secs(59), 24_000), None);
    }
}
