//! AMQP topic patterns, as far as the bus in memory and bindings need them.

/// Returns whether `pattern` (words between dots; `*` is one word, `#` any number) matches `key`.
pub(crate) fn matches(pattern: &[u8], key: &[u8]) -> bool {
    if pattern == b"#" {
        return true;
    }
    let pattern: Vec<&[u8]> = words(pattern);
    let key: Vec<&[u8]> = words(key);
    let (mut at_pattern, mut at_key) = (0, 0);
    // The last `#` seen and how far the key was then: where to go back to and let it take one more.
    let mut retry: Option<(usize, usize)> = None;
    while at_key < key.len() {
        match pattern.get(at_pattern) {
            Some(&b"#") => {
                retry = Some((at_pattern, at_key));
                at_pattern += 1;
            }
            Some(&word) if word == b"*" || word == key[at_key] => {
                at_pattern += 1;
                at_key += 1;
            }
            _ => match &mut retry {
                Some((hash, taken)) => {
                    *taken += 1;
                    at_pattern = *hash + 1;
                    at_key = *taken;
                }
                None => return false,
            },
        }
    }
    pattern[at_pattern..].iter().all(|word| *word == b"#")
}

/// The empty key has no words, so that `#` matches it and `*` does not.
fn words(text: &[u8]) -> Vec<&[u8]> {
    if text.is_empty() { Vec::new() } else { text.split(|byte| *byte == b'.').collect() }
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn check(pattern: &str, key: &str, expected: bool) {
        assert_eq!(super::matches(pattern.as_bytes(), key.as_bytes()), expected, "{pattern} {key}");
    }

    #[test]
    fn words_and_wildcards() {
        check("orders.placed", "orders.placed", true);
        check("orders.placed", "orders.paid", false);
        check("orders.*", "orders.placed", true);
        check("orders.*", "orders", false);
        check("orders.*", "orders.placed.eu", false);
        check("orders.#", "orders", true);
        check("orders.#", "orders.placed.eu", true);
        check("#", "", true);
        check("*", "", false);
        check("#.eu", "orders.placed.eu", true);
        check("#.eu", "eu", true);
        check("#.placed.#", "a.b.placed.c", true);
        check("#.placed.#", "a.b.c", false);
        check("*.#.*", "a", false);
        check("*.#.*", "a.b", true);
        check("#.#", "", true);
        check("a.#.b.#.c", "a.b.b.x.c", true);
        check("a.#.b.#.c", "a.x.c", false);
    }
}
