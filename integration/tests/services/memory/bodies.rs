//! Events that hardly compress, so that an archive is as large as what went into it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use dacapo_amqp::{AmqpConnect, AmqpTarget};
use dacapo_bus::{Connect, Outcome};
use dacapo_event::{Message, Properties, ShortStr};

use crate::amqp_direct::broker;

/// The usual size of a body.
const SMALL_BYTES: usize = 4_000;

/// A large body, of which [`Bodies::mixed`] has some.
const LARGE_BYTES: usize = 16 * 1024 * 1024;

/// Large bodies of which all but one compress to next to nothing, so that segments with them are
/// small.
const LARGE_IN_A_ROW: usize = 4;

/// What such a body repeats.
const REPEATED_BYTES: usize = 100_000;

/// Small bodies before each large one.
const SMALL_BETWEEN: usize = 50;

/// Text of 64 letters holds 6 bits a byte, so that a gigabyte of it is stored in three quarters.
const STORED_SHARE: f64 = 0.76;

/// Small bodies are parts of so many letters, for these are costly to make: two of a page of bodies
/// seldom have letters in common that compress.
const LETTERS_BYTES: usize = 16 * 1024 * 1024;

/// Bodies published before their confirms are awaited.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A run of bodies, always the same ones.
pub(super) struct Bodies {
    kinds: Vec<Kind>,
}

#[derive(Clone, Copy)]
enum Kind {
    Small,
    Large,
    LargeAndAlike,
}

impl Bodies {
    /// Returns small bodies that are stored in about so many bytes.
    pub(super) fn small(stored: u64) -> Self {
        let count = stored as f64 / STORED_SHARE / SMALL_BYTES as f64;
        Bodies { kinds: vec![Kind::Small; count as usize] }
    }

    /// Returns so many large bodies, with small ones before each.
    pub(super) fn mixed(large: usize) -> Self {
        let part = |number: usize| {
            let alike = !number.is_multiple_of(LARGE_IN_A_ROW);
            let large = if alike { Kind::LargeAndAlike } else { Kind::Large };
            std::iter::repeat_n(Kind::Small, SMALL_BETWEEN).chain([large])
        };
        Bodies { kinds: (0..large).flat_map(part).collect() }
    }

    /// Writes them as a file to import.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut random = Random::new(1);
        for (number, kind) in self.kinds.iter().enumerate() {
            let time = 1_700_000_000_000 + number;
            write!(file, "{{\"id\":\"{number}\",\"time\":{time},\"type\":\"t\",\"body\":\"")?;
            file.write_all(&random.body(*kind))?;
            file.write_all(b"\"}\n")?;
        }
        file.flush()
    }

    /// Publishes them, confirmed, and returns how many there are.
    pub(super) fn publish(&self, exchange: &str) -> usize {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(self.send(exchange));
        self.kinds.len()
    }

    async fn send(&self, exchange: &str) {
        let target = AmqpTarget::Exchange { exchange: exchange.to_owned(), routing_key: None };
        let mut sink = AmqpConnect { broker: broker(), target }.open().await.unwrap();
        let mut random = Random::new(2);
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (at, kind) in self.kinds.iter().enumerate() {
            batch.push(Message {
                exchange: ShortStr::try_from(exchange).unwrap(),
                properties: Properties {
                    message_id: Some(ShortStr::try_from(random.next().to_string()).unwrap()),
                    ..Properties::default()
                },
                body: Bytes::from(random.body(*kind)),
                ..Message::default()
            });
            bytes += batch.last().map_or(0, |message| message.body.len());
            if bytes < BATCH_BYTES && at + 1 < self.kinds.len() {
                continue;
            }
            sink.send(&batch).await.unwrap();
            let mut left = batch.len();
            while left > 0 {
                let outcomes = sink.outcomes().await.unwrap();
                assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed));
                left -= outcomes.len();
            }
            batch.clear();
            bytes = 0;
        }
        sink.close().await.unwrap();
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random {
    state: u64,
    letters: Vec<u8>,
}

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Random { state: seed, letters: Vec::new() };
        random.letters = random.letters(LETTERS_BYTES);
        random
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn body(&mut self, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::Small => {
                let from = self.next() as usize % (LETTERS_BYTES - SMALL_BYTES);
                self.letters[from..from + SMALL_BYTES].to_vec()
            }
            Kind::Large => self.letters(LARGE_BYTES),
            Kind::LargeAndAlike => {
                let mut body =
                    self.letters(REPEATED_BYTES).repeat(LARGE_BYTES / REPEATED_BYTES + 1);
                body.truncate(LARGE_BYTES);
                body
            }
        }
    }

    fn letters(&mut self, count: usize) -> Vec<u8> {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
        let mut letters = Vec::with_capacity(count + 8);
        while letters.len() < count {
            let word = self.next();
            letters.extend((0..8).map(|at| LETTERS[(word >> (at * 6)) as usize & 63]));
        }
        letters.truncate(count);
        letters
    }
}
