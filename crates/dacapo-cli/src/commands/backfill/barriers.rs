//! Asks the archivers how far they are, and waits for all of them; never goes on without one.

use std::time::Duration;

use dacapo_archive::ArchiveError;
use dacapo_archive::barrier;
use dacapo_archive::store::StoreError;
use dacapo_bus::broker::parked_queue;
use dacapo_engine::backfill::Barrier;
use dacapo_engine::merge::Positions;
use dacapo_event::ShortStr;
use dacapo_event::barrier::{BarrierId, message};
use dacapo_republish::Control;
use tokio::time::Instant;

use super::broker::{pause, persist, publish};
use super::drive::{Parts, Run};
use crate::format;
use crate::output::words;

/// How often the archive is looked at for answers: an archiver puts one within a second.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// When it is first said what is waited for, and how often it is said again.
const TELL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// A barrier that is neither in the queue nor answered is published again after so long: one that the
/// broker took out of its place is never answered. It costs a segment at the most.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// And after so long whatever is in the queue, which on a busy bus is never empty: longer than an
/// archiver that keeps up takes.
const ASK_ANYWAY: Duration = Duration::from_secs(600);

/// An archiver that is asked.
struct Asked {
    queue: String,
    barrier: BarrierId,
    /// When it was asked last, if it was by this run.
    at: Option<Instant>,
}

impl Asked {
    /// Returns whether to ask now, with so much in the queue.
    fn is_due(&self, depth: u64) -> bool {
        let Some(at) = self.at else { return true };
        at.elapsed() >= if depth == 0 { ASK_AGAIN } else { ASK_ANYWAY }
    }
}

impl Run<'_> {
    /// Publishes a barrier to each archiver's queue that has not answered, and returns what they
    /// answered, when all have; nothing if it was told to stop.
    pub async fn ask(&mut self, which: Barrier) -> anyhow::Result<Option<Positions>> {
        let control = self.control.subscribe();
        // What expired before the second barrier was answered reaches the parking queue meanwhile.
        if which == Barrier::Parked
            && pause(self.description.margin, &control).await == Control::Stop
        {
            return Ok(None);
        }
        let attempt = self.standing.attempt;
        let queues = self.description.archiver_queues.iter().enumerate();
        let id = &self.locked.id;
        let asked = |(at, queue): (usize, &String)| Asked {
            queue: match which {
                Barrier::First | Barrier::Second => queue.clone(),
                Barrier::Parked => parked_queue(queue),
            },
            barrier: id.barrier(attempt, which, at),
            at: None,
        };
        let mut all: Vec<Asked> = queues.map(asked).collect();
        let (began, mut look_at, mut tell_at) = (Instant::now(), Duration::ZERO, TELL.0);
        loop {
            let (reached, silent) = self.answers(&all, which).await?;
            if silent.is_empty() {
                return Ok(Some(reached));
            }
            self.telling.waits(&self.standing);
            let tell = began.elapsed() >= tell_at;
            if tell || began.elapsed() >= look_at {
                look_at = began.elapsed() + ASK_AGAIN;
                let asked: Vec<&Asked> = silent.iter().map(|at| &all[*at]).collect();
                let Some(depths) = self.depths(&asked).await? else { return Ok(None) };
                let due =
                    silent.iter().zip(&depths).filter(|(at, depth)| all[**at].is_due(**depth));
                let due: Vec<usize> = due.map(|(at, _)| *at).collect();
                let asking: Vec<&Asked> = due.iter().map(|at| &all[*at]).collect();
                if !asking.is_empty() && !self.publish_barriers(&asking).await? {
                    return Ok(None);
                }
                if tell {
                    self.tell_waiting(&asked, &depths, began.elapsed());
                    tell_at = began.elapsed() + TELL.1;
                }
                for at in due {
                    all[at].at = Some(Instant::now());
                }
            }
            if pause(LOOK_INTERVAL, &control).await == Control::Stop {
                return Ok(None);
            }
        }
    }

    /// Returns what was answered, and which have not; a store that fails for now is told in words.
    async fn answers(
        &self,
        all: &[Asked],
        which: Barrier,
    ) -> anyhow::Result<(Positions, Vec<usize>)> {
        let mut positions = Positions::new();
        let mut silent = Vec::new();
        for (at, asked) in all.iter().enumerate() {
            let reached = loop {
                match barrier::reached(&*self.parts.store, &asked.barrier).await {
                    Ok(reached) => break reached,
                    Err(ArchiveError::Store(error @ StoreError::Unavailable { .. })) => {
                        self.parts.output.talk(&format!("trying again: {}", words(&error)));
                        let control = self.control.subscribe();
                        if pause(TELL.0, &control).await == Control::Stop {
                            break Vec::new();
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            if reached.is_empty() {
                silent.push(at);
            }
            for answer in reached {
                let position = positions.entry(answer.stream).or_insert(answer.sequence);
                // Of one stream that answers for two queues, what holds for both.
                *position = match which {
                    Barrier::First => (*position).min(answer.sequence),
                    Barrier::Second | Barrier::Parked => (*position).max(answer.sequence),
                };
            }
        }
        Ok((positions, silent))
    }

    async fn publish_barriers(&self, silent: &[&Asked]) -> anyhow::Result<bool> {
        let Parts { settings, output, .. } = &self.parts;
        let barriers = silent.iter().map(|asked| {
            let queue = ShortStr::try_from(asked.queue.as_str())?;
            Ok(message(&asked.barrier, queue))
        });
        let barriers = barriers.collect::<anyhow::Result<Vec<_>>>()?;
        let control = self.control.subscribe();
        let published = persist("asking the archivers", &control, output, async || {
            publish(&barriers, settings).await
        });
        Ok(published.await?.is_some())
    }

    /// Returns how much waits in the queues of those who have not answered.
    async fn depths(&self, silent: &[&Asked]) -> anyhow::Result<Option<Vec<u64>>> {
        let Parts { settings, output, .. } = &self.parts;
        let control = self.control.subscribe();
        persist("asking for the archivers' queues", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            let mut depths = Vec::new();
            for asked in silent {
                let state = dacapo_amqp::queue_state(&broker, &asked.queue).await?;
                depths.push(state.map_or(0, |state| state.ready));
            }
            Ok(depths)
        })
        .await
    }

    fn tell_waiting(&self, silent: &[&Asked], depths: &[u64], waited: Duration) {
        let queues: Vec<String> = silent
            .iter()
            .zip(depths)
            .map(|(asked, depth)| {
                format!("`{}` ({})", asked.queue, format::counted(*depth, "waiting message"))
            })
            .collect();
        self.parts.output.talk(&format!(
            "waiting for {} for the archiver of {} to say how far it is; does `dacapo archive run` run \
             with this --queue and to this archive, and is it of a version that knows backfills?",
            format::duration(waited),
            queues.join(", ")
        ));
    }
}
