//! AMQP topic patterns, as RabbitMQ's topic exchange understands them.
//!
//! A key is words between dots; the empty key has no word, `.` has two empty ones.
//! Matching takes at most words of the pattern times words of the key steps, so that
//! `#.#.#.#` costs no more than it should, and no memory.

/// Returns whether `pattern` matches `key`: in it `*` stands for one word, `#` for any number of
/// words, also none.
pub fn matches(pattern: &[u8], key: &[u8]) -> bool {
    let mut left = (!pattern.is_empty()).then_some(pattern);
    let mut rest = (!key.is_empty()).then_some(key);
    // What follows the last `#`, and the words from which it has not been tried yet. Only the last
    // one needs to be remembered: an earlier one can gain nothing by taking more words.
    let mut retry: Option<(&[u8], Option<&[u8]>)> = None;
    loop {
        match (left.map(split_word), rest) {
            (None, None) => return true,
            (Some((b"#", None)), _) => return true,
            (Some((b"#", Some(after))), _) => {
                left = Some(after);
                retry = Some((after, rest));
                continue;
            }
            (Some((word, after)), Some(words)) => {
                let (first, others) = split_word(words);
                if word == b"*" || word == first {
                    left = after;
                    rest = others;
                    continue;
                }
            }
            _ => {}
        }
        let Some((after, Some(words))) = retry else { return false };
        let (_, others) = split_word(words);
        retry = Some((after, others));
        left = Some(after);
        rest = others;
    }
}

/// Returns whether every key that `narrow` matches, `wide` matches, too. Where that cannot be told word
/// by word it says no.
pub fn covers(wide: &[u8], narrow: &[u8]) -> bool {
    let words = |pattern: &'_ [u8]| -> Vec<Vec<u8>> {
        let mut words: Vec<Vec<u8>> = match pattern.is_empty() {
            true => Vec::new(),
            false => pattern.split(|byte| *byte == b'.').map(<[u8]>::to_vec).collect(),
        };
        // Several are one.
        words.dedup_by(|next, kept| kept == b"#" && next == b"#");
        words
    };
    let (wide, narrow) = (words(wide), words(narrow));
    // Whether the rest of `wide` from each place covers the rest of `narrow`, from its end on.
    let mut covered = vec![false; wide.len() + 1];
    covered[wide.len()] = true;
    for at in (0..wide.len()).rev() {
        covered[at] = wide[at] == b"#" && covered[at + 1];
    }
    for word in narrow.iter().rev() {
        let after = covered.clone();
        covered[wide.len()] = false;
        for at in (0..wide.len()).rev() {
            covered[at] = match wide[at].as_slice() {
                b"#" => covered[at + 1] || after[at],
                b"*" => word != b"#" && after[at + 1],
                literal => literal == word && word != b"*" && after[at + 1],
            };
        }
    }
    covered[0]
}

fn split_word(words: &[u8]) -> (&[u8], Option<&[u8]>) {
    match words.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&words[..dot], Some(&words[dot + 1..])),
        None => (words, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[track_caller]
    fn check(pattern: &str, key: &str, expected: bool) {
        let found = super::matches(pattern.as_bytes(), key.as_bytes());
        assert_eq!(found, expected, "`{pattern}` on `{key}`");
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
        check("*.#.*", "a", false);
        check("*.#.*", "a.b", true);
        check("a.#.b.#.c", "a.b.x.b.y.c", true);
        check("a.#.b.#.c", "a.x.c", false);
    }

    #[test]
    fn the_empty_key_has_no_word_and_a_dot_two_empty_ones() {
        check("", "", true);
        check("#", "", true);
        check("#.#", "", true);
        check("*", "", false);
        check("", ".", false);
        check("*.*", ".", true);
        check(".", ".", true);
        check("a.*", "a.", true);
        check("a.", "a", false);
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        let key = format!("{}.b", vec!["a"; 120].join("."));
        check(&vec!["#.a"; 63].join("."), &key, false);
        check(&vec!["#"; 127].join("."), &key, true);
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
            let found = super::matches(pattern.as_bytes(), key.as_bytes());
            let expected = naive(&words(&pattern), &words(&key));
            prop_assert_eq!(found, expected, "`{}` on `{}`", pattern, key);
        }
    }
    #[test]
    fn a_pattern_covers_what_is_narrower() {
        let covers = |wide: &str, narrow: &str| super::covers(wide.as_bytes(), narrow.as_bytes());
        for (wide, narrow) in [
            ("#", "#"),
            ("#", ""),
            ("#.#", "#"),
            ("orders.#", "orders.*.eu"),
            ("orders.*", "orders.placed"),
            ("*.*", "a.*"),
            ("#.eu", "orders.#.eu"),
            ("", ""),
        ] {
            assert!(covers(wide, narrow), "`{wide}` over `{narrow}`");
        }
        for (wide, narrow) in [
            ("*", "#"),
            ("orders.*", "orders.#"),
            ("a", "*"),
            ("", "#"),
            ("*.#", "#"),
            ("a.b", "a"),
        ] {
            assert!(!covers(wide, narrow), "`{wide}` over `{narrow}`");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn what_is_covered_is_matched(
            wide in prop::collection::vec("[ab*#]|", 0..5),
            narrow in prop::collection::vec("[ab*#]|", 0..5),
            key in prop::collection::vec("[ab]|", 0..6),
        ) {
            let (wide, narrow, key) = (wide.join("."), narrow.join("."), key.join("."));
            let matches = |pattern: &str| super::matches(pattern.as_bytes(), key.as_bytes());
            if super::covers(wide.as_bytes(), narrow.as_bytes()) && matches(&narrow) {
                prop_assert!(matches(&wide), "`{}` over `{}` on `{}`", wide, narrow, key);
            }
        }
    }
}
