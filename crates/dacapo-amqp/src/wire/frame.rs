//! Frames: cut out of what the socket gave, and put together for it.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_event::ShortStr;

use super::Malformed;

/// The largest frame we accept, header and end octet included: RabbitMQ's default `frame_max`.
pub(crate) const FRAME_BYTES_MAX: u32 = 131_072;

/// The smallest `frame_max` that AMQP knows (specification, section 4.2.3).
pub(crate) const FRAME_BYTES_MIN: u32 = 4_096;

/// Type, channel and length before a frame's payload.
pub(crate) const HEAD_BYTES: usize = 7;
/// The octet after a frame's payload, and its value.
pub(crate) const END_BYTES: usize = 1;
const END: u8 = 0xce;

/// Room for what one read of a busy socket returns; more would not be filled.
const INBOX_BYTES: usize = 512 * 1024;

/// The kinds of frame.
pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
pub(crate) const HEARTBEAT: u8 = 8;

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Bytes,
}

/// Bytes received and not yet taken as frames.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    held: Range<usize>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Inbox { bytes: vec![0; INBOX_BYTES].into_boxed_slice(), held: 0..0 }
    }

    /// Returns the room for the next read; never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.held.end < FRAME_BYTES_MAX as usize {
            self.bytes.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        &mut self.bytes[self.held.end..]
    }

    /// Takes in the first `count` bytes of the room.
    pub(crate) fn filled(&mut self, count: usize) {
        self.held.end += count;
    }

    /// Returns the next whole frame, if it has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        let held = &self.bytes[self.held.clone()];
        let Some(mut head) = held.get(..HEAD_BYTES) else { return Ok(None) };
        let (kind, channel, length) = (head.get_u8(), head.get_u16(), head.get_u32());
        if length > FRAME_BYTES_MAX {
            return Err(Malformed);
        }
        let end = HEAD_BYTES + length as usize;
        match held.get(end) {
            None => Ok(None),
            Some(&END) => {
                let payload = Bytes::copy_from_slice(&held[HEAD_BYTES..end]);
                self.held.start += end + END_BYTES;
                Ok(Some(Frame { kind, channel, payload }))
            }
            Some(_) => Err(Malformed),
        }
    }
}

/// Frames on their way out, whole ones but for what was already written of the first.
#[derive(Debug, Default)]
pub(crate) struct Outbox(BytesMut);

impl Outbox {
    /// Adds a method frame; `arguments` writes what follows the method's number.
    pub(crate) fn method(
        &mut self,
        channel: u16,
        number: (u16, u16),
        arguments: impl FnOnce(&mut BytesMut),
    ) {
        put_method(&mut self.0, channel, number, arguments);
    }

    /// Adds a frame with a piece of a body.
    pub(crate) fn body(&mut self, channel: u16, piece: &[u8]) {
        put_frame(&mut self.0, BODY, channel, |to| to.put_slice(piece));
    }

    /// Adds frames that were put together before.
    pub(crate) fn frames(&mut self, frames: &[u8]) {
        self.0.put_slice(frames);
    }

    pub(crate) fn heartbeat(&mut self) {
        put_frame(&mut self.0, HEARTBEAT, 0, |_| {});
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Forgets the first `count` bytes, which were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.0.advance(count);
    }

    pub(crate) fn take(&mut self) -> BytesMut {
        self.0.split()
    }
}

/// Writes a method frame; `arguments` writes what follows the method's number.
pub(crate) fn put_method(
    to: &mut BytesMut,
    channel: u16,
    (class, method): (u16, u16),
    arguments: impl FnOnce(&mut BytesMut),
) {
    put_frame(to, METHOD, channel, |to| {
        to.put_u16(class);
        to.put_u16(method);
        arguments(to);
    });
}

/// Writes a frame around what `payload` writes.
pub(crate) fn put_frame(
    to: &mut BytesMut,
    kind: u8,
    channel: u16,
    payload: impl FnOnce(&mut BytesMut),
) {
    to.put_u8(kind);
    to.put_u16(channel);
    put_counted(to, payload);
    to.put_u8(END);
}

/// Writes what `content` writes, with its length in four octets before it.
pub(crate) fn put_counted(to: &mut BytesMut, content: impl FnOnce(&mut BytesMut)) {
    let at = to.len();
    to.put_u32(0);
    let begin = to.len();
    content(to);
    let length = u32::try_from(to.len() - begin).expect("what we write is shorter than a frame");
    to[at..begin].copy_from_slice(&length.to_be_bytes());
}

/// Takes a short string.
pub(crate) fn take_short(from: &mut Bytes) -> Result<ShortStr, Malformed> {
    let length = from.try_get_u8()?;
    let bytes = take(from, usize::from(length))?;
    Ok(ShortStr::new(bytes).expect("the length is one octet"))
}

/// Takes a long string.
pub(crate) fn take_long(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = from.try_get_u32()?;
    take(from, length as usize)
}

pub(crate) fn take(from: &mut Bytes, count: usize) -> Result<Bytes, Malformed> {
    if count > from.len() {
        return Err(Malformed);
    }
    Ok(from.split_to(count))
}

/// Writes a short string.
///
/// # Panics
/// More than 255 bytes: names are checked where they come in.
pub(crate) fn put_short(to: &mut BytesMut, text: &[u8]) {
    to.put_u8(u8::try_from(text.len()).expect("checked to be at most 255 bytes"));
    to.put_slice(text);
}

/// Writes a long string.
pub(crate) fn put_long(to: &mut BytesMut, bytes: &[u8]) {
    to.put_u32(u32::try_from(bytes.len()).expect("shorter than a frame"));
    to.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(inbox: &mut Inbox, bytes: &[u8]) {
        inbox.room()[..bytes.len()].copy_from_slice(bytes);
        inbox.filled(bytes.len());
    }

    #[test]
    fn a_frame_comes_out_once_it_is_whole() {
        let mut out = Outbox::default();
        out.method(7, (60, 80), |to| to.put_u64(3));
        out.heartbeat();
        let bytes = out.take();

        let mut inbox = Inbox::new();
        let mut frames = Vec::new();
        for byte in &bytes {
            fill(&mut inbox, &[*byte]);
            frames.extend(inbox.next().unwrap());
        }
        let payload = Bytes::from_static(&[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 3]);
        let empty = Bytes::new();
        assert_eq!(
            frames,
            [
                Frame { kind: METHOD, channel: 7, payload },
                Frame { kind: HEARTBEAT, channel: 0, payload: empty }
            ]
        );
    }

    #[test]
    fn more_bytes_than_the_inbox_holds_pass_through_it() {
        let mut inbox = Inbox::new();
        let body = vec![5; 100_000];
        let mut out = Outbox::default();
        out.body(1, &body);
        let frame = out.take();
        for _ in 0..40 {
            for part in frame.chunks(33_333) {
                fill(&mut inbox, part);
            }
            assert_eq!(inbox.next().unwrap().unwrap().payload, body);
        }
    }

    #[test]
    fn a_frame_too_long_or_without_its_end_is_refused() {
        let mut inbox = Inbox::new();
        fill(&mut inbox, &[BODY, 0, 1, 0xff, 0, 0, 0]);
        assert_eq!(inbox.next(), Err(Malformed));
        let mut inbox = Inbox::new();
        fill(&mut inbox, &[BODY, 0, 1, 0, 0, 0, 1, b'x', b'y']);
        assert_eq!(inbox.next(), Err(Malformed));
    }
}
