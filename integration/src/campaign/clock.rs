//! A wall clock that can be set back under a running process: Debian's `libfaketime`, which answers
//! for the system's clock and reads its offset from a file each time. The monotonic clock goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Where Debian puts the library, by machine.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

/// The clock of one process.
#[derive(Debug)]
pub struct FakeClock {
    library: &'static str,
    offset: PathBuf,
}

impl FakeClock {
    /// Returns one that goes right, with its offset in a file of this folder.
    ///
    /// # Errors
    /// The library is not installed.
    pub fn new(folder: &Path) -> Result<Self> {
        let Some(library) = LIBRARIES.into_iter().find(|path| Path::new(path).exists()) else {
            bail!("libfaketime is not installed; start the campaign with ./integration/campaign");
        };
        let clock = FakeClock { library, offset: folder.join("clock") };
        clock.set_back(Duration::ZERO)?;
        Ok(clock)
    }

    /// Returns the variables of the process.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Sets it back from the right time by so much.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_back(&self, by: Duration) -> Result<()> {
        // In one step, because the process reads it at any moment.
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("-{}s\n", by.as_secs())).context("failed to write the offset")?;
        fs::rename(&new, &self.offset).context("failed to set the clock")
    }
}
