//! AMQP topic patterns, as RabbitMQ's topic exchange understands them.
//!
//! A key is words between dots; the empty key has no word, `.` has two empty ones.
//! Matching takes at most words of the pattern times words of the key steps, so that
//! `#.#.#.#` costs no more than it should.

use std::fmt;
use std::str::FromStr;

use dacapo_event::{ParseError, ShortStr};

/// A topic pattern: `*` stands for one word, `#` for any number of words, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern {
    text: String,
    words: Vec<Word>,
    /// What every key that matches begins with.
    prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Literal(String),
    One,
    Any,
}

impl TopicPattern {
    /// Returns whether the routing key matches.
    pub fn matches(&self, key: &[u8]) -> bool {
        let mut at = 0;
        let mut rest = (!key.is_empty()).then_some(key);
        // The last `#`, and the words from which it has not been tried yet. Only the last one
        // needs to be remembered: an earlier one can gain nothing by taking more words.
        let mut retry: Option<(usize, Option<&[u8]>)> = None;
        loop {
            match (self.words.get(at), rest) {
                (None, None) => return true,
                (Some(Word::Any), _) => {
                    at += 1;
                    if at == self.words.len() {
                        return true;
                    }
                    retry = Some((at, rest));
                    continue;
                }
                (Some(word), Some(words)) => {
                    let (first, others) = split_word(words);
                    if word.takes(first) {
                        at += 1;
                        rest = others;
                        continue;
                    }
                }
                _ => {}
            }
            let Some((after, Some(words))) = retry else { return false };
            let (_, others) = split_word(words);
            retry = Some((after, others));
            at = after;
            rest = others;
        }
    }

    /// Returns the only key that matches, if there is only one.
    pub(crate) fn literal(&self) -> Option<&str> {
        self.words.iter().all(|word| matches!(word, Word::Literal(_))).then_some(&self.text)
    }

    /// Returns what every key that matches begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Word {
    fn takes(&self, word: &[u8]) -> bool {
        match self {
            Word::Literal(text) => text.as_bytes() == word,
            Word::One | Word::Any => true,
        }
    }
}

fn split_word(words: &[u8]) -> (&[u8], Option<&[u8]>) {
    match words.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&words[..dot], Some(&words[dot + 1..])),
        None => (words, None),
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
        let word = |word: &str| match word {
            "*" => Word::One,
            "#" => Word::Any,
            literal => Word::Literal(literal.to_owned()),
        };
        let words: Vec<Word> =
            if text.is_empty() { Vec::new() } else { text.split('.').map(word).collect() };
        let mut prefix = String::new();
        for (at, word) in words.iter().enumerate() {
            // No word need follow before a `#`, hence no dot either.
            if at > 0 && *word != Word::Any {
                prefix.push('.');
            }
            match word {
                Word::Literal(literal) => prefix.push_str(literal),
                Word::One | Word::Any => break,
            }
        }
        Ok(TopicPattern { text: text.to_owned(), words, prefix })
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

    #[track_caller]
    fn check(pattern: &str, key: &str, expected: bool) {
        let parsed: TopicPattern = pattern.parse().unwrap();
        assert_eq!(parsed.matches(key.as_bytes()), expected, "`{pattern}` on `{key}`");
    }

    #[test]
    fn words_stand_for_themselves() {
        check("orders.placed", "orders.placed", true);
        check("orders.placed", "orders", false);
        check("orders", "orders.placed", false);
        check("ord*", "orders", false);
        check("ord*", "ord*", true);
    }

    #[test]
    fn a_star_is_one_word_and_a_hash_any_number() {
        check("orders.*", "orders.placed", true);
        check("orders.*", "orders", false);
        check("orders.*", "orders.placed.eu", false);
        check("orders.#", "orders", true);
        check("orders.#", "orders.placed.eu", true);
        check("#.eu", "eu", true);
        check("#.eu", "a.b.eu", true);
        check("#.eu", "a.b.us", false);
        check("a.#.b.#.c", "a.b.x.b.y.c", true);
    }

    #[test]
    fn the_empty_key_has_no_word_and_a_dot_two_empty_ones() {
        check("", "", true);
        check("#", "", true);
        check("*", "", false);
        check("", ".", false);
        check("*.*", ".", true);
        check(".", ".", true);
        check("a.*", "a.", true);
        check("a.", "a", false);
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        let pattern: TopicPattern = vec!["#.a"; 63].join(".").parse().unwrap();
        let key = format!("{}.b", vec!["a"; 120].join("."));
        assert!(!pattern.matches(key.as_bytes()));
        let hashes: TopicPattern = vec!["#"; 127].join(".").parse().unwrap();
        assert!(hashes.matches(key.as_bytes()));
    }

    #[test]
    fn a_pattern_longer_than_any_routing_key_is_refused() {
        let error = "a".repeat(256).parse::<TopicPattern>().unwrap_err();
        assert!(error.to_string().contains("at most 255 bytes"), "{error}");
    }

    /// The definition, word by word, without any cleverness.
    fn naive(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", others)), _) => (0..=key.len()).any(|n| naive(others, &key[n..])),
            (Some((&"*", others)), Some((_, rest))) => naive(others, rest),
            (Some((word, others)), Some((first, rest))) => word == first && naive(others, rest),
            _ => false,
        }
    }

    fn words(text: &str) -> Vec<&str> {
        if text.is_empty() { Vec::new() } else { text.split('.').collect() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn matches_as_the_definition_does(
            pattern in prop::collection::vec("[ab*#]|", 0..7),
            key in prop::collection::vec("[ab]|", 0..7),
        ) {
            let (pattern, key) = (pattern.join("."), key.join("."));
            let parsed: TopicPattern = pattern.parse().unwrap();
            let expected = naive(&words(&pattern), &words(&key));
            prop_assert_eq!(parsed.matches(key.as_bytes()), expected, "`{}` on `{}`", pattern, key);
            if expected {
                prop_assert!(key.starts_with(parsed.prefix()), "`{}` on `{}`", pattern, key);
            }
            prop_assert_eq!(parsed.to_string(), pattern);
        }
    }
}
