//! Which faults strike in which order: a pure function of the seed.
//!
//! Strikes are dealt from shuffled decks, each with every strike once, so that no kind is left out
//! however few are asked for beyond a deck. They are spread over *worlds*, each with an exchange,
//! queues and an archive of its own, that run side by side and grow old through their faults.

use super::kind::{Kind, STRIKES, Side};

/// Faults of one world: an archive that went through so many shows what one alone would not, and
/// the ledger, which is checked as a whole after each, stays a second's work.
const WORLD_FAULTS: usize = 8;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// From 1; what its line is told by.
    pub number: u32,
    /// What breaks.
    pub kind: Kind,
    /// Whom it is aimed at.
    pub side: Side,
    /// Decides everything else about it: the moment, the object, the direction.
    pub salt: u64,
}

/// Faults that strike one platform, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// From 1.
    pub number: u32,
    /// In order.
    pub faults: Vec<Fault>,
}

/// A generator of numbers that look like chance and are the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Returns one that begins at this seed.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    /// Returns the next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// Returns one of these.
    pub fn choose<T: Copy>(&mut self, among: &[T]) -> T {
        let place = self.below(among.len() as u64);
        among[usize::try_from(place).expect("it is a place of the slice")]
    }
}

/// Returns the worlds of a campaign. `only` narrows it to kinds; empty means all.
pub fn schedule(seed: u64, faults: u32, only: &[Kind]) -> Vec<World> {
    let mut dice = Dice::new(seed);
    let strikes: Vec<(Kind, Side)> =
        STRIKES.into_iter().filter(|(kind, _)| only.is_empty() || only.contains(kind)).collect();
    let mut deck = Vec::new();
    let mut all = Vec::new();
    for number in 1..=faults {
        if deck.is_empty() {
            deck.clone_from(&strikes);
            shuffle(&mut deck, &mut dice);
        }
        let Some((kind, side)) = deck.pop() else { break };
        all.push(Fault { number, kind, side, salt: dice.roll() });
    }
    let worlds = all.len().div_ceil(WORLD_FAULTS).max(1);
    // Every so-manieth, so that worlds are of equal length.
    let faults_of = |world: usize| all.iter().skip(world).step_by(worlds).copied().collect();
    (0..worlds).zip(1..).map(|(world, number)| World { number, faults: faults_of(world) }).collect()
}

fn shuffle<T>(items: &mut [T], dice: &mut Dice) {
    for last in (1..items.len()).rev() {
        let other = dice.below(last as u64 + 1);
        items.swap(last, usize::try_from(other).expect("it is below a length"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn numbers(worlds: &[World]) -> Vec<u32> {
        let mut numbers: Vec<u32> =
            worlds.iter().flat_map(|world| &world.faults).map(|fault| fault.number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn the_same_seed_is_the_same_campaign_and_another_is_not() {
        assert_eq!(schedule(7, 100, &[]), schedule(7, 100, &[]));
        assert_ne!(schedule(7, 100, &[]), schedule(8, 100, &[]));
    }

    #[test]
    fn every_fault_is_in_one_world() {
        for faults in [1, 7, 8, 9, 60, 1_000] {
            assert_eq!(numbers(&schedule(1, faults, &[])), (1..=faults).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_strike_is_left_out_and_none_comes_twice_as_often() {
        let mut counts = BTreeMap::new();
        for fault in schedule(3, 1_000, &[]).iter().flat_map(|world| &world.faults) {
            *counts.entry((fault.kind, fault.side)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), STRIKES.len());
        assert!(counts.values().all(|count| [25, 26].contains(count)), "{counts:?}");
    }

    #[test]
    fn a_campaign_of_one_kind_has_no_other() {
        let worlds = schedule(1, 9, &[Kind::Killed]);
        assert!(worlds.iter().flat_map(|w| &w.faults).all(|fault| fault.kind == Kind::Killed));
        assert_eq!(numbers(&worlds).len(), 9);
    }
}
