//! Where entries are under a prefix, and how the state is written. Pure.
//!
//! | key | value |
//! |---|---|
//! | `PREFIXstate` | version, the highest age, and of ids and keys: how many, and the age that none is below |
//! | `PREFIXi` and an id's digest | its age |
//! | `PREFIXI` and an age | the digest of the id |
//! | `PREFIXk` and a key's digest | its age and newest position |
//! | `PREFIXK` and an age | the digest of the key |

use std::fmt;

use dacapo_event::Digest;

use super::Trouble;

/// Short, because each entry has it twice.
const PREFIX_MAX: usize = 200;

/// What is written here; another layout is another number.
const VERSION: &str = "1";

/// No age comes to this: at a million records a second that takes 2,000 years.
const AGE_END: u64 = 1 << 56;

/// Which entries are meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    named: u8,
    aged: u8,
}

pub(super) const IDS: Kind = Kind { named: b'i', aged: b'I' };
pub(super) const KEYS: Kind = Kind { named: b'k', aged: b'K' };

/// The keys under one prefix.
#[derive(Debug)]
pub(super) struct Keys(String);

impl Keys {
    /// Of two such prefixes one may be a folder in the other; still their keys do not meet, for after the
    /// kind a key has 32 bytes of a digest or an age that begins with 0.
    pub(super) fn under(prefix: &str) -> Result<Self, Trouble> {
        let printable = prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if printable && prefix.len() <= PREFIX_MAX && prefix.ends_with('/') {
            Ok(Keys(prefix.to_owned()))
        } else {
            Err(Trouble::Prefix(prefix.chars().take(PREFIX_MAX).collect()))
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.0
    }

    pub(super) fn state(&self) -> Vec<u8> {
        self.key(b"state", b"")
    }

    pub(super) fn named(&self, kind: Kind, name: &Digest) -> Vec<u8> {
        self.named_bytes(kind, name.as_bytes())
    }

    pub(super) fn named_bytes(&self, kind: Kind, digest: &[u8]) -> Vec<u8> {
        self.key(&[kind.named], digest)
    }

    /// These sort as ages do.
    pub(super) fn aged(&self, kind: Kind, age: u64) -> Vec<u8> {
        self.key(&[kind.aged], &age.to_be_bytes())
    }

    /// Returns where the entries by age of this kind begin and end. Their first byte after the kind is 0,
    /// so that no other prefix can lie among them.
    pub(super) fn all_aged(&self, kind: Kind) -> (Vec<u8>, Vec<u8>) {
        (self.aged(kind, 0), self.aged(kind, AGE_END))
    }

    /// Returns the age in a key of [`Keys::aged`].
    pub(super) fn age_of(&self, key: &[u8]) -> Result<u64, Trouble> {
        let age = key.get(self.0.len() + 1..).and_then(|age| age.try_into().ok());
        let foreign = || Trouble::Foreign(format!("a key of {} bytes", key.len()));
        age.map(u64::from_be_bytes).ok_or_else(foreign)
    }

    fn key(&self, kind: &[u8], rest: &[u8]) -> Vec<u8> {
        [self.0.as_bytes(), kind, rest].concat()
    }
}

/// What etcd would have to walk through all entries for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The highest there is.
    pub(super) age: u64,
    pub(super) ids: Line,
    pub(super) keys: Line,
}

/// Entries of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) count: u64,
    /// No entry is older than this.
    pub(super) oldest: u64,
}

impl State {
    pub(super) fn parse(value: &[u8]) -> Result<Self, Trouble> {
        let text = String::from_utf8_lossy(value);
        let numbers = text.strip_prefix(VERSION).and_then(|rest| rest.strip_prefix(' '));
        let numbers: Option<Vec<u64>> =
            numbers.and_then(|numbers| numbers.split(' ').map(|word| word.parse().ok()).collect());
        match numbers.as_deref() {
            Some(&[age, ids, oldest_id, keys, oldest_key]) if age < AGE_END => Ok(State {
                age,
                ids: Line { count: ids, oldest: oldest_id },
                keys: Line { count: keys, oldest: oldest_key },
            }),
            _ => Err(Trouble::Foreign(format!("a state of {} bytes", value.len()))),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { age, ids, keys } = self;
        write!(f, "{VERSION} {age} {} {} {} {}", ids.count, ids.oldest, keys.count, keys.oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_prefix(prefix: &str, told: Option<&str>) {
        let refused = Keys::under(prefix).err().map(|trouble| trouble.to_string());
        assert_eq!(refused.as_deref(), told);
    }

    #[test]
    fn a_prefix_is_a_folder_that_can_be_typed() {
        const RULE: &str = "is no prefix: up to 200 printable ASCII characters that end with `/`";
        check_prefix("services/orders/", None);
        check_prefix("/", None);
        check_prefix("", Some(&format!("`` {RULE}")));
        check_prefix("orders", Some(&format!("`orders` {RULE}")));
        check_prefix("or ders/", Some(&format!("`or ders/` {RULE}")));
        check_prefix("örders/", Some(&format!("`örders/` {RULE}")));
        check_prefix(&format!("{}/", "x".repeat(199)), None);
        let long = "x".repeat(200);
        check_prefix(&format!("{long}/"), Some(&format!("`{long}` {RULE}")));
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_nothing_else_is() {
        let (ids, keys) = (Line { count: 2, oldest: 7 }, Line { count: 0, oldest: u64::MAX });
        let state = State { age: 9, ids, keys };
        assert_eq!(state.to_string(), format!("1 9 2 7 0 {}", u64::MAX));
        assert_eq!(State::parse(state.to_string().as_bytes()).unwrap(), state);
        for other in
            ["", "1", "2 9 2 7 0 1", "1 9 2 7 0", "1 9 2 7 0 1 1", "1 9 2 7 0 -1", "\u{ff}"]
        {
            let told = State::parse(other.as_bytes()).unwrap_err().to_string();
            assert!(told.contains(&format!("a state of {} bytes", other.len())), "{told}");
        }
    }

    #[test]
    fn ages_sort_as_their_keys_do() {
        let keys = Keys::under("a/").unwrap();
        let ages = [0, 1, 255, 256, u64::MAX];
        assert!(ages.map(|age| keys.aged(IDS, age)).is_sorted());
        assert_eq!(ages.map(|age| keys.age_of(&keys.aged(KEYS, age)).unwrap()), ages);
        assert!(keys.age_of(b"a/Ixyz").is_err());
    }
}
