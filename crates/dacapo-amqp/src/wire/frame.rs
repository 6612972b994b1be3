//! Frames: cut out of what the socket gave, and put together for it.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_event::ShortStr;

use super::Malformed;

/// The largest frame we accept, header and end octet included: RabbitMQ's default `frame_max`.
pub(crate) const FRAME_BYTES_MAX: u32 = 131_072;

/// Type, channel and length before a frame's payload.
const HEAD_BYTES: usize = 7;
/// The octet after a frame's payload, and its value.
const END_BYTES: usize = 1;
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

/// Frames on their way out.
#[derive(Debug, Default)]
pub(crate) struct Outbox(BytesMut);

impl Outbox {
    /// Adds a method frame; `arguments` writes what follows the method's number.
    pub(crate) fn method(
        &mut self,
        channel: u16,
        (class, method): (u16, u16),
        arguments: impl FnOnce(&mut BytesMut),
    ) {
        let mut payload = BytesMut::new();
        payload.put_u16(class);
        payload.put_u16(method);
        arguments(&mut payload);
        self.frame(METHOD, channel, &payload);
    }

    pub(crate) fn heartbeat(&mut self) {
        self.frame(HEARTBEAT, 0, &[]);
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("our own frames are small");
        self.0.put_u8(kind);
        self.0.put_u16(channel);
        self.0.put_u32(length);
        self.0.put_slice(payload);
        self.0.put_u8(END);
    }

    pub(crate) fn take(&mut self) -> BytesMut {
        self.0.split()
    }
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
        out.frame(BODY, 1, &body);
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
