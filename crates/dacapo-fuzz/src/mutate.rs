//! Mutations: small damage, claims of absurd lengths, repetition, and pieces of other inputs.

/// A sequence of numbers that is the same for the same seed (SplitMix64, by Steele, Lea and Flood).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Begins a sequence.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Returns the next number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`, 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.number() % bound).unwrap_or(0)
    }

    /// Returns one of `items`.
    ///
    /// # Panics
    /// There is none.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Lengths and counts that overflow something, in the ways that formats write them.
const ABSURD: [&[u8]; 12] = [
    &[0],
    &[0xff],
    &[0x80],
    &[0x7f],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff],
    // Variable lengths: 2^32 - 1, 2^31, 2^63 and 2^64 - 1.
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x08],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
];

/// What texts are broken with.
const TOKENS: [&[u8]; 16] = [
    b"{",
    b"[",
    b"\"",
    b"\\",
    b",",
    b":",
    b"null",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\n",
    b"\0",
    b"\xc3\x28",
    b"\\ud800",
    b"*",
    b"#.",
];

/// The most repetitions of a piece.
const REPEATS_MAX: usize = 4_000;

/// The most bytes of a piece that is taken out, put in or repeated.
const PIECE_BYTES_MAX: usize = 64;

/// Changes `input` in one to four ways; `other` gives another input to take a piece of.
pub(crate) fn mutate<'a>(
    input: &mut Vec<u8>,
    random: &mut Random,
    other: impl Fn(&mut Random) -> &'a [u8],
) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = at + random.below(PIECE_BYTES_MAX.min(input.len() - at) + 1);
        match random.below(10) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = u8::try_from(random.below(256)).unwrap_or(0);
                }
            }
            3 => drop(input.drain(at..end)),
            4 => input.truncate(at),
            5 => {
                let absurd: &[u8] = random.pick::<&[u8]>(&ABSURD);
                put(input, at, at, absurd);
            }
            6 => {
                let absurd: &[u8] = random.pick::<&[u8]>(&ABSURD);
                put(input, at, (at + absurd.len()).min(input.len()), absurd);
            }
            7 => {
                let token: &[u8] = random.pick::<&[u8]>(&TOKENS);
                put(input, at, end, token);
            }
            8 => {
                let piece = input[at..end].repeat(1 + random.below(REPEATS_MAX));
                put(input, at, end, &piece);
            }
            _ => {
                let from = other(random);
                let start = random.below(from.len() + 1);
                let piece = &from[start..start + random.below(from.len() - start + 1)];
                put(input, at, end, piece);
            }
        }
    }
}

fn put(input: &mut Vec<u8>, from: usize, to: usize, piece: &[u8]) {
    input.splice(from..to, piece.iter().copied());
}
