//! Text as it stands in URLs and object keys: `%XX` for what may mean something there.
//!
//! Keys of objects that are there already keep the form that `dacapo_archive::layout` gives them.

/// Returns text in which only letters, digits and `-._~` stand for themselves.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Returns text with `%XX` resolved; nothing if a `%` has not two hexadecimal digits after it, or the
/// outcome is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        // A sign, which numbers may have, is no digit.
        let digits =
            after.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_means_something_in_a_url_is_encoded() {
        assert_eq!(encode("/"), "%2F");
        assert_eq!(encode("a-b_c.d~9 é@:#%"), "a-b_c.d~9%20%C3%A9%40%3A%23%25");
    }

    #[test]
    fn what_is_no_encoding_is_refused() {
        assert_eq!(decode("%2f%2F+"), Some("//+".to_owned()));
        for bad in ["%", "%2", "%+1", "%-1", "% 1", "%zz", "%é", "%ff", "a%2"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in any::<String>()) {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }
    }
}
