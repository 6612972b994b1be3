//! Faults that strike a replay: each while a window is in flight, published and not confirmed.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::clock::FakeClock;
use super::disk::SmallDisk;
use super::kind::Kind;
use super::ledger::{self, Arrival, Replayed, Row};
use super::objects::{Aim, Harm, Moment};
use super::schedule::{Dice, Fault};
use super::wire::Way;
use super::world::{BAD_TIME, CLOCK_BACK, DEADLINE, SLOW_FRAME, World, tail, take_away};
use crate::dacapo::{Output, Running};
use crate::process::Signal;
use crate::rabbit::Rabbit;
use crate::services;

/// What a replay may have published and not confirmed.
const WINDOW: u64 = 40;

/// Events published before each, so that no two replay the same.
const LIVE: usize = 30;

/// How often a replay is resumed at the most before it must have completed.
const RESUMES_MAX: u32 = 6;

/// What an answer of the broker takes where a window must be open for a while.
const LAG: Duration = Duration::from_millis(40);

/// Checkpoints after which a replay is killed, at the most: fewer than any replay writes.
const CHECKPOINTS: u64 = 4;

/// What a full queue holds: a third of the events or so, so that it is full more than once.
const FULL_AT: u64 = 150;

/// The status of a replay that its target refused.
const REFUSED: i32 = 5;

/// The most messages taken from a target at once: more than any has.
const TAKE_MAX: u64 = 100_000;

/// A segment being read.
const READ: Aim = Aim { method: "GET", path: "/segments/" };

/// What became of a strike at a replay.
#[derive(Debug)]
pub(super) struct Struck {
    /// What was in flight.
    pub(super) evidence: String,
    /// What the ledger finds.
    pub(super) findings: Vec<String>,
}

struct Round<'w, 'a> {
    world: &'w World<'a>,
    rows: Vec<Row>,
    queue: String,
    /// [`WINDOW`], as an argument.
    window: String,
    arrived: Vec<Arrival>,
    /// How often the fault interrupts the replay.
    interruptions: Option<u64>,
    findings: Vec<String>,
    disk: Option<SmallDisk>,
    /// The variable that puts something on the disk.
    on_disk: &'static str,
    clock: Option<FakeClock>,
    route: Route,
}

/// How the target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Through the replay's own exchange, which goes with the queue: the channel is closed.
    Own,
    /// Through the default exchange: messages for a queue that is gone are returned.
    Default,
    /// Through an exchange that others made, and unbind.
    Foreign,
}

/// Replays everything to a queue of its own, strikes in the middle, lets it recover (by itself, or
/// by `replay resume`, if its last words name that), and checks what arrived.
///
/// # Errors
/// It does not recover. Nothing is returned if nothing was in flight: it must be struck again.
pub(super) fn strike(
    world: &mut World<'_>,
    fault: &Fault,
    rabbit: &mut Rabbit,
) -> Result<Option<Struck>> {
    let mut dice = Dice::new(fault.salt);
    world.start_archiver(&[])?;
    world.publish(LIVE)?;
    let rows = world.settled()?;
    let arguments = match fault.kind {
        Kind::QueueFull => {
            json!([["x-max-length", "I", FULL_AT], ["x-overflow", "S", "reject-publish"]])
        }
        _ => json!([]),
    };
    let queue = services::unique("campaign-target");
    world.ask(json!({ "op": "declare_queue", "queue": queue, "arguments": arguments }))?;
    let disk = match fault.kind {
        Kind::IndexFull | Kind::StateFull => {
            Some(SmallDisk::mount(&world.dacapo.folder().join("small"))?)
        }
        _ => None,
    };
    let clock = match fault.kind {
        Kind::ClockBack => Some(FakeClock::new(world.dacapo.folder())?),
        _ => None,
    };
    if let Kind::BrokerStopped | Kind::BrokerKilled = fault.kind {
        // The archiver is on the same broker.
        world.note_interruptions(1);
    }
    let mut round = Round {
        world: &*world,
        rows,
        queue,
        window: WINDOW.to_string(),
        arrived: Vec::new(),
        interruptions: fault.kind.interruptions(),
        findings: Vec::new(),
        disk,
        on_disk: match fault.kind {
            Kind::IndexFull => "DACAPO_INDEX",
            _ => "DACAPO_STATE",
        },
        clock,
        route: match fault.kind {
            Kind::QueueDeleted if fault.number.is_multiple_of(2) => Route::Default,
            Kind::QueueUnbound => Route::Foreign,
            _ => Route::Own,
        },
    };
    if round.route == Route::Foreign {
        round.world.ask(json!({ "op": "declare_exchange", "exchange": round.queue }))?;
        round.bind("bind_queue")?;
    }
    let evidence = round.run(fault.kind, rabbit, &mut dice)?;
    round.world.ask(json!({ "op": "delete_queue", "queue": round.queue }))?;
    if round.route == Route::Foreign {
        round.world.ask(json!({ "op": "delete_exchange", "exchange": round.queue }))?;
    }
    let findings = round.findings;
    Ok(evidence.map(|evidence| Struck { evidence, findings }))
}

impl Round<'_, '_> {
    fn run(&mut self, kind: Kind, rabbit: &mut Rabbit, dice: &mut Dice) -> Result<Option<String>> {
        let wire = &self.world.to_replay;
        wire.heal();
        let reads = match kind {
            Kind::Status500 => Some(Harm::Answer(500, "InternalError", Moment::Before)),
            Kind::SlowDown => Some(Harm::Answer(503, "SlowDown", Moment::Before)),
            Kind::Reset => Some(Harm::Reset(Moment::After)),
            Kind::Unanswered => Some(Harm::Hold(Moment::After)),
            Kind::Truncated => Some(Harm::Truncate),
            Kind::Corrupted => Some(Harm::Corrupt),
            _ => None,
        };
        if let Some(harm) = reads {
            return self.fail_read(harm, dice);
        }
        match kind {
            Kind::QueueFull => return self.queue_full(),
            Kind::IndexFull => return self.index_full(),
            Kind::Killed if dice.below(2) == 0 => return self.killed_at_a_checkpoint(dice),
            _ => {}
        }
        // Anywhere but in the last window.
        let at = 1 + dice.below(self.rows.len() as u64 - WINDOW);
        let way = dice.choose(&[Way::Up, Way::Down]);
        let way = match kind {
            // What is held going up is published after the queue is gone.
            Kind::QueueDeleted | Kind::QueueUnbound => Way::Up,
            _ => way,
        };
        wire.hold_at(at, way);
        let (replay, id) = self.start()?;
        wire.await_hold(DEADLINE)?;
        let unconfirmed = wire.unconfirmed();
        ensure!(unconfirmed > 0, "nothing is in flight");
        let evidence = format!("{unconfirmed} unconfirmed at event {} ({way:?})", wire.published());
        let output = self.hit(kind, replay, rabbit, dice)?;
        self.finish(output, &id)?;
        Ok(Some(evidence))
    }

    /// Strikes, and returns how the replay ended.
    fn hit(
        &mut self,
        kind: Kind,
        replay: Running,
        rabbit: &mut Rabbit,
        dice: &mut Dice,
    ) -> Result<Output> {
        let world = self.world;
        let wire = &world.to_replay;
        match kind {
            Kind::Killed => {
                let output = replay.kill();
                // What it had sent and the broker has not got is gone with its machine.
                wire.cut();
                wire.heal();
                return Ok(output);
            }
            Kind::Terminated => {
                replay.signal(Signal::Terminate)?;
                wire.heal();
            }
            Kind::BrokerStopped | Kind::BrokerKilled => {
                take_away(kind, rabbit)?;
                wire.cut();
                wire.heal();
                rabbit.start_again()?;
            }
            Kind::Cut => {
                wire.cut();
                wire.heal();
            }
            Kind::HalfClosed => {
                wire.half_close(dice.choose(&[Way::Up, Way::Down]));
                wire.heal();
            }
            Kind::ChannelClosed => {
                let before = wire.channels_closed();
                wire.close_channels();
                wire.heal();
                wire.await_channel_closed(before, DEADLINE)?;
            }
            Kind::Stalled => {
                wire.stall(DEADLINE)?;
                wire.heal();
            }
            Kind::Slowed => {
                wire.heal();
                wire.slow(SLOW_FRAME);
                wire.endure(BAD_TIME);
                wire.heal();
            }
            Kind::MemoryAlarm => {
                let before = wire.blocked();
                rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])?;
                wire.heal();
                wire.await_blocked(before, DEADLINE)?;
                wire.endure(BAD_TIME);
                rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"])?;
            }
            Kind::QueueDeleted => {
                self.take()?;
                world.ask(json!({ "op": "delete_queue", "queue": self.queue }))?;
                wire.heal();
                let output = self.refused(replay);
                world.ask(json!({ "op": "declare_queue", "queue": self.queue }))?;
                return Ok(output);
            }
            Kind::QueueUnbound => {
                self.bind("unbind_queue")?;
                wire.heal();
                let output = self.refused(replay);
                self.bind("bind_queue")?;
                return Ok(output);
            }
            Kind::StateFull => {
                let disk = self.disk.as_ref().context("the state has a disk of its own")?;
                disk.fill()?;
                wire.heal();
                let output = replay.wait(DEADLINE);
                ensure!(output.status != Some(0), "a journal on a full disk: {output:?}");
                disk.free()?;
                return Ok(output);
            }
            Kind::ClockBack => {
                self.clock.as_ref().context("it has a clock of its own")?.set_back(CLOCK_BACK)?;
                wire.heal();
            }
            other => bail!("`{other}` does not strike a replay"),
        }
        Ok(replay.wait(DEADLINE))
    }

    /// Returns how a replay ended whose target is not reached any more.
    fn refused(&mut self, replay: Running) -> Output {
        let output = replay.wait(DEADLINE);
        if output.status != Some(REFUSED) {
            let status = output.status;
            self.findings.push(format!("its target was taken away, and it ended with {status:?}"));
        }
        output
    }

    /// Binds the target to the exchange of its name, or unbinds it.
    fn bind(&self, operation: &str) -> Result<()> {
        let (queue, every) = (&self.queue, "#");
        self.world.ask(json!({
            "op": operation, "queue": queue, "exchange": queue, "routing_key": every,
        }))?;
        Ok(())
    }

    /// Fails reads of segments while a window is open.
    fn fail_read(&mut self, harm: Harm, dice: &mut Dice) -> Result<Option<String>> {
        let wire = &self.world.to_replay;
        // Answers are late, so that there is always something unconfirmed.
        wire.lag(LAG);
        let times = match harm {
            // Each is half a minute until the client gives up.
            Harm::Hold(_) => 1,
            _ => u32::try_from(1 + dice.below(3)).expect("a small number"),
        };
        self.world.objects.strike(READ, harm, times, Some(wire.gauge()));
        let (replay, id) = self.start()?;
        let output = replay.wait(DEADLINE);
        let struck = self.world.objects.struck();
        self.world.objects.heal();
        self.finish(output, &id)?;
        Ok(struck.first().map(|first| format!("{first}, {} times", struck.len())))
    }

    /// Kills the replay when its journal has grown, so that it dies in a checkpoint or just after.
    fn killed_at_a_checkpoint(&mut self, dice: &mut Dice) -> Result<Option<String>> {
        let wire = &self.world.to_replay;
        // Answers are late, so that there is always something unconfirmed.
        wire.lag(LAG);
        let lines = 1 + usize::try_from(dice.below(CHECKPOINTS)).expect("a small number");
        let (mut replay, id) = self.start()?;
        let journal = self.world.dacapo.folder().join("state/replays").join(&id).join("journal");
        let reached = crate::wait::until("the journal has grown", DEADLINE, || {
            let journal = std::fs::read(&journal).unwrap_or_default();
            let written = journal.iter().filter(|byte| **byte == b'\n').count();
            Ok((written > lines || !replay.is_running()?).then_some(written))
        })?;
        let unconfirmed = wire.unconfirmed();
        let output = replay.kill();
        wire.cut();
        wire.heal();
        self.finish(output, &id)?;
        let evidence = format!("{unconfirmed} unconfirmed, {reached} lines in the journal");
        Ok((unconfirmed > 0).then_some(evidence))
    }

    /// Fills the disk of the index while a replay brings it up to date.
    fn index_full(&mut self) -> Result<Option<String>> {
        let world = self.world;
        world.objects.strike(READ, Harm::Hold(Moment::Before), 1, None);
        let replay = world.spawn(&self.arguments(), &self.variables());
        let struck = world.objects.await_struck(DEADLINE)?;
        let disk = self.disk.as_ref().context("the index has a disk of its own")?;
        disk.fill()?;
        world.objects.heal();
        let output = replay.wait(DEADLINE);
        ensure!(output.status != Some(0), "an index on a full disk: {output:?}");
        let path = disk.path().display().to_string();
        if !output.stderr.contains(&path) {
            let talk = tail(&output.stderr);
            self.findings.push(format!("its last words do not name `{path}`: {talk}"));
        }
        disk.free()?;
        let (replay, id) = self.start()?;
        let output = replay.wait(DEADLINE);
        self.finish(output, &id)?;
        self.findings.extend(world.check_index(&[("DACAPO_INDEX", &path)])?);
        Ok(Some(format!("{struck}, for the index")))
    }

    /// Lets the target be full until somebody takes from it.
    fn queue_full(&mut self) -> Result<Option<String>> {
        let (mut replay, id) = self.start()?;
        let wire = &self.world.to_replay;
        // Each time it is full, it is emptied, until all have gone through it.
        while replay.is_running()? {
            crate::wait::until("the queue is full or all is done", DEADLINE, || {
                Ok((self.depth()? >= FULL_AT || !replay.is_running()?).then_some(()))
            })?;
            self.take()?;
        }
        let nacked = wire.nacked();
        let output = replay.wait(DEADLINE);
        self.finish(output, &id)?;
        Ok((nacked > 0).then(|| format!("{nacked} refusals of an open window")))
    }

    /// Resumes the replay until it has completed, and checks what it did.
    fn finish(&mut self, mut output: Output, id: &str) -> Result<()> {
        let mut resumes = 0;
        while output.status != Some(0) {
            self.take()?;
            self.check_interrupted(&output, id)?;
            ensure!(resumes < RESUMES_MAX, "not complete after {resumes} resumes: {output:?}");
            resumes += 1;
            let args = ["replay", "resume", id, "--json"];
            output = self.world.spawn(&args, &self.variables()).wait(DEADLINE);
        }
        self.take()?;
        let receipt = output.json();
        let found = ledger::check_replay(&Replayed {
            rows: &self.rows,
            arrived: &self.arrived,
            receipt: &receipt,
            window: WINDOW,
            interruptions: self.interruptions,
        });
        self.findings.extend(found);
        Ok(())
    }

    /// Checks a replay that has not completed: what its journal says is confirmed has arrived, and
    /// its last words say how to go on.
    fn check_interrupted(&mut self, output: &Output, id: &str) -> Result<()> {
        let show = ["replays", "show", id, "--json"];
        let shown = self.world.spawn(&show, &self.variables()).wait(DEADLINE);
        let shown = shown.json();
        let receipt = if shown["receipt"].is_object() { &shown["receipt"] } else { &shown };
        let checkpoint = json!({
            "confirmed": receipt["confirmed"], "positions": shown["positions"],
        });
        self.findings.extend(ledger::check_checkpoint(&checkpoint, &self.rows, &self.arrived));
        self.findings.extend(ledger::check_balance(receipt));
        let words = format!("replay resume {id}");
        if output.status.is_some() && !output.stderr.contains(&words) {
            let talk = tail(&output.stderr);
            self.findings.push(format!("its last words do not name `dacapo {words}`: {talk}"));
        }
        Ok(())
    }

    fn arguments(&self) -> Vec<&str> {
        let to = match self.route {
            Route::Foreign => "--to-exchange",
            Route::Own | Route::Default => "--to-queue",
        };
        let mut args = vec!["replay", "--json", to, &self.queue, "--window", &self.window];
        if self.route == Route::Default {
            args.push("--via-default-exchange");
        }
        args
    }

    fn start(&self) -> Result<(Running, String)> {
        let running = self.world.spawn(&self.arguments(), &self.variables());
        let told = running.wait_for_line("replay     ", DEADLINE);
        let id = told.split_whitespace().nth(1).context("the line ends with the id")?.to_owned();
        Ok((running, id))
    }

    /// Returns what the replay is told besides: a state or an index on a disk of its own, another
    /// clock.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let disk = self.disk.iter();
        let disk = disk.map(|disk| (self.on_disk, disk.path().display().to_string()));
        disk.chain(self.clock.iter().flat_map(FakeClock::variables)).collect()
    }

    fn depth(&self) -> Result<u64> {
        let asked = json!({ "op": "declare_queue", "queue": self.queue, "passive": true });
        self.world.ask(asked)?["messages"].as_u64().context("a queue has a depth")
    }

    /// Takes everything out of the target.
    fn take(&mut self) -> Result<()> {
        let asked = json!({ "op": "get", "queue": self.queue, "max": TAKE_MAX });
        let mut answer = self.world.ask(asked)?;
        let Value::Array(messages) = answer["messages"].take() else { bail!("no messages") };
        self.arrived.extend(messages.iter().map(arrival));
        Ok(())
    }
}

fn arrival(message: &Value) -> Arrival {
    let headers = message["properties"]["headers"].as_array().into_iter().flatten();
    let event = headers.clone().find(|row| row[0] == "x-dacapo-event-id");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Arrival {
        event: event.map(|row| text(&row[2])).unwrap_or_default(),
        message: text(&message["properties"]["message_id"]),
    }
}
