//! A file as a target: each message's body becomes one line.
//!
//! What the lines say is the caller's business; exchange, routing key and properties are not
//! written. A line is confirmed when the operating system has it, so it survives the end of this
//! process; a power cut can lose what was written since the last sync ([`SYNC_INTERVAL`]).
//!
//! Invariant: a file that was continued holds whole lines only. A process killed in the middle of
//! a write leaves a torn last line, and the next one to continue the file cuts it off.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dacapo_event::Message;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::{BusError, Connect, Outcome, Sink, TargetState};

/// How long written lines may wait to be forced to disk: what a power cut can cost. One second of
/// repeats is cheap to write again, and syncing each batch would make the disk the limit.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How much of a file's end is read at a time to find its last newline.
const TAIL_BYTES: u64 = 64 * 1024;

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse it: it may be somebody's.
    Refuse,
    /// It is ours: cut off a torn last line and write on.
    Continue,
}

/// A file, or another writer, that takes messages.
pub struct FileTarget(Place);

enum Place {
    File { path: PathBuf, existing: Existing, created: AtomicBool },
    Writer { name: String, writer: Mutex<Option<Box<dyn AsyncWrite + Send + Unpin>>> },
}

/// Writes each message's body as a line.
struct FileSink {
    name: String,
    output: Output,
    synced: Instant,
    outcomes: VecDeque<Outcome>,
    /// The lines of one `send`, kept to use its memory again.
    lines: Vec<u8>,
}

enum Output {
    File(File),
    Writer(Box<dyn AsyncWrite + Send + Unpin>),
}

impl FileTarget {
    /// Returns the file at `path` as a target; with [`Existing::Refuse`] the first `open` fails if
    /// it is there, and later ones continue what the first began.
    pub fn new(path: impl Into<PathBuf>, existing: Existing) -> Self {
        FileTarget(Place::File { path: path.into(), existing, created: AtomicBool::new(false) })
    }

    /// Returns a writer as a target, for example standard output; `name` is for messages. It can
    /// be opened once, for what was written cannot be taken back.
    pub fn writer(name: impl Into<String>, writer: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        FileTarget(Place::Writer { name: name.into(), writer: Mutex::new(Some(writer)) })
    }
}

#[async_trait]
impl Connect for FileTarget {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        let (name, output) = match &self.0 {
            Place::File { path, existing, created } => {
                let name = path.display().to_string();
                let ours = *existing == Existing::Continue || created.load(Ordering::Relaxed);
                let opened = if ours { continue_file(path).await } else { create_file(path).await };
                let file = opened.map_err(failed(&name))?;
                created.store(true, Ordering::Relaxed);
                (name, Output::File(file))
            }
            Place::Writer { name, writer } => {
                let taken = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
                let again = || Error::new(ErrorKind::Unsupported, "it cannot be opened again");
                let writer = taken.ok_or_else(again).map_err(failed(name))?;
                (name.clone(), Output::Writer(writer))
            }
        };
        Ok(Box::new(FileSink {
            name,
            output,
            synced: Instant::now(),
            outcomes: VecDeque::new(),
            lines: Vec::new(),
        }))
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        Ok(())
    }
}

/// Creates the file and makes its name durable, so that a power cut after the first sync cannot
/// lose it whole.
async fn create_file(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().write(true).create_new(true).open(path).await?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new("."))).await?.sync_all().await?;
    Ok(file)
}

async fn continue_file(path: &Path) -> Result<File, Error> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).await?;
    // A pipe or a terminal has no end to look at, and nothing torn either.
    if file.metadata().await?.is_file() {
        let whole = whole_lines(&mut file).await?;
        file.set_len(whole).await?;
        file.seek(SeekFrom::Start(whole)).await?;
    }
    Ok(file)
}

/// Returns the length of the file up to and including its last newline.
async fn whole_lines(file: &mut File) -> Result<u64, Error> {
    let mut end = file.metadata().await?.len();
    let mut tail = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start)).await?;
        tail.clear();
        file.take(end - start).read_to_end(&mut tail).await?;
        if let Some(newline) = tail.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn failed(name: &str) -> impl FnOnce(Error) -> BusError {
    let path = name.to_owned();
    move |source| BusError::File { path, source }
}

impl FileSink {
    async fn write(&mut self) -> Result<(), Error> {
        match &mut self.output {
            Output::File(file) => {
                file.write_all(&self.lines).await?;
                // Waits until the operating system has it; tokio's file only queues the write.
                file.flush().await
            }
            Output::Writer(writer) => {
                writer.write_all(&self.lines).await?;
                writer.flush().await
            }
        }
    }

    async fn sync(&mut self) -> Result<(), Error> {
        let Output::File(file) = &mut self.output else { return Ok(()) };
        match file.sync_data().await {
            // Pipes and terminals cannot be synced and need not be.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        self.lines.clear();
        for message in messages {
            if message.body.contains(&b'\n') {
                let reason =
                    format!("its body has a line break, and `{}` has a line for each", self.name);
                return Err(BusError::Unsendable { reason });
            }
            self.lines.extend_from_slice(&message.body);
            self.lines.push(b'\n');
        }
        self.write().await.map_err(failed(&self.name))?;
        self.outcomes.extend(messages.iter().map(|_| Outcome::Confirmed));
        if self.synced.elapsed() >= SYNC_INTERVAL {
            self.sync().await.map_err(failed(&self.name))?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        if self.outcomes.is_empty() {
            std::future::pending::<()>().await;
        }
        Ok(self.outcomes.drain(..).collect())
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        Ok(TargetState { depth: None, blocked: false })
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.sync().await.map_err(failed(&self.name))
    }
}

#[cfg(test)]
mod tests;
