//! Counts events by type, and digests them in a way that no order changes, so that what was read
//! from the archive can be held against what a queue received.

use std::collections::{BTreeMap, HashSet, VecDeque};

use dacapo_event::{Digest, Hasher};

/// The most types told apart, as in the footers of segments; the rest are counted together.
pub const TYPES_MAX: usize = 1_000;

/// A longer type is counted with the rest.
const TYPE_BYTES_MAX: usize = 1_024;

/// The type under which the rest are counted.
pub const OTHER_TYPES: &str = "(other types)";

/// How many events back an exact repeat is recognised: a hundred windows, for what comes again
/// after a lost connection comes within two. Each takes some 50 bytes.
const REMEMBERED_MAX: usize = 100_000;

/// How many events there are, and the sum of their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many, exact repeats aside.
    pub events: u64,
    sum: [u8; 32],
}

impl Tally {
    /// Returns the sum, modulo 2^256, of the SHA-256 of each event's id and body digest, both read
    /// as little-endian numbers.
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.sum)
    }

    fn add(&mut self, identity: &Digest) {
        self.events += 1;
        let mut carry = 0;
        for (sum, byte) in self.sum.iter_mut().zip(identity.as_bytes()) {
            let total = u16::from(*sum) + u16::from(*byte) + carry;
            [*sum, _] = total.to_le_bytes();
            carry = total >> 8;
        }
    }
}

/// Tallies by type, exact repeats (the same id and body) left out and counted.
#[derive(Debug, Default)]
pub struct Tallies {
    by_type: BTreeMap<String, Tally>,
    repeats: u64,
    known: HashSet<Digest>,
    order: VecDeque<Digest>,
}

impl Tallies {
    /// Counts an event.
    pub fn add(&mut self, kind: &str, id: &[u8], body: &[u8]) {
        let mut hasher = Hasher::default();
        hasher.update_framed(id);
        hasher.update(Digest::of(body).as_bytes());
        let identity = hasher.finish();
        if !self.known.insert(identity) {
            self.repeats += 1;
            return;
        }
        self.order.push_back(identity);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        let has_room = self.by_type.len() < TYPES_MAX && kind.len() <= TYPE_BYTES_MAX;
        let kind = match self.by_type.contains_key(kind) || has_room {
            true => kind,
            false => OTHER_TYPES,
        };
        match self.by_type.get_mut(kind) {
            Some(tally) => tally.add(&identity),
            None => self.by_type.entry(kind.to_owned()).or_default().add(&identity),
        }
    }

    /// Returns the tallies.
    pub fn by_type(&self) -> &BTreeMap<String, Tally> {
        &self.by_type
    }

    /// Returns how many exact repeats were left out.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// Returns how many events were counted, repeats among them.
    pub fn all(&self) -> u64 {
        self.repeats + self.by_type.values().map(|tally| tally.events).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tallied(events: &[(u8, u8)]) -> BTreeMap<String, Tally> {
        let mut tallies = Tallies::default();
        for (kind, id) in events {
            tallies.add(&format!("t{}", kind % 3), &[*id], b"body");
        }
        tallies.by_type
    }

    proptest! {
        #[test]
        fn no_order_changes_a_tally_and_one_event_less_does(
            (events, shuffled) in prop::collection::hash_set(any::<u8>(), 1..40)
                .prop_map(|ids| ids.into_iter().map(|id| (id, id)).collect::<Vec<_>>())
                .prop_flat_map(|events| (Just(events.clone()), Just(events).prop_shuffle()))
        ) {
            let whole = tallied(&events);
            prop_assert_eq!(&whole, &tallied(&shuffled));
            prop_assert_ne!(&whole, &tallied(&shuffled[1..]));
        }
    }

    #[test]
    fn a_repeat_is_left_out_and_another_body_is_another_event() {
        let mut tallies = Tallies::default();
        for body in ["a", "a", "b"] {
            tallies.add("t", b"1", body.as_bytes());
        }
        assert_eq!((tallies.by_type()["t"].events, tallies.repeats(), tallies.all()), (2, 1, 3));
    }

    #[test]
    fn a_sum_carries_over_and_ids_and_bodies_do_not_trade_bytes() {
        let mut tally = Tally::default();
        tally.add(&Digest::from_bytes([0xff; 32]));
        let mut one = [0; 32];
        one[0] = 1;
        tally.add(&Digest::from_bytes(one));
        assert_eq!(tally.digest(), Digest::from_bytes([0; 32]));
        let digest = |id: &[u8], body: &[u8]| {
            let mut tallies = Tallies::default();
            tallies.add("t", id, body);
            tallies.by_type()["t"].digest()
        };
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
    }

    #[test]
    fn the_types_told_apart_are_bounded() {
        let mut tallies = Tallies::default();
        for n in 0..TYPES_MAX + 5 {
            tallies.add(&format!("t{n}"), n.to_string().as_bytes(), b"");
        }
        tallies.add(&"x".repeat(TYPE_BYTES_MAX + 1), b"long", b"");
        assert_eq!(tallies.by_type()[OTHER_TYPES].events, 6);
    }
}
