//! Percent-encoding, as URLs have it: what `%XX` stands for.
//!
//! Only decoding is shared. What is left as it is differs between places (keys of objects, URLs), and
//! a key must never change its form.

/// Returns text with each `%XX` resolved, if the escapes are whole and the result is UTF-8.
pub fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let (digits, after) = after.split_at_checked(2)?;
        // `from_str_radix` takes a sign, too.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(decoded(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn escapes_stand_for_bytes_and_everything_else_for_itself() {
        check("", Some(""));
        check("%2fshop%20%C3%A9", Some("/shop é"));
        check("100%25", Some("100%"));
        check("é%41", Some("éA"));
    }

    #[test]
    fn what_is_no_escape_or_no_text_is_refused() {
        for text in ["%", "%4", "%4x", "%+f", "%-1", "%é", "%ff", "a%C3b"] {
            check(text, None);
        }
    }
}
