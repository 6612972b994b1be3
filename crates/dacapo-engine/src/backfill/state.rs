//! What backfills leave in the state directory. Not derived; losing it means beginning again.
//!
//! ```text
//! backfills/ID/backfill.json  what is asked, written before anything is done
//! backfills/ID/journal        how it stands, see `journal`
//! backfills/ID/receipt.json   replaced atomically whenever a run ends
//! backfills/ID/lock           held by the process that runs the backfill; names it
//! replays/…                   the rounds, replays like any other
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{BackfillId, Description, description};
use crate::EngineError;
use crate::state::lock::{DirLock, HeldBy};
use crate::state::{failed, sync_dir, write_durably};

/// A description of more bytes is refused: 10,000 bindings come to about 3 MB.
const DESCRIPTION_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The backfills of a state directory.
#[derive(Debug, Clone)]
pub struct Backfills {
    root: PathBuf,
}

/// One backfill's directory, locked by this process for as long as the value lives.
#[derive(Debug)]
pub struct Locked {
    /// The backfill.
    pub id: BackfillId,
    _lock: DirLock,
}

impl Backfills {
    /// Returns those of the state directory at `state`, which need not exist yet.
    pub fn new(state: &Path) -> Self {
        Backfills { root: state.join("backfills") }
    }

    /// Returns all of them, oldest first.
    ///
    /// # Errors
    /// The directory is not readable.
    pub fn list(&self) -> Result<Vec<BackfillId>, EngineError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.root, error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("list", &self.root, error))?;
            if entry.path().join("backfill.json").exists()
                && let Ok(name) = entry.file_name().into_string()
            {
                ids.push(BackfillId(name));
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Returns the backfill whose id is `text`, or the only one whose id begins or ends with it.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn find(&self, text: &str) -> Result<BackfillId, EngineError> {
        let mut ids = self.list()?;
        if let Some(exact) = ids.iter().position(|id| id.as_str() == text) {
            return Ok(ids.swap_remove(exact));
        }
        ids.retain(|id| id.as_str().starts_with(text) || id.as_str().ends_with(text));
        match ids.as_slice() {
            [only] if !text.is_empty() => Ok(only.clone()),
            [one, another, ..] if !text.is_empty() => Err(EngineError::BackfillState {
                id: text.to_owned(),
                state: format!("one of several (`{one}`, `{another}`)"),
                hint: "give more of its id".to_owned(),
            }),
            _ => Err(EngineError::NoSuchBackfill {
                id: text.to_owned(),
                state: self.root.parent().unwrap_or(&self.root).display().to_string(),
            }),
        }
    }

    /// Creates the directory of a new backfill with what is asked of it, durably, and locks it.
    ///
    /// # Errors
    /// The directory cannot be written, or there is a backfill of that id already.
    pub fn create(&self, id: BackfillId, description: &Description) -> Result<Locked, EngineError> {
        fs::create_dir_all(&self.root).map_err(|error| failed("create", &self.root, error))?;
        let dir = self.dir(&id);
        fs::create_dir(&dir).map_err(|error| failed("create", &dir, error))?;
        let locked = self.lock(id)?;
        self.write_description(&locked, description)?;
        sync_dir(&self.root)?;
        Ok(locked)
    }

    /// Replaces what is asked of a backfill, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_description(
        &self,
        locked: &Locked,
        description: &Description,
    ) -> Result<(), EngineError> {
        let path = self.dir(&locked.id).join("backfill.json");
        write_durably(&path, &pretty(&description::to_json(description)))
    }

    /// Locks a backfill, so that no other process runs it meanwhile.
    ///
    /// # Errors
    /// `BackfillLocked` if another process does; never waits.
    pub fn lock(&self, id: BackfillId) -> Result<Locked, EngineError> {
        match DirLock::take(&self.dir(&id))? {
            Ok(lock) => Ok(Locked { id, _lock: lock }),
            Err(HeldBy(holder)) => Err(EngineError::BackfillLocked { id: id.to_string(), holder }),
        }
    }

    /// Returns the process that runs a backfill, as words for a message (` in process N`, or nothing
    /// if it has not said so yet), or nothing if none does.
    ///
    /// # Errors
    /// The directory is not readable.
    pub fn holder(&self, id: &BackfillId) -> Result<Option<String>, EngineError> {
        Ok(DirLock::holder(&self.dir(id))?.map(|HeldBy(holder)| holder))
    }

    /// Returns what was asked of a backfill.
    ///
    /// # Errors
    /// The file is not readable, or of a newer format.
    pub fn description(&self, id: &BackfillId) -> Result<Description, EngineError> {
        let path = self.dir(id).join("backfill.json");
        let size = fs::metadata(&path).map_err(|error| failed("read", &path, error))?.len();
        let shown = path.display().to_string();
        if size > DESCRIPTION_BYTES_MAX {
            let problem = format!("it has more than {DESCRIPTION_BYTES_MAX} bytes");
            return Err(EngineError::Unreadable { path: shown, problem });
        }
        let text = fs::read(&path).map_err(|error| failed("read", &path, error))?;
        description::from_json(&shown, &text)
    }

    /// Returns where a backfill's journal is.
    pub fn journal_path(&self, id: &BackfillId) -> PathBuf {
        self.dir(id).join("journal")
    }

    /// Replaces a backfill's receipt, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_receipt(&self, id: &BackfillId, receipt: &Value) -> Result<(), EngineError> {
        write_durably(&self.dir(id).join("receipt.json"), &pretty(receipt))
    }

    fn dir(&self, id: &BackfillId) -> PathBuf {
        self.root.join(id.as_str())
    }
}

fn pretty(json: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(json).expect("a JSON value is written")
}
