//! What a publisher knows and decides. Plain: takes orders and frames, fills the outbox.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes};
use dacapo_bus::{BusError, Outcome};
use dacapo_event::ShortStr;
use tokio::sync::oneshot;

use super::answers::{Answers, Reach, Unfit, Verdict};
use super::publish::{Publish, Returned, piece_max};
use super::{PUBLISHES, QUESTIONS};
use crate::error::{Doing, lost};
use crate::wire::Malformed;
use crate::wire::content::Content;
use crate::wire::frame::{BODY, Frame, HEADER, HEARTBEAT, METHOD, Outbox, put_short, take_short};
use crate::wire::link::{Method, close_said, garbled, method_of, methods};

/// Bytes that one write takes, and so what is copied of messages on their way to the socket: 64
/// of the usual ones (4 KB).
const OUTBOX_BYTES: usize = 256 * 1024;

/// Bytes of messages that may wait for the socket before a sender has to: what the socket takes
/// while the sender prepares more.
const WAITING_BYTES: usize = 1024 * 1024;

/// Outcomes that are worth waking whoever sends for, while more are to come: as many as it sends
/// together. A quorum queue confirms in threes and fours, and each waking costs some 20 µs.
const OUTCOMES_TOGETHER: usize = 64;

/// How the connection is for whoever sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// More can be sent.
    Open,
    /// Enough waits for the socket.
    Full,
    /// The broker has blocked it. What is sent waits, and its sender must not: it has to ask and
    /// to stop.
    Blocked,
}

/// Who waits for the depth of a queue.
pub(super) type Asker = oneshot::Sender<Result<u64, BusError>>;

pub(super) struct Core {
    peer: String,
    piece_max: usize,
    /// What waits for the socket, and its bytes.
    waiting: VecDeque<Publish>,
    waiting_bytes: usize,
    /// What is left to write of the body that is written.
    body: Bytes,
    answers: Answers,
    settled: Vec<Outcome>,
    /// A message that comes back.
    returning: Option<Returning>,
    blocked: bool,
    questions: Questions,
}

/// Depths that were asked for. The caller has one question at a time; it may give one up.
#[derive(Default)]
struct Questions {
    /// Whether their channel is open; the broker closes it over a queue that is not there.
    open: bool,
    /// How many the broker has not answered.
    unanswered: u32,
    /// Who waits for the answer to the last one.
    asker: Option<Asker>,
}

struct Returning {
    reason: String,
    exchange: ShortStr,
    routing_key: ShortStr,
    content: Option<Content>,
}

impl Core {
    pub(super) fn new(peer: String, frame_max: u32) -> Self {
        Core {
            peer,
            piece_max: piece_max(frame_max),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            body: Bytes::new(),
            answers: Answers::new(),
            settled: Vec::new(),
            returning: None,
            blocked: false,
            questions: Questions::default(),
        }
    }

    /// Takes what is to be sent next.
    pub(super) fn publish(&mut self, publishes: Vec<Publish>) {
        self.waiting_bytes += publishes.iter().map(bytes_of).sum::<usize>();
        self.waiting.extend(publishes);
    }

    /// Asks for a queue's depth.
    pub(super) fn ask(&mut self, queue: &ShortStr, asker: Asker, outbox: &mut Outbox) {
        let questions = &mut self.questions;
        if !questions.open {
            outbox.method(QUESTIONS, methods::CHANNEL_OPEN, |to| put_short(to, b""));
            questions.open = true;
        }
        outbox.method(QUESTIONS, methods::QUEUE_DECLARE, |to| {
            to.put_u16(0);
            put_short(to, queue.as_bytes());
            // Passive.
            to.put_u8(1);
            to.put_u32(0);
        });
        questions.unanswered += 1;
        questions.asker = Some(asker);
    }

    /// Moves what waits into the outbox, as much as one write takes; nothing while the broker
    /// blocks the connection.
    pub(super) fn fill(&mut self, outbox: &mut Outbox) {
        while !self.blocked && outbox.bytes().len() < OUTBOX_BYTES {
            if !self.body.is_empty() {
                let piece = self.body.split_to(self.piece_max.min(self.body.len()));
                outbox.body(PUBLISHES, &piece);
                continue;
            }
            let Some(next) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= bytes_of(&next);
            outbox.frames(next.head());
            match next.body().len() {
                0 => {}
                bytes if bytes <= self.piece_max => outbox.body(PUBLISHES, next.body()),
                _ => self.body = next.body().clone(),
            }
            self.answers.sent(next);
        }
    }

    pub(super) fn standing(&self) -> Standing {
        match self.blocked {
            true => Standing::Blocked,
            false if self.waiting_bytes >= WAITING_BYTES => Standing::Full,
            false => Standing::Open,
        }
    }

    /// Returns whether outcomes can be taken.
    pub(super) fn has_settled(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Returns whether waiting for more outcomes is not worth it: there are enough, or as many as
    /// are to come.
    pub(super) fn has_settled_enough(&self) -> bool {
        let to_come = self.answers.len() + self.waiting.len();
        self.settled.len() >= OUTCOMES_TOGETHER.min(to_come)
    }

    /// Takes the outcomes that are known, in order of sending.
    pub(super) fn take_settled(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.settled)
    }

    /// Takes a frame of the broker.
    pub(super) fn take(&mut self, frame: Frame, outbox: &mut Outbox) -> Result<(), BusError> {
        match (frame.kind, frame.channel) {
            (HEARTBEAT, _) => Ok(()),
            (METHOD, channel) => {
                let method = method_of(frame.payload).map_err(|Malformed| garbled(&self.peer))?;
                self.take_method(channel, method, outbox)
            }
            (HEADER, PUBLISHES) => self.take_header(frame.payload),
            (BODY, PUBLISHES) => self.take_body(frame.payload),
            _ => Err(garbled(&self.peer)),
        }
    }

    fn take_method(
        &mut self,
        channel: u16,
        method: Method,
        outbox: &mut Outbox,
    ) -> Result<(), BusError> {
        let taken = match (channel, method.number) {
            (PUBLISHES, methods::BASIC_ACK) => return self.answered(method, Verdict::Ack),
            (PUBLISHES, methods::BASIC_NACK) => return self.answered(method, Verdict::Nack),
            (PUBLISHES, methods::BASIC_RETURN) => {
                Returning::begin(method.arguments).map(|begun| self.returning = Some(begun))
            }
            (QUESTIONS, methods::CHANNEL_OPEN_OK) => Ok(()),
            (QUESTIONS, methods::QUEUE_DECLARE_OK) => {
                ready(method.arguments).map(|depth| self.questions.answered(depth))
            }
            (QUESTIONS, methods::CHANNEL_CLOSE) if self.questions.open => {
                outbox.method(QUESTIONS, methods::CHANNEL_CLOSE_OK, |_| {});
                self.questions.refused(close_said(&self.peer, method, Doing::Declaring));
                Ok(())
            }
            (0, methods::CONNECTION_BLOCKED) => {
                self.blocked = true;
                Ok(())
            }
            (0, methods::CONNECTION_UNBLOCKED) => {
                self.blocked = false;
                Ok(())
            }
            _ => return Err(close_said(&self.peer, method, Doing::Publishing)),
        };
        taken.map_err(|Malformed| garbled(&self.peer))
    }

    fn answered(&mut self, method: Method, verdict: Verdict) -> Result<(), BusError> {
        let (tag, reach) = answer_of(method.arguments).map_err(|Malformed| garbled(&self.peer))?;
        self.answers.answered(tag, reach, verdict).map_err(|unfit| self.unfit(unfit))?;
        self.settled.extend(std::iter::from_fn(|| self.answers.settle()));
        Ok(())
    }

    fn take_header(&mut self, payload: Bytes) -> Result<(), BusError> {
        let begun = Content::begin(payload).map_err(|Malformed| garbled(&self.peer))?;
        let returning = self.returning.as_mut().ok_or_else(|| garbled(&self.peer))?;
        // Before memory is taken for it.
        if !self.answers.may_return(begun.size()) {
            let key = &returning.routing_key;
            let size = begun.size();
            let said = format!(
                "it returned a message with the routing key `{key}` and {size} bytes that was not sent"
            );
            return Err(lost(&self.peer, said));
        }
        returning.content = Some(begun);
        self.return_if_whole()
    }

    fn take_body(&mut self, payload: Bytes) -> Result<(), BusError> {
        let content = self.returning.as_mut().and_then(|returning| returning.content.as_mut());
        let taken = content.ok_or(Malformed).and_then(|content| content.take_body(payload));
        taken.map_err(|Malformed| garbled(&self.peer))?;
        self.return_if_whole()
    }

    fn return_if_whole(&mut self) -> Result<(), BusError> {
        let whole =
            |returning: &mut Returning| returning.content.as_ref().is_some_and(Content::is_whole);
        let Some(returned) = self.returning.take_if(whole).and_then(Returning::into_returned)
        else {
            return Ok(());
        };
        self.answers.returned(&returned).map_err(|unfit| self.unfit(unfit))
    }

    fn unfit(&self, Unfit(said): Unfit) -> BusError {
        lost(&self.peer, said)
    }
}

impl Questions {
    fn answered(&mut self, depth: u64) {
        self.unanswered = self.unanswered.saturating_sub(1);
        // An earlier answer is to a question that was given up.
        if self.unanswered == 0 {
            self.reply(Ok(depth));
        }
    }

    fn refused(&mut self, error: BusError) {
        (self.open, self.unanswered) = (false, 0);
        self.reply(Err(error));
    }

    fn reply(&mut self, answer: Result<u64, BusError>) {
        if let Some(asker) = self.asker.take()
            && asker.send(answer).is_err()
        {
            tracing::debug!("nobody waits for the depth any more");
        }
    }
}

impl Returning {
    /// Begins with the arguments of `basic.return`.
    fn begin(mut from: Bytes) -> Result<Self, Malformed> {
        let code = from.try_get_u16()?;
        let text = take_short(&mut from)?;
        let (exchange, routing_key) = (take_short(&mut from)?, take_short(&mut from)?);
        Ok(Returning { reason: format!("{code} {text}"), exchange, routing_key, content: None })
    }

    fn into_returned(self) -> Option<Returned> {
        let Returning { reason, exchange, routing_key, content } = self;
        let (properties, _, body) = content?.into_parts();
        Some(Returned { exchange, routing_key, properties, body, reason })
    }
}

fn bytes_of(publish: &Publish) -> usize {
    publish.head().len() + publish.body().len()
}

fn answer_of(mut from: Bytes) -> Result<(u64, Reach), Malformed> {
    let tag = from.try_get_u64()?;
    let reach = if from.try_get_u8()? & 1 == 0 { Reach::One } else { Reach::UpTo };
    Ok((tag, reach))
}

/// Reads how many messages are ready from `queue.declare-ok`.
fn ready(mut from: Bytes) -> Result<u64, Malformed> {
    let _queue = take_short(&mut from)?;
    Ok(u64::from(from.try_get_u32()?))
}

#[cfg(test)]
mod tests;
