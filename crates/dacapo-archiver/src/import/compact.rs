//! Takes the insignificant white space out of JSON and leaves every other byte as it was.

/// Returns the same JSON in compact form. `json` must be valid.
pub(super) fn compact(json: &str) -> Vec<u8> {
    let bytes = json.as_bytes();
    let mut compact = Vec::with_capacity(bytes.len());
    let (mut start, mut at) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = after_string(bytes, at + 1),
            b' ' | b'\t' | b'\n' | b'\r' => {
                compact.extend_from_slice(&bytes[start..at]);
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    compact.extend_from_slice(&bytes[start.min(bytes.len())..]);
    compact
}

/// Returns the offset after the closing quote of the string whose content begins at `at`.
fn after_string(bytes: &[u8], mut at: usize) -> usize {
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: &str) {
        assert_eq!(String::from_utf8(compact(json)).unwrap(), expected);
    }

    #[test]
    fn only_white_space_outside_strings_goes() {
        check("{}", "{}");
        check(" { \"a\" : [ 1 ,\t2 ] } ", r#"{"a":[1,2]}"#);
        check(r#"{"a b" : "c \" d\\" , "e":" "}"#, r#"{"a b":"c \" d\\","e":" "}"#);
        check("\r\n null\n", "null");
        check(r#"  "é \\"  "#, r#""é \\""#);
    }

    #[test]
    fn members_and_numbers_stay_as_they_were() {
        check(
            r#"{"z": 1e400, "a": 0.10, "z": 123456789012345678901234567890, "u": "\u00e9"}"#,
            r#"{"z":1e400,"a":0.10,"z":123456789012345678901234567890,"u":"\u00e9"}"#,
        );
    }
}
