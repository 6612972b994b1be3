//! Topic patterns of a selection, and what they tell of the keys that match.

use std::fmt;
use std::str::FromStr;

use dacapo_event::{ParseError, ShortStr, topic};

/// A topic pattern: `*` stands for one word, `#` for any number of words, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern {
    text: String,
    /// What every key that matches begins with.
    prefix: String,
}

impl TopicPattern {
    /// Returns whether the routing key matches.
    pub fn matches(&self, key: &[u8]) -> bool {
        topic::matches(self.text.as_bytes(), key)
    }

    /// Returns the only key that matches, if there is only one.
    pub(crate) fn literal(&self) -> Option<&str> {
        let literal = self.text.split('.').all(|word| !matches!(word, "*" | "#"));
        literal.then_some(&self.text)
    }

    /// Returns what every key that matches begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl FromStr for TopicPattern {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() > ShortStr::BYTES_MAX {
            return Err(ParseError::new(
                text,
                "a topic pattern of at most 255 bytes (for example `orders.*.placed` or `orders.#`)",
            ));
        }
        let mut prefix = String::new();
        for (at, word) in text.split('.').enumerate() {
            // No word need follow before a `#`, hence no dot either.
            if at > 0 && word != "#" {
                prefix.push('.');
            }
            match word {
                "*" | "#" => break,
                literal => prefix.push_str(literal),
            }
        }
        Ok(TopicPattern { text: text.to_owned(), prefix })
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_longer_than_any_routing_key_is_refused() {
        let error = "a".repeat(256).parse::<TopicPattern>().unwrap_err();
        assert!(error.to_string().contains("at most 255 bytes"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn what_matches_has_the_prefix_and_is_the_literal(
            pattern in prop::collection::vec("[ab*#]|", 0..7),
            key in prop::collection::vec("[ab]|", 0..7),
        ) {
            let (pattern, key) = (pattern.join("."), key.join("."));
            let parsed: TopicPattern = pattern.parse().unwrap();
            if parsed.matches(key.as_bytes()) {
                prop_assert!(key.starts_with(parsed.prefix()), "`{}` on `{}`", pattern, key);
                prop_assert!(parsed.literal().is_none_or(|literal| literal == key));
            }
            prop_assert_eq!(parsed.to_string(), pattern);
        }
    }
}
