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

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};

use self::kind::{Kind, Side};
use self::report::{Report, Stopwatch, Verdict};
use self::schedule::Fault;
use self::world::{Place, Servers, World};
use crate::rabbit::Rabbit;

/// Worlds that are struck at the same time: most of a fault is waiting, and two processors are
/// busy with these.
const LANES: usize = 4;

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
pub fn run(servers: &Servers, worlds: &[schedule::World], until: Until, report: &Mutex<Report>) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..LANES.min(worlds.len()) {
            scope.spawn(|| {
                while let Some(plan) = worlds.get(next.fetch_add(1, Ordering::SeqCst)) {
                    live(servers, plan, until, report);
                }
            });
        }
    });
}

/// Strikes one world with all its faults. After one that it did not stand it is left, and the rest
/// strikes a new one.
fn live(servers: &Servers, plan: &schedule::World, until: Until, report: &Mutex<Report>) {
    let mut s3 = None;
    for fault in &plan.faults {
        if until == Until::AFailure && lock(report).has_failed() {
            return;
        }
        let place = place_of(fault.kind);
        // A disk that was full is not what the next fault needs.
        let mut fresh = None;
        let world = if place == Place::S3 { &mut s3 } else { &mut fresh };
        let decided = guarded(|| decide(servers, world, fault));
        let mut verdict = decided.unwrap_or_else(Verdict::broken);
        if let Some(last) = fresh
            && let Err(error) = guarded(|| end(servers, last, &mut verdict))
        {
            verdict.findings.push(format!("{error:#}"));
        }
        if !verdict.findings.is_empty() {
            s3 = None;
        }
        lock(report).tell(plan.number, fault, verdict);
    }
    if let Some(last) = s3 {
        let mut verdict = Verdict::default();
        if let Err(error) = guarded(|| end(servers, last, &mut verdict)) {
            verdict.findings.push(format!("{error:#}"));
        }
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
    world: &mut Option<World<'s>>,
    fault: &Fault,
) -> Result<Verdict> {
    // What is struck alone waits until nobody else needs the broker.
    let (mut alone, shared) = match fault.kind.is_broker_wide() {
        true => (Some(servers.rabbit.write().unwrap_or_else(PoisonError::into_inner)), None),
        false => (None, Some(servers.rabbit.read().unwrap_or_else(PoisonError::into_inner))),
    };
    let watch = Stopwatch::start();
    let rabbit: Option<&Rabbit> = shared.as_deref().or(alone.as_deref());
    let world = match world {
        Some(world) => world,
        none => {
            let rabbit = rabbit.expect("it is locked one way or the other");
            none.insert(World::new(servers, rabbit, place_of(fault.kind))?)
        }
    };
    let mut fault = *fault;
    for _ in 0..STRIKES_MAX {
        let rabbit = alone.as_deref_mut();
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

fn end(servers: &Servers, world: World<'_>, verdict: &mut Verdict) -> Result<()> {
    let _rabbit = servers.rabbit.read().unwrap_or_else(PoisonError::into_inner);
    verdict.findings.extend(world.end()?);
    Ok(())
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
