//! The state directory: what replays have done. Not derived; losing it loses checkpoints.
//!
//! ```text
//! replays/ID/plan.json      the plan, written before anything is published
//! replays/ID/journal        append-only checkpoints, see `journal`
//! replays/ID/rejects.jsonl  the events that the target refused, see `rejects`
//! replays/ID/receipt.json   replaced atomically whenever a run ends
//! replays/ID/control        what an operator at another terminal asks for
//! replays/ID/lock           held by the process that runs the replay; names it
//! backfills/ID/…            what backfills have done, see `backfill::state`
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dacapo_event::{Digest, Timestamp};

use crate::EngineError;
use crate::plan::Plan;
use lock::{DirLock, HeldBy};

pub(crate) mod lock;

/// A directory of replays.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

/// The name of a replay: sorts by when it began.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplayId(String);

/// What an operator asks of a running replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Run,
    /// Publish nothing more until told to go on; keep the connection.
    Pause,
    /// Finish the window, write the receipt, and end for good.
    Cancel,
}

/// One replay's directory, locked by this process for as long as the value lives.
#[derive(Debug)]
pub struct Locked {
    /// The replay.
    pub id: ReplayId,
    dir: PathBuf,
    _lock: DirLock,
}

impl ReplayId {
    /// Returns the id of a replay that begins `now`; `salt` tells apart two that begin together.
    pub fn new(now: Timestamp, plan: &Digest, salt: u32) -> Self {
        let mut hasher = dacapo_event::Hasher::default();
        hasher.update(&now.as_micros().to_le_bytes());
        hasher.update(plan.as_bytes());
        hasher.update(&salt.to_le_bytes());
        let suffix = &hasher.finish().to_string()[..4];
        // With milliseconds, so that replays of one second sort as they began.
        let began = now.to_jiff().strftime("%Y%m%d-%H%M%S%3f");
        ReplayId(format!("{began}-{suffix}"))
    }

    /// Returns the id that a journal of ours has, if it is one.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (!text.is_empty() && text.bytes().all(known)).then(|| ReplayId(text.to_owned()))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl State {
    /// Returns the state kept in this directory, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        State { root: root.into() }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Returns all replays, oldest first.
    ///
    /// # Errors
    /// The directory is not readable.
    pub fn replays(&self) -> Result<Vec<ReplayId>, EngineError> {
        let dir = self.root.join("replays");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &dir, error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("list", &dir, error))?;
            if entry.path().join("plan.json").exists()
                && let Ok(name) = entry.file_name().into_string()
            {
                ids.push(ReplayId(name));
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Returns the replay whose id is `text`, or the only one whose id begins or ends with it.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn find(&self, text: &str) -> Result<ReplayId, EngineError> {
        let mut ids = self.replays()?;
        if let Some(exact) = ids.iter().position(|id| id.as_str() == text) {
            return Ok(ids.swap_remove(exact));
        }
        let part = |id: &ReplayId| id.as_str().starts_with(text) || id.as_str().ends_with(text);
        ids.retain(part);
        match ids.as_slice() {
            [only] if !text.is_empty() => Ok(only.clone()),
            [one, another, ..] if !text.is_empty() => Err(EngineError::WrongState {
                id: text.to_owned(),
                state: format!("one of several (`{one}`, `{another}`)"),
                hint: "give more of its id".to_owned(),
            }),
            _ => Err(EngineError::NoSuchReplay {
                id: text.to_owned(),
                state: self.root.display().to_string(),
            }),
        }
    }

    /// Creates the directory of a new replay with its plan, durably, and locks it.
    ///
    /// # Errors
    /// The directory cannot be written, or there is a replay of that id already.
    pub fn create(&self, id: ReplayId, plan: &Plan) -> Result<Locked, EngineError> {
        let parent = self.root.join("replays");
        fs::create_dir_all(&parent).map_err(|error| failed("create", &parent, error))?;
        let dir = parent.join(id.as_str());
        match fs::create_dir(&dir) {
            // Whoever made it was killed before there was a plan in it, and so a replay.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && !dir.join("plan.json").exists() => {}
            made => made.map_err(|error| failed("create", &dir, error))?,
        }
        let locked = lock(id, dir)?;
        locked.write_plan(plan)?;
        sync_dir(&parent)?;
        Ok(locked)
    }

    /// Returns whether there is a replay of this id.
    pub fn has(&self, id: &ReplayId) -> bool {
        self.dir(id).join("plan.json").exists()
    }

    /// Locks a replay, so that no other process runs it meanwhile.
    ///
    /// # Errors
    /// `Locked` if another process does; never waits.
    pub fn lock(&self, id: ReplayId) -> Result<Locked, EngineError> {
        let dir = self.dir(&id);
        lock(id, dir)
    }

    /// Returns the process that runs a replay, as words for a message (` in process N`, or nothing
    /// if it has not said so yet), or nothing if none does.
    ///
    /// # Errors
    /// The directory is not readable.
    pub fn holder(&self, id: &ReplayId) -> Result<Option<String>, EngineError> {
        Ok(DirLock::holder(&self.dir(id))?.map(|HeldBy(holder)| holder))
    }

    /// Returns a replay's plan.
    ///
    /// # Errors
    /// The file is not readable, or not a plan.
    pub fn plan(&self, id: &ReplayId) -> Result<Plan, EngineError> {
        let path = self.dir(id).join("plan.json");
        let text = fs::read(&path).map_err(|error| failed("read", &path, error))?;
        crate::plan_json::from_json(&path.display().to_string(), &text)
    }

    /// Returns where a replay's journal is.
    pub fn journal_path(&self, id: &ReplayId) -> PathBuf {
        self.dir(id).join("journal")
    }

    /// Returns where the events are recorded that a replay's target refused.
    pub fn rejects_path(&self, id: &ReplayId) -> PathBuf {
        self.dir(id).join("rejects.jsonl")
    }

    /// Tells a running replay what to do.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_control(&self, id: &ReplayId, control: Control) -> Result<(), EngineError> {
        let word = match control {
            Control::Run => "run",
            Control::Pause => "pause",
            Control::Cancel => "cancel",
        };
        write_durably(&self.dir(id).join("control"), word.as_bytes())
    }

    /// Returns what a replay was told last; `Run` if nothing.
    pub fn control(&self, id: &ReplayId) -> Control {
        match fs::read_to_string(self.dir(id).join("control")).as_deref().map(str::trim) {
            Ok("pause") => Control::Pause,
            Ok("cancel") => Control::Cancel,
            _ => Control::Run,
        }
    }

    /// Returns a replay's receipt as it was last written, or nothing if no run of it has ended.
    ///
    /// # Errors
    /// The file is not readable.
    pub fn receipt(&self, id: &ReplayId) -> Result<Option<serde_json::Value>, EngineError> {
        let path = self.dir(id).join("receipt.json");
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|error| EngineError::Unreadable {
                    path: path.display().to_string(),
                    problem: error.to_string(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    /// Replaces a replay's receipt, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_receipt(
        &self,
        id: &ReplayId,
        receipt: &serde_json::Value,
    ) -> Result<(), EngineError> {
        let text = serde_json::to_vec_pretty(receipt).expect("a JSON value is written");
        write_durably(&self.dir(id).join("receipt.json"), &text)
    }

    fn dir(&self, id: &ReplayId) -> PathBuf {
        self.root.join("replays").join(id.as_str())
    }
}

fn lock(id: ReplayId, dir: PathBuf) -> Result<Locked, EngineError> {
    match DirLock::take(&dir)? {
        Ok(lock) => Ok(Locked { id, dir, _lock: lock }),
        Err(HeldBy(holder)) => Err(EngineError::Locked { id: id.to_string(), holder }),
    }
}

impl Locked {
    /// Replaces the plan by the same with another look at its target, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_plan(&self, plan: &Plan) -> Result<(), EngineError> {
        let text = serde_json::to_vec_pretty(&crate::plan_json::to_json(plan))
            .expect("a JSON value is written");
        write_durably(&self.dir.join("plan.json"), &text)
    }
}

/// Writes a file so that after a crash it is there as before or as now.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| failed("write", path, error))?;
    sync_dir(path.parent().unwrap_or(path))
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), EngineError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| failed("sync", dir, error))
}

pub(crate) fn failed(action: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::State { action, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests;
