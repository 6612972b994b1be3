//! The names that become part of object keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ParseError;

/// The name of a stream: 1 to 100 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
///
/// It is a directory name in the archive, so the alphabet is what every store and
/// query engine passes on unescaped. A clone is cheap: each event that is read has one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

impl StreamName {
    /// The most characters: leaves room for the rest of a 255-byte file name.
    pub const CHARS_MAX: usize = 100;

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the nearest valid name: other characters become `-`, the rest is cut.
    pub fn nearest(text: &str) -> Self {
        let kept: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .skip_while(|c| !c.is_ascii_alphanumeric())
            .take(Self::CHARS_MAX)
            .collect();
        StreamName(if kept.is_empty() { "stream".into() } else { kept.into() })
    }
}

impl FromStr for StreamName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let valid = text.len() <= Self::CHARS_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if valid {
            Ok(StreamName(text.into()))
        } else {
            Err(ParseError::new(
                text,
                "a stream name (1 to 100 letters, digits, `.`, `_` or `-`, beginning with a letter or digit)",
            ))
        }
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "-x", "é", &"a".repeat(101)] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad}");
            let nearest = StreamName::nearest(bad);
            assert_eq!(nearest.as_str().parse(), Ok(nearest.clone()), "{bad}");
        }
    }
}
