//! Hostile input for tests: every input of a corpus kept in the tree, and seeded mutations of
//! them, are given to a reader that must neither panic nor take more memory than it is allowed.
//!
//! Only in tests: a crate that reads what others wrote has `tests/corpus/TARGET/` and an
//! [`Attack`] on it. A run is the same every time; `DACAPO_FUZZ_CASES` asks for more mutations
//! and `DACAPO_FUZZ_SEED` for other ones. An input that does harm is kept in the directory of the
//! build and named, to be copied into the corpus.
//!
//! Linking this crate makes the test binary count its allocations.

mod mutate;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use peak_alloc::PeakAlloc;

use mutate::Random;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Mutations of one target in an ordinary run: about a second for the slowest.
const CASES: u64 = 2_000;

/// The seed of an ordinary run.
const SEED: u64 = 1;

/// No mutation is longer: what is longer says nothing new, and costs time.
const INPUT_BYTES_MAX: usize = 256 * 1024;

/// One reader and what is thrown at it.
#[derive(Debug)]
pub struct Attack<'a> {
    directory: &'a str,
    target: &'a str,
    seeds: Vec<Vec<u8>>,
    memory_bytes_max: usize,
    slowness: u64,
    mutations: bool,
    caught: bool,
    mend: fn(&mut Vec<u8>),
}

impl<'a> Attack<'a> {
    /// Prepares an attack with the corpus `tests/corpus/TARGET` of the crate in `directory`; a
    /// case may take as many bytes beyond what was allocated before it.
    pub fn new(directory: &'a str, target: &'a str, memory_bytes_max: usize) -> Self {
        let seeds = Vec::new();
        Attack {
            directory,
            target,
            seeds,
            memory_bytes_max,
            slowness: 1,
            mutations: true,
            caught: false,
            mend: |_| {},
        }
    }

    /// Adds inputs that are made by the test.
    #[must_use]
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.seeds.extend(seeds);
        self
    }

    /// Divides the number of mutations, for a reader that takes long over one.
    #[must_use]
    pub fn slow(mut self, slowness: u64) -> Self {
        self.slowness = slowness;
        self
    }

    /// Gives the inputs alone, no mutations of them.
    #[must_use]
    pub fn only_seeds(mut self) -> Self {
        self.mutations = false;
        self
    }

    /// Lets panics pass that the reader catches: for a library that panics on some mistakes.
    #[must_use]
    pub fn caught_panics_pass(mut self) -> Self {
        self.caught = true;
        self
    }

    /// Repairs each mutation, a checksum for example, so that it gets further into the reader.
    #[must_use]
    pub fn mend(mut self, mend: fn(&mut Vec<u8>)) -> Self {
        self.mend = mend;
        self
    }

    /// Gives every input and mutation to `reader`.
    ///
    /// # Panics
    /// The reader panicked (on any thread) or took too much memory; the input is named.
    pub fn run(self, reader: impl Fn(&[u8])) {
        /// The allocations of one attack must not count for another.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        count_panics();

        let corpus = self.corpus();
        assert!(!corpus.is_empty(), "there is nothing to attack `{}` with", self.target);
        for (name, input) in &corpus {
            self.one(name, input, &reader);
        }
        let (seed, cases) =
            (setting("DACAPO_FUZZ_SEED", SEED), setting("DACAPO_FUZZ_CASES", CASES));
        let cases = if self.mutations { (cases / self.slowness).max(1) } else { 0 };
        for case in 0..cases {
            let mut random = Random::new(seed.wrapping_mul(0x1_0000_0000).wrapping_add(case));
            let mut input = random.pick(&corpus).1.clone();
            mutate::mutate(&mut input, &mut random, |random| random.pick(&corpus).1.as_slice());
            input.truncate(INPUT_BYTES_MAX);
            (self.mend)(&mut input);
            self.one(&format!("seed {seed}, case {case}"), &input, &reader);
        }
    }

    /// Returns the inputs by name, those of the tree first.
    fn corpus(&self) -> Vec<(String, Vec<u8>)> {
        let directory = Path::new(self.directory).join("tests/corpus").join(self.target);
        let mut files: Vec<PathBuf> = match fs::read_dir(&directory) {
            Ok(entries) => entries.map(|entry| entry.expect("an entry").path()).collect(),
            Err(_) => Vec::new(),
        };
        files.sort();
        let read = |path: PathBuf| {
            let bytes =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.display().to_string(), bytes)
        };
        let made = self.seeds.iter().enumerate();
        let made = made.map(|(number, seed)| (format!("made input {number}"), seed.clone()));
        files.into_iter().map(read).chain(made).collect()
    }

    fn one(&self, name: &str, input: &[u8], reader: &impl Fn(&[u8])) {
        let panics = PANICS.load(Ordering::Relaxed);
        ALLOCATED.reset_peak_usage();
        let before = ALLOCATED.current_usage();
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| reader(input)));
        let taken = ALLOCATED.peak_usage().saturating_sub(before);
        let panicked = PANICS.load(Ordering::Relaxed) != panics && !self.caught;
        let harm = if outcome.is_err() || panicked {
            "it panics".to_owned()
        } else if taken > self.memory_bytes_max {
            format!("it takes {taken} bytes, {} are allowed", self.memory_bytes_max)
        } else {
            return;
        };
        let kept = self.keep(input);
        panic!(
            "`{}` on {name}: {harm}; the input is in `{}`: mend the reader and copy it to tests/corpus/{}",
            self.target,
            kept.display(),
            self.target
        );
    }

    fn keep(&self, input: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!(
            "dacapo-fuzz-{}-{}",
            self.target,
            std::process::id()
        ));
        fs::write(&path, input).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

/// Panics so far, on all threads: those that a reader catches count too.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "only tests link this, and nothing else sets them up"
)]
fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: `{text}`")),
        Err(_) => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack(memory_bytes_max: usize) -> Attack<'static> {
        Attack::new("/nowhere", "own", memory_bytes_max).seeds([b"{\"a\": 1}".to_vec()])
    }

    fn harm(reader: impl Fn(&[u8])) -> Option<String> {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| attack(1_000_000).run(reader)));
        outcome.err().map(|panic| *panic.downcast::<String>().expect("a text"))
    }

    #[test]
    fn a_reader_that_does_no_harm_passes() {
        assert_eq!(harm(|input| drop(String::from_utf8_lossy(input))), None);
    }

    #[test]
    fn a_panic_is_found_also_on_another_thread() {
        let found = harm(|input| assert!(input.len() < 40)).unwrap();
        assert!(found.contains("it panics"), "{found}");
        let found = harm(|input| {
            let length = input.len();
            drop(std::thread::spawn(move || assert!(length < 40)).join());
        });
        assert!(found.unwrap().contains("it panics"));
    }

    #[test]
    fn memory_is_bounded_also_when_it_is_given_back() {
        let found = harm(|input| drop(vec![0_u8; input.len() * 50_000])).unwrap();
        assert!(found.contains("1000000 are allowed"), "{found}");
    }
}
