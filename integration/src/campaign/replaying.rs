//! Faults that strike a replay: each while a window is in flight, published and not confirmed.

use std::sync::atomic::Ordering;
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
use super::world::{DEADLINE, World, succeeded, tail, take_away};
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

/// How long a connection is stalled or slowed, or the broker blocks.
const BAD_TIME: Duration = Duration::from_secs(2);

/// How far the clock is set back: less than the 15 minutes at which S3 refuses a signature.
const CLOCK_BACK: Duration = Duration::from_secs(600);

/// What each frame of a slowed connection takes.
const SLOW_FRAME: Duration = Duration::from_millis(5);

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
    arrived: Vec<Arrival>,
    /// How often the replay was interrupted.
    interruptions: u64,
    findings: Vec<String>,
    disk: Option<SmallDisk>,
    state_on_disk: bool,
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
}

/// Replays everything to a queue of its own, strikes in the middle, lets it recover (by itself, or
/// by `replay resume`, if its last words name that), and checks what arrived.
///
/// # Errors
/// It does not recover. Nothing is returned if nothing was in flight: it must be struck again.
pub(super) fn strike(
    world: &mut World<'_>,
    fault: &Fault,
    alone: Option<&mut Rabbit>,
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
    let mut round = Round {
        world: &*world,
        rows,
        queue,
        arrived: Vec::new(),
        interruptions: 0,
        findings: Vec::new(),
        disk,
        state_on_disk: fault.kind == Kind::StateFull,
        clock,
        route: match fault.kind {
            Kind::QueueDeleted if fault.number.is_multiple_of(2) => Route::Default,
            _ => Route::Own,
        },
    };
    let evidence = round.run(fault.kind, alone, &mut dice)?;
    round.world.ask(json!({ "op": "delete_queue", "queue": round.queue }))?;
    let findings = round.findings;
    Ok(evidence.map(|evidence| Struck { evidence, findings }))
}

impl Round<'_, '_> {
    fn run(
        &mut self,
        kind: Kind,
        alone: Option<&mut Rabbit>,
        dice: &mut Dice,
    ) -> Result<Option<String>> {
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
        if kind == Kind::QueueFull {
            return self.queue_full();
        }
        // Anywhere but in the last window.
        let at = 1 + dice.below(self.rows.len() as u64 - WINDOW);
        let way = dice.choose(&[Way::Up, Way::Down]);
        let way = match kind {
            // What is held going up is published after the queue is gone.
            Kind::QueueDeleted => Way::Up,
            _ => way,
        };
        wire.hold_at(at, way);
        let (replay, id) = self.start()?;
        wire.await_hold(DEADLINE)?;
        let unconfirmed = wire.unconfirmed();
        ensure!(unconfirmed > 0, "nothing is in flight");
        let evidence = format!("{unconfirmed} unconfirmed at event {} ({way:?})", wire.published());
        let output = self.hit(kind, replay, alone, dice)?;
        self.finish(output, &id)?;
        Ok(Some(evidence))
    }

    /// Strikes, and returns how the replay ended.
    fn hit(
        &mut self,
        kind: Kind,
        replay: Running,
        alone: Option<&mut Rabbit>,
        dice: &mut Dice,
    ) -> Result<Output> {
        let world = self.world;
        let wire = &world.to_replay;
        self.interruptions += 1;
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
                wire.cut();
                wire.heal();
                world.servers.interruptions.fetch_add(1, Ordering::SeqCst);
                take_away(kind, alone.context("the broker is ours alone")?)?;
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
                wire.close_channels();
                wire.heal();
            }
            Kind::Stalled => {
                wire.hold_all();
                wire.endure(BAD_TIME);
                wire.heal();
            }
            Kind::Slowed => {
                wire.heal();
                wire.slow(SLOW_FRAME);
                wire.endure(BAD_TIME);
                wire.heal();
            }
            Kind::MemoryAlarm => {
                let rabbit = alone.context("the broker is ours alone")?;
                rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])?;
                wire.heal();
                wire.endure(BAD_TIME);
                rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"])?;
            }
            Kind::QueueDeleted => {
                self.take()?;
                world.ask(json!({ "op": "delete_queue", "queue": self.queue }))?;
                wire.heal();
                let output = replay.wait(DEADLINE);
                if output.status != Some(REFUSED) {
                    let status = output.status;
                    self.findings
                        .push(format!("its queue was deleted, and it ended with {status:?}"));
                }
                world.ask(json!({ "op": "declare_queue", "queue": self.queue }))?;
                return Ok(output);
            }
            Kind::IndexFull => {
                let disk = self.disk.as_ref().context("the index has a disk of its own")?;
                disk.fill()?;
                let index = disk.path().to_str().context("we named it")?;
                let rebuild = || {
                    let variables = [("DACAPO_INDEX", index)];
                    world.dacapo.spawn_with(["index", "rebuild"], &variables).wait(DEADLINE)
                };
                let output = rebuild();
                ensure!(output.status != Some(0), "an index on a full disk: {output:?}");
                disk.free()?;
                succeeded(&rebuild()).context("once there is room again")?;
                wire.heal();
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
        self.interruptions += 1;
        let output = replay.wait(DEADLINE);
        let struck = self.world.objects.struck();
        self.world.objects.heal();
        self.finish(output, &id)?;
        Ok(struck.first().map(|first| format!("{first}, {} times", struck.len())))
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
            self.interruptions += 1;
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
            // Where the target refuses, the replay interrupts itself.
            interruptions: (self.interruptions > 0).then_some(self.interruptions),
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
        let confirmed =
            receipt["confirmed"].as_u64().context("a replay shows what is confirmed")?;
        self.findings.extend(ledger::check_confirmed(confirmed, &self.arrived));
        self.findings.extend(ledger::check_balance(receipt));
        let words = format!("replay resume {id}");
        if output.status.is_some() && !output.stderr.contains(&words) {
            let talk = tail(&output.stderr);
            self.findings.push(format!("its last words do not name `dacapo {words}`: {talk}"));
        }
        Ok(())
    }

    fn start(&self) -> Result<(Running, String)> {
        let window = WINDOW.to_string();
        let mut args = vec!["replay", "--json", "--to-queue", &self.queue, "--window", &window];
        if self.route == Route::Default {
            args.push("--via-default-exchange");
        }
        let running = self.world.spawn(&args, &self.variables());
        let told = running.wait_for_line("replay     ", DEADLINE);
        let id = told.split_whitespace().nth(1).context("the line ends with the id")?.to_owned();
        Ok((running, id))
    }

    /// Returns what the replay is told besides: a state on a disk of its own, another clock.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let state = self.disk.iter().filter(|_| self.state_on_disk);
        let state = state.map(|disk| ("DACAPO_STATE", disk.path().display().to_string()));
        state.chain(self.clock.iter().flat_map(FakeClock::variables)).collect()
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
