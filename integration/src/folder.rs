//! The folder of one run: data and logs of its servers, removed unless something failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::environment;

/// A folder `target/integration/run-PID-N`; removed when dropped, unless kept or panicking.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Remove,
    Keep,
}

impl RunFolder {
    /// Creates a new folder, and removes those whose process is no more.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let scratch = environment::scratch();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = scratch.join(format!("run-{}-{number}", std::process::id()));
        remove_abandoned(&scratch);
        fs::create_dir_all(&path)
            .with_context(|| format!("failed to create `{}`", path.display()))?;
        Ok(RunFolder { path, end: End::Remove })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder behind for whoever reads the logs, until the next run.
    pub fn keep(&mut self) {
        self.end = End::Keep;
    }

    /// Removes the folder after all.
    pub fn discard(mut self) {
        self.end = End::Remove;
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if matches!(self.end, End::Remove) && !std::thread::panicking() {
            // What cannot be removed now is removed by the next run.
            fs::remove_dir_all(&self.path).ok();
        }
    }
}

/// Removes folders of runs that have ended; one that resists is left for the next time.
fn remove_abandoned(scratch: &Path) {
    let Ok(entries) = fs::read_dir(scratch) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix("run-")?.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}
