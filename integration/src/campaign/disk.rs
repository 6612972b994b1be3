//! A disk that is soon full: a file system in memory, mounted for the campaign alone.
//!
//! `integration/campaign` gives the program a mount namespace of its own, so that no mount outlives
//! it or is seen by anyone else, and so that mounting needs no root.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Room for an index and an archive of a few thousand small events.
const DISK_BYTES: usize = 24 * 1024 * 1024;

/// What fills it is written in pieces of this: what stays free is less.
const PIECE_BYTES: usize = 512;

/// Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one on a new folder.
    ///
    /// # Errors
    /// Mounting is not allowed.
    pub fn mount(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).context("failed to make the folder to mount on")?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "campaign"])
            .arg(path)
            .output()
            .context("failed to run `mount`")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "a small disk cannot be mounted ({}); start the campaign with ./integration/campaign",
            words.trim()
        );
        Ok(SmallDisk { path: path.to_owned() })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    /// It fails for another reason than that.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = fs::File::create(self.ballast()).context("failed to make the ballast")?;
        loop {
            match ballast.write(&[0; PIECE_BYTES]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("failed to fill the disk"),
            }
        }
    }

    /// Makes room again.
    ///
    /// # Errors
    /// It was not filled.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("failed to remove the ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because who has files open on it may still be ending. What stays goes with the
        // campaign's own mount namespace.
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}
