//! Listing in the order of the keys' bytes, whatever order the server has.
//!
//! Amazon's listings are in that order. Other servers keep directories and list them by name, so
//! that `a/x` comes before `a-b` (SeaweedFS does), and then going on after a key passes over
//! others without a sign. So with such a server a listing is put together here:
//!
//! - what comes complete in one answer is sorted;
//! - what does not is asked for level by level, `/` as the delimiter. A level comes in the order
//!   of its names or of its keys; an entry is passed on when nothing that sorts before it can
//!   still come in either. A directory is entered as a listing of its own.
//!
//! [`Walk`] says what to ask and takes the answers; it does no I/O.

use std::collections::BTreeMap;

use dacapo_archive::store::{ListPage, ObjectKey, ObjectMeta};

/// The most objects that a store gives at once.
pub(crate) const PAGE_OBJECTS_MAX: usize = 1_000;

/// A request for a part of a listing. Texts are below the store's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) prefix: String,
    pub(crate) depth: Depth,
    pub(crate) start_after: Option<String>,
    /// Where an answer to the same request ended.
    pub(crate) continuation: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Everything that begins with the prefix.
    Whole,
    /// Up to the next `/`.
    Level,
}

/// A part of a listing as the server gave it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) objects: Vec<ObjectMeta>,
    /// Each ends in `/`.
    pub(crate) directories: Vec<String>,
    /// Where to go on.
    pub(crate) continuation: Option<String>,
}

/// What to do next for a listing.
#[derive(Debug)]
pub(crate) enum Step {
    Ask(Ask),
    Done(ListPage),
}

/// A listing on its way.
#[derive(Debug)]
pub(crate) struct Walk {
    prefix: String,
    /// Empty, which sorts before every key, for a listing from the beginning.
    after: String,
    /// The place asked about and the ones above it.
    places: Vec<Place>,
    found: Vec<ObjectMeta>,
}

#[derive(Debug)]
enum Place {
    /// Nothing is known yet of what begins with this text.
    Unseen(String),
    Level(Level),
}

#[derive(Debug)]
struct Level {
    prefix: String,
    start_after: Option<String>,
    progress: Progress,
    /// What came and was not passed on: directories, ending in `/`, and objects.
    held: BTreeMap<String, Option<ObjectMeta>>,
    /// The greatest name that came, a directory's without its `/`: in either order, what comes
    /// later sorts after it.
    watermark: String,
}

#[derive(Debug)]
enum Progress {
    Begin,
    Continue(String),
    End,
}

impl Walk {
    pub(crate) fn new(prefix: &str, after: Option<&ObjectKey>) -> Self {
        Walk {
            prefix: prefix.to_owned(),
            after: after.map(ObjectKey::to_string).unwrap_or_default(),
            places: vec![Place::Unseen(prefix.to_owned())],
            found: Vec::new(),
        }
    }

    /// Returns the next question, to be followed by [`Walk::answer`], or the page.
    pub(crate) fn step(&mut self) -> Step {
        while self.found.len() <= PAGE_OBJECTS_MAX {
            let entry = match self.places.last_mut() {
                None => break,
                Some(Place::Unseen(prefix)) => {
                    let prefix = prefix.clone();
                    let depth = Depth::Whole;
                    return Step::Ask(Ask { prefix, depth, start_after: None, continuation: None });
                }
                Some(Place::Level(level)) => match level.pass_on() {
                    Some(entry) => entry,
                    None => match level.ask() {
                        Some(ask) => return Step::Ask(ask),
                        None => {
                            self.places.pop();
                            continue;
                        }
                    },
                },
            };
            match entry {
                (_, Some(object)) if self.wants(&object) => self.found.push(object),
                (directory, None) if self.may_hold_wanted(&directory) => {
                    self.places.push(Place::Unseen(directory));
                }
                _ => {}
            }
        }
        let mut objects = std::mem::take(&mut self.found);
        let more = objects.len() > PAGE_OBJECTS_MAX;
        objects.truncate(PAGE_OBJECTS_MAX);
        Step::Done(ListPage { objects, more })
    }

    /// Takes the answer to the last question.
    pub(crate) fn answer(&mut self, mut answer: Answer) {
        match self.places.pop().expect("an answer follows a question about a place") {
            Place::Unseen(_) if answer.continuation.is_none() => {
                answer.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                answer.objects.retain(|object| self.wants(object));
                self.found.append(&mut answer.objects);
            }
            Place::Unseen(prefix) => {
                let start_after = start_of_level(&prefix, &self.after);
                self.places.push(Place::Level(Level {
                    prefix,
                    start_after,
                    progress: Progress::Begin,
                    held: BTreeMap::new(),
                    watermark: String::new(),
                }));
            }
            Place::Level(mut level) => {
                level.take(answer);
                self.places.push(Place::Level(level));
            }
        }
    }

    fn wants(&self, object: &ObjectMeta) -> bool {
        let key = object.key.as_str();
        key.starts_with(&self.prefix) && key > self.after.as_str()
    }

    /// Returns whether a key that begins with `directory` could be wanted.
    fn may_hold_wanted(&self, directory: &str) -> bool {
        directory > self.after.as_str() || self.after.starts_with(directory)
    }
}

impl Level {
    /// Returns the first entry that nothing to come sorts before.
    fn pass_on(&mut self) -> Option<(String, Option<ObjectMeta>)> {
        let (first, _) = self.held.first_key_value()?;
        let is_next = matches!(self.progress, Progress::End) || *first <= self.watermark;
        if is_next { self.held.pop_first() } else { None }
    }

    fn ask(&self) -> Option<Ask> {
        let continuation = match &self.progress {
            Progress::Begin => None,
            Progress::Continue(token) => Some(token.clone()),
            Progress::End => return None,
        };
        Some(Ask {
            prefix: self.prefix.clone(),
            depth: Depth::Level,
            start_after: self.start_after.clone(),
            continuation,
        })
    }

    fn take(&mut self, answer: Answer) {
        let objects =
            answer.objects.into_iter().map(|object| (object.key.to_string(), Some(object)));
        let directories = answer.directories.into_iter().map(|directory| (directory, None));
        for (text, entry) in objects.chain(directories) {
            let name = text.strip_suffix('/').unwrap_or(&text);
            if *name > *self.watermark {
                self.watermark = name.to_owned();
            }
            self.held.insert(text, entry);
        }
        self.progress = answer.continuation.map_or(Progress::End, Progress::Continue);
    }
}

/// Returns what to start a level after, so that nothing is missed that holds a key after `after`.
///
/// In the order of names, a directory `a` may come before the name that `after` has on this level
/// while its keys, which begin with `a/`, sort after it: `a` is then that name or, followed by a
/// byte less than `/`, begins it. The level is started before the shortest such `a`.
fn start_of_level(prefix: &str, after: &str) -> Option<String> {
    let level = prefix.rfind('/').map_or(0, |slash| slash + 1);
    let name = after.strip_prefix(&prefix[..level])?.split('/').next().unwrap_or_default();
    let shortest = name
        .char_indices()
        .find(|(at, next)| *at > 0 && *next < '/')
        .map_or(name, |(at, _)| &name[..at]);
    // A text without its last character sorts before it.
    let (before_last, _) = shortest.char_indices().next_back()?;
    (before_last > 0).then(|| format!("{}{}", &prefix[..level], &name[..before_last]))
}

#[cfg(test)]
mod tests;
