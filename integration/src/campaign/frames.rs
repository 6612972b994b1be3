//! AMQP 0-9-1 frames, as far as a proxy must know them.

/// `AMQP0091`, what a client sends before its first frame.
const PROTOCOL_HEADER_BYTES: usize = 8;

/// Type, channel and size before the payload.
const HEAD_BYTES: usize = 7;

/// The end mark after it.
const END_BYTES: usize = 1;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;

const CONNECTION: u16 = 10;
const BLOCKED: u16 = 60;
const CHANNEL: u16 = 20;
const CLOSE: u16 = 40;
const BASIC: u16 = 60;
const PUBLISH: u16 = 40;
const DELIVER: u16 = 60;
const ACK: u16 = 80;
const NACK: u16 = 120;

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct Frames {
    /// The protocol header passes as one frame.
    header: bool,
    bytes: Vec<u8>,
    channel: u16,
    /// Bytes of a body that are still to come, or nothing if no message is under way.
    body: Option<Option<u64>>,
}

impl Frames {
    /// Returns one for a stream that begins with the protocol header, or with a frame.
    pub fn new(header: bool) -> Self {
        Frames { header, bytes: Vec::new(), channel: 0, body: None }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole frame.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let length = match self.header {
            true => PROTOCOL_HEADER_BYTES,
            false => {
                let size = self.bytes.get(3..HEAD_BYTES)?.try_into().expect("four bytes");
                HEAD_BYTES + usize::try_from(u32::from_be_bytes(size)).ok()? + END_BYTES
            }
        };
        if self.bytes.len() < length {
            return None;
        }
        let frame: Vec<u8> = self.bytes.drain(..length).collect();
        if !self.header {
            self.follow(&Frame::of(&frame));
        }
        self.header = false;
        Some(frame)
    }

    /// Returns whether a method may be put in after the last frame taken: not between a message
    /// and its body.
    pub fn is_between_messages(&self) -> bool {
        self.body.is_none() && self.bytes.is_empty()
    }

    /// Returns the highest channel seen, 0 if none is open.
    pub fn channel(&self) -> u16 {
        self.channel
    }

    fn follow(&mut self, frame: &Frame<'_>) {
        self.channel = self.channel.max(frame.channel());
        if frame.is_publish() {
            self.body = Some(None);
        } else if let (HEADER, Some(size)) = (frame.kind(), frame.number(4)) {
            self.body = (size > 0).then_some(Some(size));
        } else if let (BODY, Some(Some(left))) = (frame.kind(), self.body) {
            let left = left.saturating_sub(frame.payload().len() as u64);
            self.body = (left > 0).then_some(Some(left));
        }
    }
}

/// One frame.
#[derive(Debug)]
pub struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    /// Returns the frame that these bytes are.
    pub fn of(bytes: &'a [u8]) -> Self {
        Frame(bytes)
    }

    /// Returns it whole.
    pub fn bytes(&self) -> &[u8] {
        self.0
    }

    /// Returns the frame of an ack of a delivery that never was, for which a broker closes the
    /// channel.
    pub fn wrong_ack(channel: u16) -> Vec<u8> {
        let mut payload = [BASIC.to_be_bytes(), ACK.to_be_bytes()].concat();
        payload.extend(u64::from(u32::MAX).to_be_bytes());
        payload.push(0);
        let size = u32::try_from(payload.len()).expect("it is short");
        let head = [&[METHOD][..], &channel.to_be_bytes(), &size.to_be_bytes()].concat();
        [&head[..], &payload, &[FRAME_END]].concat()
    }

    /// Returns its channel.
    pub fn channel(&self) -> u16 {
        self.0.get(1..3).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Returns whether it begins a message to publish.
    pub fn is_publish(&self) -> bool {
        self.is_method(BASIC, PUBLISH)
    }

    /// Returns whether a message is delivered with it.
    pub fn is_delivery(&self) -> bool {
        self.is_method(BASIC, DELIVER)
    }

    /// Returns whether it says that messages are handled, or that the broker has them.
    pub fn is_ack(&self) -> bool {
        self.is_method(BASIC, ACK)
    }

    /// Returns whether it refuses messages.
    pub fn is_nack(&self) -> bool {
        self.is_method(BASIC, NACK)
    }

    /// Returns whether it closes a channel.
    pub fn is_channel_close(&self) -> bool {
        self.is_method(CHANNEL, CLOSE)
    }

    /// Returns whether it tells that the broker takes nothing from this connection for now.
    pub fn is_blocked(&self) -> bool {
        self.is_method(CONNECTION, BLOCKED)
    }

    /// Returns the tag of a confirm, of an ack or a nack, and whether it is for all before it too.
    pub fn confirm(&self) -> Option<(u64, bool)> {
        let confirms = self.is_method(BASIC, ACK) || self.is_nack();
        let flags = *self.payload().get(12)?;
        confirms.then_some((self.number(4)?, flags & 1 == 1))
    }

    fn kind(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    fn payload(&self) -> &[u8] {
        self.0.get(HEAD_BYTES..self.0.len().saturating_sub(END_BYTES)).unwrap_or_default()
    }

    fn is_method(&self, class: u16, method: u16) -> bool {
        let name = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.kind() == METHOD && self.payload().starts_with(&name)
    }

    /// Returns the eight bytes of the payload from here as a number.
    fn number(&self, at: usize) -> Option<u64> {
        let bytes = self.payload().get(at..at + 8)?.try_into().expect("eight bytes");
        Some(u64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[FRAME_END]].concat()
    }

    #[test]
    fn frames_are_cut_whatever_the_chunks() {
        let publish = frame(METHOD, &[0, 60, 0, 40, 0, 0]);
        let header = frame(HEADER, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0]);
        let body = frame(BODY, b"abc");
        let all = [&b"AMQP\x00\x00\x09\x01"[..], &publish, &header, &body].concat();
        let mut frames = Frames::new(true);
        let mut found = Vec::new();
        let mut between = Vec::new();
        for byte in all {
            frames.push(&[byte]);
            if let Some(frame) = frames.take() {
                found.push(frame);
                between.push(frames.is_between_messages());
            }
        }
        assert_eq!(found[1..], [publish, header, body]);
        assert_eq!(between, [true, false, false, true]);
        assert!(Frame::of(&found[1]).is_publish());
        assert_eq!(frames.channel(), 1);
    }

    #[test]
    fn confirms_are_read() {
        let ack = frame(METHOD, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 9, 1]);
        assert_eq!(Frame::of(&ack).confirm(), Some((9, true)));
        let wrong = Frame::wrong_ack(3);
        assert_eq!(Frame::of(&wrong).confirm(), Some((u64::from(u32::MAX), false)));
        assert_eq!(Frame::of(&wrong).channel(), 3);
        assert_eq!(Frame::of(&frame(BODY, b"abc")).confirm(), None);
    }

    #[test]
    fn what_a_broker_does_to_a_connection_is_read() {
        let closed = frame(METHOD, &[0, 20, 0, 40, 1, 150]);
        let blocked = frame(METHOD, &[0, 10, 0, 60, 3]);
        assert!(Frame::of(&closed).is_channel_close() && !Frame::of(&closed).is_blocked());
        assert!(Frame::of(&blocked).is_blocked() && !Frame::of(&blocked).is_channel_close());
    }
}
