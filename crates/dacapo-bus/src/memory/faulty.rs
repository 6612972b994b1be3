//! A wrapper that makes any target fail on a script, for tests.
//!
//! Messages are counted from 1 over all connections, in the order in which they are sent, repeats
//! included; faults name such counts, so that a script says exactly when each strikes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use dacapo_event::Message;
use tokio::time::Instant;

use crate::{BusError, Connect, Outcome, Sink, TargetState};

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is lost when this many messages have reached the target. Outcomes that the
    /// caller has not taken are lost with it; later messages of the same call never arrive.
    Lose {
        /// The count of the last message that arrives.
        after: u64,
        /// Which call of the caller finds out.
        noticed: Noticed,
    },
    /// This message is refused and does not arrive.
    Nack {
        /// Its count.
        nth: u64,
    },
    /// Once this many messages were sent, the target says that it is blocked, so many times.
    Block {
        /// The count of the last message before it.
        after: u64,
        /// How many calls of [`Sink::state`] say so.
        asked: u32,
    },
    /// This call of [`Connect::open`] fails as if the target were down.
    RefuseOpen {
        /// The number of the call, from 1.
        nth: u64,
    },
}

/// Which call reports a lost connection first; later calls of any kind report it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// The `send` in which it is lost.
    Sending,
    /// The next call after it.
    Later,
}

/// A target that fails on a script; clones share the script and the counts.
#[derive(Debug, Clone)]
pub struct Faulty<C> {
    inner: C,
    script: Arc<Mutex<Script>>,
    confirm_delay: Duration,
}

#[derive(Debug)]
struct Script {
    faults: Vec<Fault>,
    sent: u64,
    opened: u64,
}

/// How the wrapper got an answer for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    OfTarget,
    NackedByScript,
}

struct FaultySink {
    inner: Box<dyn Sink>,
    script: Arc<Mutex<Script>>,
    confirm_delay: Duration,
    /// For each message without an outcome, when it may be known and who decides it.
    due: VecDeque<(Instant, Answer)>,
    /// Outcomes of the target that are not due or wait behind a scripted one.
    known: VecDeque<Outcome>,
    lost: bool,
}

impl<C: Connect> Faulty<C> {
    /// Wraps a target. Every outcome is known `confirm_delay` (tokio's time) after its message was
    /// sent, as over a network.
    pub fn new(inner: C, faults: Vec<Fault>, confirm_delay: Duration) -> Self {
        let script = Arc::new(Mutex::new(Script { faults, sent: 0, opened: 0 }));
        Faulty { inner, script, confirm_delay }
    }

    /// Returns how many messages were sent so far, repeats included.
    pub fn sent(&self) -> u64 {
        lock(&self.script).sent
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().expect("no code panics while it holds the script")
}

fn lost() -> BusError {
    BusError::Disconnected {
        peer: "a faulty target".to_owned(),
        reason: "the script says so".to_owned(),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
impl<C: Connect> Connect for Faulty<C> {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        let refused = {
            let mut script = lock(&self.script);
            script.opened += 1;
            let nth = script.opened;
            script.faults.contains(&Fault::RefuseOpen { nth })
        };
        if refused {
            return Err(lost());
        }
        Ok(Box::new(FaultySink {
            inner: self.inner.open().await?,
            script: self.script.clone(),
            confirm_delay: self.confirm_delay,
            due: VecDeque::new(),
            known: VecDeque::new(),
            lost: false,
        }))
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        self.inner.dismantle().await
    }
}

impl FaultySink {
    fn alive(&self) -> Result<(), BusError> {
        if self.lost { Err(lost()) } else { Ok(()) }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
impl Sink for FaultySink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        self.alive()?;
        for message in messages {
            let (nacked, loss) = {
                let mut script = lock(&self.script);
                script.sent += 1;
                let count = script.sent;
                let nacked = script.faults.contains(&Fault::Nack { nth: count });
                let loss = script.faults.iter().find_map(|fault| match fault {
                    Fault::Lose { after, noticed } if *after == count => Some(*noticed),
                    _ => None,
                });
                (nacked, loss)
            };
            let answer = if nacked {
                Answer::NackedByScript
            } else {
                self.inner.send(std::slice::from_ref(message)).await?;
                Answer::OfTarget
            };
            self.due.push_back((Instant::now() + self.confirm_delay, answer));
            if let Some(noticed) = loss {
                self.lost = true;
                return if noticed == Noticed::Sending { Err(lost()) } else { Ok(()) };
            }
        }
        Ok(())
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        self.alive()?;
        let Some((first_due, _)) = self.due.front() else {
            std::future::pending::<()>().await;
            return Err(lost());
        };
        tokio::time::sleep_until(*first_due).await;
        let now = Instant::now();
        let mut outcomes = Vec::new();
        while let Some((due, answer)) = self.due.front() {
            if *due > now {
                break;
            }
            let outcome = match answer {
                Answer::NackedByScript => Outcome::Nacked,
                Answer::OfTarget => {
                    if self.known.is_empty() {
                        if !outcomes.is_empty() {
                            // What was taken is handed over before anything is awaited again.
                            break;
                        }
                        let more = self.inner.outcomes().await?;
                        self.known.extend(more);
                    }
                    self.known.pop_front().expect("outcomes are never empty")
                }
            };
            self.due.pop_front();
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        self.alive()?;
        let scripted = {
            let mut script = lock(&self.script);
            let sent = script.sent;
            script.faults.iter_mut().any(|fault| match fault {
                Fault::Block { after, asked } if *after <= sent && *asked > 0 => {
                    *asked -= 1;
                    true
                }
                _ => false,
            })
        };
        let state = self.inner.state().await?;
        Ok(TargetState { blocked: state.blocked || scripted, ..state })
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.alive()?;
        self.inner.close().await
    }
}
