//! The fault campaign: known events are published, archived and replayed while a seeded schedule of
//! faults strikes, and after each the ledger is checked.
//!
//! A strike counts only if a put, a window or a checkpoint was in flight at that moment: the
//! proxies between dacapo and the servers hold it there, and say so.
//! The workload, the faults, the ledger and its readers are here; none of it is in the product.

pub mod kind;
pub mod schedule;

pub mod ledger;

pub mod clock;
pub mod disk;
pub mod frames;
pub mod objects;
pub mod wire;

pub mod world;

mod archiving;
mod replaying;

pub mod report;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};

use self::kind::{Kind, Side};
use self::report::{Report, Stopwatch, Verdict};
use self::schedule::Fault;
use self::world::{Place, Servers, World};
use crate::rabbit::Rabbit;

/// Worlds that are struck at the same time, each on a broker of its lane's own. Most of a fault is
/// waiting, but two processors are busy with these: with eight, brokers start so slowly that 60 faults
/// take longer than with six.
const LANES: usize = 6;

/// How often a fault is struck again that found nothing in flight.
const STRIKES_MAX: usize = 3;

/// When a campaign ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// With its last fault.
    TheEnd,
    /// With the first fault that was not stood.
    AFailure,
}

/// Runs a campaign, and reports each fault as it is decided.
///
/// # Errors
/// The broker of a lane does not start.
pub fn run(
    servers: &Servers,
    worlds: &[schedule::World],
    until: Until,
    report: &Mutex<Report>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let strike = &|lane: usize| {
        let mut rabbit = Rabbit::start(&servers.folder.join(format!("rabbit-{lane}")))?;
        while let Some(plan) = worlds.get(next.fetch_add(1, Ordering::SeqCst)) {
            live(servers, &mut rabbit, plan, until, report);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let start = |lane| scope.spawn(move || strike(lane));
        let lanes: Vec<_> = (1..=LANES.min(worlds.len())).map(start).collect();
        let mut ended = lanes.into_iter().map(|lane| lane.join());
        ended.try_for_each(|lane| lane.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Strikes one world with all its faults. After one that it did not stand it is left, and the rest
/// strikes a new one.
fn live(
    servers: &Servers,
    rabbit: &mut Rabbit,
    plan: &schedule::World,
    until: Until,
    report: &Mutex<Report>,
) {
    let mut s3 = None;
    for fault in &plan.faults {
        if until == Until::AFailure && lock(report).has_failed() {
            return;
        }
        let place = place_of(fault.kind);
        // A disk that was full is not what the next fault needs.
        let mut fresh = None;
        let world = if place == Place::S3 { &mut s3 } else { &mut fresh };
        let decided = guarded(|| decide(servers, rabbit, world, fault));
        let mut verdict = decided.unwrap_or_else(Verdict::broken);
        if let Some(last) = fresh {
            end(last, &mut verdict);
        }
        if !verdict.findings.is_empty() {
            s3 = None;
        }
        lock(report).tell(plan.number, fault, verdict);
    }
    if let Some(last) = s3 {
        let mut verdict = Verdict::default();
        end(last, &mut verdict);
        lock(report).tell_end(plan.number, verdict);
    }
}

fn place_of(kind: Kind) -> Place {
    match kind {
        Kind::StoreFull => Place::SmallDisk,
        _ => Place::S3,
    }
}

/// Strikes until something was in flight, and checks the ledger.
fn decide<'s>(
    servers: &'s Servers,
    rabbit: &mut Rabbit,
    world: &mut Option<World<'s>>,
    fault: &Fault,
) -> Result<Verdict> {
    let watch = Stopwatch::start();
    let world = match world {
        Some(world) => world,
        none => none.insert(World::new(servers, rabbit, place_of(fault.kind))?),
    };
    let mut fault = *fault;
    for _ in 0..STRIKES_MAX {
        let (evidence, mut findings) = match fault.side {
            Side::Archiver => (Some(archiving::strike(world, &fault, rabbit)?), Vec::new()),
            Side::Replay => match replaying::strike(world, &fault, rabbit)? {
                Some(struck) => (Some(struck.evidence), struck.findings),
                None => (None, Vec::new()),
            },
        };
        let rows = world.settled()?;
        findings.extend(world.check(&rows)?);
        if evidence.is_some() || !findings.is_empty() {
            return Ok(Verdict { evidence, findings, time: watch.elapsed() });
        }
        fault.salt = fault.salt.rotate_left(1) ^ 1;
    }
    Err(anyhow!("nothing was in flight in {STRIKES_MAX} strikes"))
}

/// Ends a world, and adds what the last look at it finds.
fn end(world: World<'_>, verdict: &mut Verdict) {
    let found = guarded(|| world.end()).unwrap_or_else(|error| vec![format!("{error:#}")]);
    verdict.findings.extend(found);
}

/// Turns the panics of the harness's own checks into errors: one failed fault must not end the rest.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(anyhow!("panicked: {}", text.unwrap_or_default()))
    })
}

fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}
