//! Faults that strike the archiver: each while a put of a segment, a chain entry or a head is in
//! flight, held at the proxy at that very moment or failed by it.

use anyhow::{Context, Result, bail};

use super::clock::FakeClock;
use super::kind::Kind;
use super::objects::{Aim, Harm, Moment};
use super::schedule::{Dice, Fault};
use super::wire::Way;
use super::world::{BAD_TIME, CLOCK_BACK, DEADLINE, SLOW_FRAME, World, succeeded, take_away};
use crate::rabbit::Rabbit;

/// Events published before the fault: more than a prefetch, so that segments follow each other.
const BATCH: usize = 120;

/// Events published while it lasts.
const MEANWHILE: usize = 20;

/// The objects whose puts make a segment durable, in their order.
const PUTS: [Aim; 4] = [
    // Twice, because only what was never put at all is lost by acking it.
    Aim { method: "PUT", path: "/segments/" },
    Aim { method: "PUT", path: "/segments/" },
    Aim { method: "PUT", path: "/chain/" },
    Aim { method: "PUT", path: "/heads/" },
];

/// Strikes, lets the archiver recover, and returns what was in flight at the moment.
///
/// # Errors
/// It does not recover, or nothing was in flight.
pub(super) fn strike(world: &mut World<'_>, fault: &Fault, rabbit: &mut Rabbit) -> Result<String> {
    let mut dice = Dice::new(fault.salt);
    let aim = dice.choose(&PUTS);
    let moment = dice.choose(&[Moment::Before, Moment::After]);
    let interruptions = fault.kind.interruptions().context("an archiver is not refused")?;
    world.note_interruptions(interruptions);
    match fault.kind {
        Kind::Status500 => fail(world, aim, Harm::Answer(500, "InternalError", moment), &mut dice),
        Kind::SlowDown => fail(world, aim, Harm::Answer(503, "SlowDown", moment), &mut dice),
        Kind::Reset => fail(world, aim, Harm::Reset(moment), &mut dice),
        Kind::Truncated => fail(world, aim, Harm::Truncate, &mut dice),
        Kind::Corrupted => fail(world, aim, Harm::Corrupt, &mut dice),
        Kind::Unanswered => unanswered(world, aim, moment),
        Kind::StoreFull => store_full(world),
        Kind::ClockBack => clock_back(world, aim, moment),
        kind => held(world, kind, (aim, moment), rabbit, &mut dice),
    }
}

/// Fails some puts by themselves; the archiver must try again until one succeeds.
fn fail(world: &mut World<'_>, aim: Aim, harm: Harm, dice: &mut Dice) -> Result<String> {
    world.start_archiver(&[])?;
    // The SDK tries three times by itself; more is left to the archiver.
    let times = u32::try_from(1 + dice.below(5)).expect("a small number");
    world.objects.strike(aim, harm, times, None);
    world.publish(BATCH)?;
    let struck = world.objects.await_struck(DEADLINE)?;
    world.publish(MEANWHILE)?;
    world.settled()?;
    world.objects.heal();
    Ok(format!("{struck}, {} times", world.objects.struck().len()))
}

/// Lets one put run into the client's own deadline.
fn unanswered(world: &mut World<'_>, aim: Aim, moment: Moment) -> Result<String> {
    world.start_archiver(&[])?;
    world.objects.strike(aim, Harm::Hold(moment), 1, None);
    world.publish(BATCH)?;
    let struck = world.objects.await_struck(DEADLINE)?;
    world.publish(MEANWHILE)?;
    world.settled()?;
    world.objects.heal();
    Ok(struck)
}

/// Holds a put, strikes something else, and lets the put go.
fn held(
    world: &mut World<'_>,
    kind: Kind,
    (aim, moment): (Aim, Moment),
    rabbit: &mut Rabbit,
    dice: &mut Dice,
) -> Result<String> {
    world.start_archiver(&[])?;
    let moment = match kind {
        // Only what has been put can be missing in a listing.
        Kind::StaleListing => {
            world.objects.hide_new();
            Moment::After
        }
        _ => moment,
    };
    world.objects.strike(aim, Harm::Hold(moment), 1, None);
    world.publish(BATCH)?;
    let struck = world.objects.await_struck(DEADLINE)?;
    match kind {
        Kind::Killed => {
            world.kill_archiver();
            world.objects.heal();
        }
        Kind::StaleListing => {
            // What it has put is not listed to its successor. The put that is held stays so, as
            // one of a machine that is gone would.
            world.kill_archiver();
            world.start_archiver(&[])?;
            world.publish(MEANWHILE)?;
            world.to_archiver.endure(BAD_TIME);
            world.objects.heal();
        }
        Kind::Terminated => {
            let running = world.terminate_archiver()?.context("it was started")?;
            world.publish(MEANWHILE)?;
            world.objects.heal();
            succeeded(&running.wait(DEADLINE)).context("asked to end, the archiver")?;
        }
        Kind::BrokerStopped | Kind::BrokerKilled => {
            take_away(kind, rabbit)?;
            rabbit.start_again()?;
            world.objects.heal();
        }
        Kind::Cut => {
            world.to_archiver.cut();
            world.publish(MEANWHILE)?;
            world.objects.heal();
        }
        Kind::HalfClosed => {
            world.to_archiver.half_close(dice.choose(&[Way::Up, Way::Down]));
            world.publish(MEANWHILE)?;
            world.objects.heal();
        }
        Kind::ChannelClosed => {
            let before = world.to_archiver.channels_closed();
            world.to_archiver.close_channels();
            world.to_archiver.await_channel_closed(before, DEADLINE)?;
            world.publish(MEANWHILE)?;
            world.objects.heal();
        }
        Kind::Stalled => {
            world.to_archiver.stall(DEADLINE)?;
            world.publish(MEANWHILE)?;
            world.objects.heal();
        }
        Kind::Slowed => {
            world.to_archiver.slow(SLOW_FRAME);
            world.objects.heal();
            world.publish(MEANWHILE)?;
            world.to_archiver.endure(BAD_TIME);
            world.to_archiver.heal();
        }
        other => bail!("`{other}` does not strike the archiver"),
    }
    world.settled()?;
    Ok(struck)
}

/// Fills the archive's disk, so that a put fails for want of room, and makes room again.
fn store_full(world: &mut World<'_>) -> Result<String> {
    world.start_archiver(&[])?;
    world.publish(BATCH)?;
    world.settled()?;
    let disk = world.disk.as_ref().context("the archive has a disk of its own")?;
    disk.fill()?;
    world.publish(BATCH)?;
    let failed = crate::wait::until("a put has failed for want of room", DEADLINE, || {
        let failed = world.metric("failed_puts_total")?;
        Ok((failed > 0.0).then_some(failed))
    })?;
    world.disk.as_ref().context("the archive has a disk of its own")?.free()?;
    world.settled()?;
    Ok(format!("put to a full disk, failed {failed} times"))
}

/// Sets the archiver's clock back while a put is held.
fn clock_back(world: &mut World<'_>, aim: Aim, moment: Moment) -> Result<String> {
    if let Some(running) = world.terminate_archiver()? {
        succeeded(&running.wait(DEADLINE))?;
    }
    let clock = FakeClock::new(world.dacapo.folder())?;
    world.start_archiver(&clock.variables())?;
    world.objects.strike(aim, Harm::Hold(moment), 1, None);
    world.publish(BATCH)?;
    let struck = world.objects.await_struck(DEADLINE)?;
    clock.set_back(CLOCK_BACK)?;
    world.objects.heal();
    world.publish(MEANWHILE)?;
    world.settled()?;
    if let Some(running) = world.terminate_archiver()? {
        succeeded(&running.wait(DEADLINE))?;
    }
    Ok(struck)
}
