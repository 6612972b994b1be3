//! AMQP short strings: at most 255 bytes, usually but not always UTF-8.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use crate::EventError;

/// A short string as the bus had it: at most 255 bytes.
///
/// AMQP says UTF-8, RabbitMQ does not check, so the bytes are kept.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortStr(Bytes);

impl ShortStr {
    /// The most bytes that the protocol's length octet can say.
    pub const BYTES_MAX: usize = 255;

    /// Returns the short string of these bytes.
    ///
    /// # Errors
    /// More than 255 bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, EventError> {
        let bytes = bytes.into();
        if bytes.len() > Self::BYTES_MAX {
            let start = String::from_utf8_lossy(&bytes[..40]).into_owned();
            return Err(EventError::ShortStringTooLong { start, bytes: bytes.len() });
        }
        Ok(ShortStr(bytes))
    }

    /// Returns a short string of program text.
    ///
    /// # Panics
    /// More than 255 bytes; use [`ShortStr::new`] for anything not written in the source.
    pub const fn from_static(text: &'static str) -> Self {
        assert!(text.len() <= Self::BYTES_MAX, "a short string has at most 255 bytes");
        ShortStr(Bytes::from_static(text.as_bytes()))
    }

    /// Returns the bytes as they were on the bus.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes as they were on the bus, shared and not copied.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Returns the text, or nothing if the bytes are not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Returns the text with every byte that is not UTF-8 replaced by U+FFFD.
    pub fn to_str_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<&str> for ShortStr {
    type Error = EventError;

    fn try_from(text: &str) -> Result<Self, EventError> {
        ShortStr::new(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl TryFrom<String> for ShortStr {
    type Error = EventError;

    fn try_from(text: String) -> Result<Self, EventError> {
        ShortStr::new(text)
    }
}

impl fmt::Display for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_str_lossy())
    }
}

impl fmt::Debug for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_str_lossy())
    }
}
