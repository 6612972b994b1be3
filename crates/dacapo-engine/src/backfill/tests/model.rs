//! A model of one exchange, an archiver, and the two queues of a backfill, in which publishers look
//! up routes before they deliver, and the backfill is killed before and after everything it does.

use std::collections::{BTreeMap, HashSet, VecDeque};

use dacapo_event::{Sequence, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::backfill::standing::Past;
use crate::merge::Positions;

/// What a killed replay repeats at the most.
const WINDOW: u64 = 3;

/// More steps than any run takes here; one that takes more does not end.
const STEPS_MAX: usize = 5_000;

type Event = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Archiver,
    Holding,
    Target,
}

#[derive(Debug, Clone)]
enum Archived {
    Event(Event),
    Barrier(String),
}

#[derive(Debug, Clone, Copy)]
enum Held {
    Event(Event),
    Mark(Past),
}

/// Small, and the same on every run of a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

struct World {
    dice: Dice,
    now: u64,
    published: Event,
    /// Events left to publish while the backfill runs.
    left: u32,
    /// Looked up, and not delivered to these yet.
    on_the_way: Vec<(Event, Queue)>,
    archiver: VecDeque<Archived>,
    /// What expired in the archiver's queue.
    parked: VecDeque<Archived>,
    archive: Vec<Event>,
    answers: BTreeMap<String, Sequence>,
    holding: Option<VecDeque<Held>>,
    holding_is_bound: bool,
    target: Vec<Event>,
    target_is_bound: bool,
    /// How far each replay has come.
    replays: BTreeMap<String, u64>,
}

/// The process is gone.
struct Killed;

impl World {
    fn new(seed: u64) -> Self {
        let mut world = World {
            dice: Dice(seed | 1),
            now: 0,
            published: 0,
            left: 150,
            on_the_way: Vec::new(),
            archiver: VecDeque::new(),
            parked: VecDeque::new(),
            archive: Vec::new(),
            answers: BTreeMap::new(),
            holding: None,
            holding_is_bound: false,
            target: Vec::new(),
            target_is_bound: false,
            replays: BTreeMap::new(),
        };
        for _ in 0..world.dice.roll(20) {
            world.look_up();
        }
        world
    }

    fn look_up(&mut self) {
        let event = self.published;
        self.published += 1;
        self.on_the_way.push((event, Queue::Archiver));
        if self.holding_is_bound {
            self.on_the_way.push((event, Queue::Holding));
        }
        if self.target_is_bound {
            self.on_the_way.push((event, Queue::Target));
        }
    }

    fn deliver(&mut self, at: usize) {
        let (event, queue) = self.on_the_way.remove(at);
        match queue {
            Queue::Archiver => self.archiver.push_back(Archived::Event(event)),
            Queue::Holding => {
                if let Some(holding) = &mut self.holding {
                    holding.push_back(Held::Event(event));
                }
            }
            Queue::Target => self.target.push(event),
        }
    }

    /// What others do meanwhile.
    fn pass_time(&mut self) {
        for _ in 0..self.dice.roll(6) {
            match self.dice.roll(4) {
                0 if self.left > 0 => {
                    self.left -= 1;
                    self.look_up();
                }
                1 if !self.on_the_way.is_empty() => {
                    let at = self.dice.roll(self.on_the_way.len() as u64) as usize;
                    self.deliver(at);
                }
                2 => self.archive_one(),
                3 if self.dice.roll(3) == 0 => self.expire(),
                _ => self.now += self.dice.roll(40),
            }
        }
    }

    /// The first event in the archiver's queue is dead-lettered.
    fn expire(&mut self) {
        if let Some(Archived::Event(_)) = self.archiver.front() {
            self.parked.extend(self.archiver.pop_front());
        }
    }

    fn archive_one(&mut self) {
        let from_parked = !self.parked.is_empty() && self.dice.roll(3) == 0;
        let queue = if from_parked { &mut self.parked } else { &mut self.archiver };
        match queue.pop_front() {
            Some(Archived::Event(event)) => self.archive.push(event),
            Some(Archived::Barrier(barrier)) => {
                let reached = self.archive.len() as Sequence;
                self.answers.entry(barrier).or_insert(reached);
            }
            None => {}
        }
    }

    /// Whatever was looked up before is delivered after it.
    fn margin(&mut self) {
        let before = self.on_the_way.clone();
        self.pass_time();
        for routed in before {
            if let Some(at) = self.on_the_way.iter().position(|other| *other == routed) {
                self.deliver(at);
            }
        }
    }

    fn maybe_kill(&mut self) -> Result<(), Killed> {
        self.pass_time();
        if self.dice.roll(9) == 0 { Err(Killed) } else { Ok(()) }
    }

    fn facts(&self) -> Facts {
        let ends = match self.archive.len() as Sequence {
            0 => Positions::new(),
            last => [(name("s"), last)].into(),
        };
        Facts { now: Timestamp::from_secs(self.now), ends, salt: 0 }
    }

    fn play(&mut self, round: &Round, standing: &Standing) -> Result<Played, Killed> {
        let stream = name("s");
        let from = standing.positions.get(&stream).copied().unwrap_or(0);
        let until = round.until.get(&stream).copied().unwrap_or(0);
        let key = round.replay.to_string();
        let resumed = self.replays.contains_key(&key);
        let mut done = self.replays.get(&key).copied().unwrap_or(from);
        self.replays.insert(key.clone(), done);
        while done < until {
            self.target.push(self.archive[done as usize]);
            done += 1;
            if self.dice.roll(25) == 0 {
                // Its journal may be a window behind.
                let known = done - self.dice.roll(WINDOW + 1).min(done - from);
                self.replays.insert(key.clone(), known.max(self.replays[&key]));
                return Err(Killed);
            }
        }
        self.replays.insert(key, done);
        // Its own journal counts a window for each kill; here, for as many as there can be.
        let possible_repeats = if resumed { WINDOW * 50 } else { 0 };
        Ok(Played { events: until - from, possible_repeats, ..Played::default() })
    }

    fn ask(&mut self, which: Barrier, attempt: u64) -> Result<Positions, Killed> {
        let barrier = id().barrier(attempt, which, 0).to_string();
        if !self.answers.contains_key(&barrier) {
            let queue = match which {
                Barrier::First | Barrier::Second => &mut self.archiver,
                Barrier::Parked => &mut self.parked,
            };
            queue.push_back(Archived::Barrier(barrier.clone()));
        }
        loop {
            self.maybe_kill()?;
            self.archive_one();
            if let Some(reached) = self.answers.get(&barrier) {
                return Ok([(name("s"), *reached)].into());
            }
        }
    }

    fn mark(&mut self, past: Past) {
        self.holding.as_mut().expect("it is there").push_back(Held::Mark(past));
    }

    fn forward(&mut self, standing: &mut Standing, until: Past) -> Result<(), Killed> {
        let remembered: HashSet<Event> = standing
            .between_barriers()
            .iter()
            .flat_map(|range| self.archive[range.after as usize..range.until as usize].to_vec())
            .collect();
        loop {
            self.pass_time();
            let holding = self.holding.as_mut().expect("it is there");
            let Some(first) = holding.front().copied() else {
                if standing.past >= until {
                    return Ok(());
                }
                continue;
            };
            match first {
                Held::Mark(past) => standing.past = standing.past.max(past),
                Held::Event(_) if standing.past == Past::Closed => standing.counts.came_live += 1,
                Held::Event(event)
                    if standing.past == Past::Nothing && remembered.contains(&event) =>
                {
                    standing.counts.dropped += 1;
                }
                Held::Event(event) => {
                    self.target.push(event);
                    if self.dice.roll(25) == 0 {
                        // Published, not counted, not acked: it is delivered again.
                        standing.counts.passed_again += 1;
                        return Err(Killed);
                    }
                    standing.counts.forwarded += 1;
                    standing.counts.live_as_well += u64::from(standing.past >= Past::Opened);
                }
            }
            self.holding.as_mut().expect("it is there").pop_front();
        }
    }

    /// Does a step; what happened is to be written.
    fn perform(&mut self, step: Step, standing: &mut Standing) -> Result<Option<Happened>, Killed> {
        self.maybe_kill()?;
        let happened = match step {
            Step::Note(happened) => happened,
            Step::Prepare => Happened::Prepared,
            Step::Play(round) => Happened::RoundPlayed(self.play(&round, standing)?),
            Step::Ask(Barrier::First) => {
                Happened::FirstAnswered(self.ask(Barrier::First, standing.attempt)?)
            }
            Step::Ask(Barrier::Second) => {
                Happened::SecondAnswered(self.ask(Barrier::Second, standing.attempt)?)
            }
            Step::Ask(Barrier::Parked) => {
                Happened::ParkedAnswered(self.ask(Barrier::Parked, standing.attempt)?)
            }
            Step::Bind => {
                self.holding.get_or_insert_default();
                self.maybe_kill()?;
                self.holding_is_bound = true;
                self.maybe_kill()?;
                self.margin();
                Happened::Bound
            }
            Step::Release => {
                (self.holding, self.holding_is_bound) = (None, false);
                self.maybe_kill()?;
                Happened::Stale
            }
            Step::Mark => {
                self.margin();
                self.mark(Past::History);
                Happened::Marked
            }
            Step::AwaitArchive => return Ok(None),
            Step::Forward => {
                self.forward(standing, Past::History)?;
                Happened::LittleHeld
            }
            Step::Switch => {
                self.mark(Past::Opened);
                self.maybe_kill()?;
                self.target_is_bound = true;
                self.maybe_kill()?;
                self.margin();
                self.maybe_kill()?;
                self.mark(Past::Closed);
                self.maybe_kill()?;
                self.holding_is_bound = false;
                Happened::Switched
            }
            Step::Drain => {
                self.forward(standing, Past::Closed)?;
                Happened::Drained
            }
            Step::Remove => {
                self.holding = None;
                Happened::Removed
            }
            Step::Nothing => return Ok(None),
        };
        // Done, and maybe never written.
        self.maybe_kill()?;
        Ok(Some(happened))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]
    #[test]
    fn killed_at_every_step_nothing_is_missing_and_repeats_are_within_the_count(seed in any::<u64>()) {
        let mut world = World::new(seed);
        let mut standing = Standing::default();
        let mut steps = 0;
        while standing.is_resumable() {
            steps += 1;
            prop_assert!(steps < STEPS_MAX, "it does not end: {:?}", standing);
            let step = next(&id(), &description(), &standing, &world.facts());
            // Killed, it begins again with what it has written.
            if let Ok(Some(happened)) = world.perform(step, &mut standing) {
                standing.apply(happened);
            }
        }
        // Whatever was looked up is delivered in the end.
        while !world.on_the_way.is_empty() {
            world.deliver(0);
        }
        let mut counts: BTreeMap<Event, u64> = BTreeMap::new();
        world.target.iter().for_each(|event| *counts.entry(*event).or_default() += 1);
        for event in 0..world.published {
            prop_assert!(counts.contains_key(&event), "{} is missing: {:?}", event, standing);
        }
        let repeats: u64 = counts.values().map(|count| count - 1).sum();
        prop_assert!(repeats <= standing.counts.possible_repeats(), "{} {:?}", repeats, standing);
        prop_assert!(world.holding.is_none() && !world.holding_is_bound && world.target_is_bound);
    }
}
