//! The index itself, and how it is opened and closed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use dacapo_archive::SegmentSummary;
use dacapo_event::{Sequence, StreamName};

use crate::lock::{self, Holder, Lock};
use crate::progress::{StreamProgress, advanced};
use crate::{IndexError, entry};

/// sled's directory within the index's.
const SLED: &str = "sled";
/// sled's data file, which it locks.
const SLED_FILE: &str = "db";

/// What sled may keep in memory: all of an index of 30,000 segments of 500 bytes. Larger ones are
/// read through once for a plan, in order, which a cache does not help.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// The catalogue of an archive's segments; see the crate's documentation.
///
/// Dropping it gives the index back, too, but a moment later: [`Index::close`] waits for it.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
    // Closed in this order: ours is the last lock to go.
    db: sled::Db,
    lock: Lock,
}

/// The index in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Streams known.
    pub streams: u64,
    /// Segments known.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Size of the index's files.
    pub bytes_on_disk: u64,
}

impl Index {
    /// Opens the index in `dir`, making it if it is not there.
    ///
    /// # Errors
    /// `Busy`: another process has it. `Damaged`, `OtherVersion`: only [`Index::open_anew`] helps.
    /// `Io`: the directory cannot be made or written.
    pub fn open(dir: &Path, holder: &Holder) -> Result<Self, IndexError> {
        fs::create_dir_all(dir).map_err(|source| failed("make", dir, source))?;
        let lock = Lock::take(dir, holder)?;
        Self::open_locked(dir, lock)
    }

    /// Opens an empty index in `dir`, deleting what is there, damaged or not.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn open_anew(dir: &Path, holder: &Holder) -> Result<Self, IndexError> {
        fs::create_dir_all(dir).map_err(|source| failed("make", dir, source))?;
        let lock = Lock::take(dir, holder)?;
        match fs::remove_dir_all(dir.join(SLED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("delete", dir, error));
            }
            _ => {}
        }
        Self::open_locked(dir, lock)
    }

    fn open_locked(dir: &Path, lock: Lock) -> Result<Self, IndexError> {
        let path = dir.join(SLED);
        wait_for_sled(dir)?;
        // Without its flushing thread: whoever changes the index says when it has to last.
        let config =
            sled::Config::new().path(&path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        // On some damage sled panics instead of saying so.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let db = match opened {
            Ok(opened) => opened.map_err(|error| from_sled("open", dir, error))?,
            Err(_) => return Err(damaged(dir, "its data file cannot be read")),
        };
        let index = Index { dir: dir.to_owned(), db, lock };
        index.check_version()?;
        index.check_counts()?;
        Ok(index)
    }

    /// Compares the segments that are there with those that the streams' progress speaks of: an
    /// index that lost some would hide a part of the archive. Looks at keys only.
    fn check_counts(&self) -> Result<(), IndexError> {
        let mut counted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for key in self.db.scan_prefix(entry::SEGMENTS).keys() {
            let key = key.map_err(|error| self.failed("read", error))?;
            *counted.entry(entry::stream_of(&key).to_vec()).or_default() += 1;
        }
        let streams = self.streams()?;
        for progress in &streams {
            let there = counted.remove(progress.stream.as_str().as_bytes()).unwrap_or(0);
            if there != progress.segments {
                let reason = format!(
                    "{there} segments of stream `{}` are there, and {} should be",
                    progress.stream, progress.segments
                );
                return Err(damaged(&self.dir, reason));
            }
        }
        match counted.first_key_value() {
            None => Ok(()),
            Some(_) => Err(damaged(&self.dir, "a stream has segments but no progress")),
        }
    }

    fn check_version(&self) -> Result<(), IndexError> {
        let found = self.db.get(entry::VERSION_KEY).map_err(|error| self.failed("read", error))?;
        match found {
            Some(bytes) => {
                let found = <[u8; 4]>::try_from(bytes.as_ref()).map(u32::from_be_bytes);
                match found {
                    Ok(entry::VERSION) => Ok(()),
                    Ok(entry::VERSION_BEFORE) => self.write_version(),
                    Ok(found) => Err(IndexError::OtherVersion {
                        path: self.dir.clone(),
                        found,
                        known: entry::VERSION,
                    }),
                    Err(_) => Err(damaged(&self.dir, "its version is not readable")),
                }
            }
            None if self.db.is_empty() => self.write_version(),
            None => Err(damaged(&self.dir, "it has no version")),
        }
    }

    fn write_version(&self) -> Result<(), IndexError> {
        let written = self.db.insert(entry::VERSION_KEY, &entry::VERSION.to_be_bytes());
        written.map(drop).map_err(|error| self.failed("write", error))
    }

    /// Adds segments, each together with its stream's progress: all of them, or none if this fails
    /// or the process ends. A segment with a first sequence that is there already replaces it.
    /// Lasting only after [`Index::flush`] or [`Index::close`].
    ///
    /// # Errors
    /// `Overlap`: one shares sequences with another. Nothing was added.
    pub fn insert_segments(&self, segments: &[SegmentSummary]) -> Result<(), IndexError> {
        let mut sorted: Vec<&SegmentSummary> = segments.iter().collect();
        sorted.sort_by_key(|segment| (&segment.stream, segment.first));
        let mut batch = sled::Batch::default();
        let mut changed: BTreeMap<&StreamName, Option<StreamProgress>> = BTreeMap::new();
        let mut before: Option<&SegmentSummary> = None;
        for segment in sorted {
            let overlapped = before
                .filter(|before| before.stream == segment.stream && before.last >= segment.first);
            if let Some(before) = overlapped {
                return Err(self.overlap(segment, before));
            }
            before = Some(segment);
            let replaced = self.check_neighbours(segment)?;
            let replaced = replaced.as_slice();
            let progress = match changed.remove(&segment.stream) {
                Some(progress) => progress,
                None => self.progress(&segment.stream)?,
            };
            let progress = advanced(progress, segment, replaced);
            changed.insert(&segment.stream, Some(progress));
            let key = entry::segment_key(&segment.stream, segment.first);
            batch.insert(key, entry::encode_segment(segment));
        }
        for (stream, progress) in changed {
            let progress = progress.expect("every stream here has had a segment added");
            batch.insert(entry::progress_key(stream), entry::encode_progress(&progress));
        }
        self.db.apply_batch(batch).map_err(|error| self.failed("write", error))
    }

    /// Adds an output of compaction in the place of all segments that lie within it: all of that, or
    /// nothing if this fails or the process ends.
    ///
    /// # Errors
    /// `Overlap`: a segment lies partly within it. Nothing was changed.
    pub fn replace_covered(&self, output: &SegmentSummary) -> Result<(), IndexError> {
        let stream = &output.stream;
        let mut batch = sled::Batch::default();
        let mut replaced = Vec::new();
        let before = self.segment_at(stream, output.first)?;
        let from = entry::segment_key(stream, output.first);
        let to = entry::segment_key(stream, output.last);
        let within = self.db.range(from..=to).map(|pair| {
            let (key, value) = pair.map_err(|error| self.failed("read", error))?;
            Ok::<_, IndexError>((key, self.decoded(&value)?))
        });
        if let Some(before) = before.filter(|before| before.first < output.first) {
            return Err(self.overlap(output, &before));
        }
        for found in within {
            let (key, segment) = found?;
            if segment.last > output.last {
                return Err(self.overlap(output, &segment));
            }
            batch.remove(key);
            replaced.push(segment);
        }
        let progress = advanced(self.progress(stream)?, output, &replaced);
        batch.insert(entry::segment_key(stream, output.first), entry::encode_segment(output));
        batch.insert(entry::progress_key(stream), entry::encode_progress(&progress));
        self.db.apply_batch(batch).map_err(|error| self.failed("write", error))
    }

    /// Notes that every compaction entry of a stream up to the one that begins with `first` is taken
    /// into account.
    ///
    /// # Errors
    /// The index cannot be read or written.
    pub fn set_compacted(&self, stream: &StreamName, first: Sequence) -> Result<(), IndexError> {
        let Some(progress) = self.progress(stream)? else { return Ok(()) };
        let progress = StreamProgress { compacted: Some(first), ..progress };
        let written =
            self.db.insert(entry::progress_key(stream), entry::encode_progress(&progress));
        written.map(drop).map_err(|error| self.failed("write", error))
    }

    /// Refuses a segment that runs into one that is there, and returns the one it replaces.
    fn check_neighbours(
        &self,
        segment: &SegmentSummary,
    ) -> Result<Option<SegmentSummary>, IndexError> {
        let key = entry::segment_key(&segment.stream, segment.first);
        let prefix = entry::segments_prefix(&segment.stream);
        let read = |found: sled::Result<Option<(sled::IVec, sled::IVec)>>| {
            let found = found.map_err(|error| self.failed("read", error))?;
            let found = found.filter(|(key, _)| key.starts_with(&prefix));
            found.map(|(_, value)| self.decoded(&value)).transpose()
        };
        let earlier = read(self.db.get_lt(&key))?.filter(|earlier| earlier.last >= segment.first);
        let later = read(self.db.get_gt(&key))?.filter(|later| later.first <= segment.last);
        if let Some(other) = earlier.or(later) {
            return Err(self.overlap(segment, &other));
        }
        let same = self.db.get(&key).map_err(|error| self.failed("read", error))?;
        same.map(|value| self.decoded(&value)).transpose()
    }

    /// Removes all that is known of a stream; one that is not known is no error.
    ///
    /// # Errors
    /// The index cannot be read or written.
    pub fn remove_stream(&self, stream: &StreamName) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        batch.remove(entry::progress_key(stream));
        for key in self.db.scan_prefix(entry::segments_prefix(stream)).keys() {
            batch.remove(key.map_err(|error| self.failed("read", error))?);
        }
        self.db.apply_batch(batch).map_err(|error| self.failed("write", error))
    }

    /// Removes everything.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn clear(&self) -> Result<(), IndexError> {
        self.db.clear().map_err(|error| self.failed("write", error))?;
        self.write_version()
    }

    /// Returns how far each stream is known, by name.
    ///
    /// # Errors
    /// `Damaged`, or the index cannot be read.
    pub fn streams(&self) -> Result<Vec<StreamProgress>, IndexError> {
        let entries = self.db.scan_prefix(entry::PROGRESS);
        let decoded = entries.map(|pair| {
            let (key, value) = pair.map_err(|error| self.failed("read", error))?;
            entry::decode_progress(&key, &value).map_err(|reason| damaged(&self.dir, reason))
        });
        decoded.collect()
    }

    /// Returns how far one stream is known.
    ///
    /// # Errors
    /// `Damaged`, or the index cannot be read.
    pub fn progress(&self, stream: &StreamName) -> Result<Option<StreamProgress>, IndexError> {
        let key = entry::progress_key(stream);
        let value = self.db.get(&key).map_err(|error| self.failed("read", error))?;
        let decode = |value: sled::IVec| entry::decode_progress(&key, &value);
        value.map(decode).transpose().map_err(|reason| damaged(&self.dir, reason))
    }

    /// Returns all segments, by stream and then by sequence. Segments added meanwhile may or may
    /// not be among them.
    pub fn segments(&self) -> impl Iterator<Item = Result<SegmentSummary, IndexError>> + '_ {
        self.scan(entry::SEGMENTS.to_vec())
    }

    /// Returns the segment of a stream that begins at this sequence, if it is known.
    ///
    /// # Errors
    /// `Damaged`, or the index cannot be read.
    pub fn segment(
        &self,
        stream: &StreamName,
        first: Sequence,
    ) -> Result<Option<SegmentSummary>, IndexError> {
        let key = entry::segment_key(stream, first);
        let value = self.db.get(key).map_err(|error| self.failed("read", error))?;
        value.map(|value| self.decoded(&value)).transpose()
    }

    /// Returns the segment of a stream that this sequence lies in, if it is known.
    ///
    /// # Errors
    /// `Damaged`, or the index cannot be read.
    pub fn segment_at(
        &self,
        stream: &StreamName,
        sequence: Sequence,
    ) -> Result<Option<SegmentSummary>, IndexError> {
        let prefix = entry::segments_prefix(stream);
        let up_to = prefix.clone()..=entry::segment_key(stream, sequence);
        let found = self.db.range(up_to).next_back().transpose();
        let found = found.map_err(|error| self.failed("read", error))?;
        let found = found.map(|(_, value)| self.decoded(&value)).transpose()?;
        Ok(found.filter(|segment| segment.last >= sequence))
    }

    /// Returns the segments of one stream, by sequence.
    pub fn segments_of(
        &self,
        stream: &StreamName,
    ) -> impl Iterator<Item = Result<SegmentSummary, IndexError>> + '_ {
        self.scan(entry::segments_prefix(stream))
    }

    fn scan(
        &self,
        prefix: Vec<u8>,
    ) -> impl Iterator<Item = Result<SegmentSummary, IndexError>> + '_ {
        self.db.scan_prefix(prefix).values().map(|value| {
            let value = value.map_err(|error| self.failed("read", error))?;
            self.decoded(&value)
        })
    }

    /// Returns the index in numbers.
    ///
    /// # Errors
    /// `Damaged`, or the index cannot be read.
    pub fn stats(&self) -> Result<Stats, IndexError> {
        let streams = self.streams()?;
        let bytes_on_disk =
            self.db.size_on_disk().map_err(|error| self.failed("measure", error))?;
        Ok(Stats {
            streams: streams.len() as u64,
            segments: streams.iter().map(|progress| progress.segments).sum(),
            events: streams.iter().map(|progress| progress.events).sum(),
            bytes_on_disk,
        })
    }

    /// Makes all that was changed last.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn flush(&self) -> Result<(), IndexError> {
        self.db.flush().map(drop).map_err(|error| self.failed("write", error))
    }

    /// Makes all changes last, and returns when another process can open the index.
    ///
    /// # Errors
    /// The index cannot be written, or sled does not let go of it for two seconds.
    pub fn close(self) -> Result<(), IndexError> {
        self.flush()?;
        let Index { dir, db, lock } = self;
        drop(db);
        wait_for_sled(&dir)?;
        lock.release(&dir)
    }

    fn decoded(&self, value: &[u8]) -> Result<SegmentSummary, IndexError> {
        entry::decode_segment(value).map_err(|reason| damaged(&self.dir, reason))
    }

    fn failed(&self, action: &'static str, error: sled::Error) -> IndexError {
        from_sled(action, &self.dir, error)
    }

    fn overlap(&self, segment: &SegmentSummary, other: &SegmentSummary) -> IndexError {
        IndexError::Overlap {
            path: self.dir.clone(),
            segment: segment.key.to_string(),
            other: other.key.to_string(),
        }
    }
}

/// Waits until no thread of sled's, of this process or a dying one, holds its data file.
fn wait_for_sled(dir: &Path) -> Result<(), IndexError> {
    let path = dir.join(SLED).join(SLED_FILE);
    for _ in 0..lock::ATTEMPTS_MAX {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("open", dir, error)),
        };
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => lock::pause(),
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", dir, error)),
        }
    }
    let holder = "a thread or process that did not close it".to_owned();
    Err(IndexError::Busy { path: dir.to_owned(), holder })
}

fn from_sled(action: &'static str, dir: &Path, error: sled::Error) -> IndexError {
    match error {
        sled::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => {
            failed(action, dir, source)
        }
        other => damaged(dir, other.to_string()),
    }
}

fn failed(action: &'static str, dir: &Path, source: io::Error) -> IndexError {
    IndexError::Io { action, path: dir.to_owned(), source }
}

fn damaged(dir: &Path, reason: impl Into<String>) -> IndexError {
    IndexError::Damaged { path: dir.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests;
