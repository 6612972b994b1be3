//! Listing a directory tree in the order of the keys' bytes.
//!
//! That is not the order of a walk by name: `a-b` and `a.b` sort before `a/b`, because `-` and `.`
//! sort before `/`. A directory is therefore sorted as its name with the `/` that follows it, and
//! entered only if the prefix and `after` leave room for a key in it.
//!
//! The names of one directory are held at a time (and of those above it); in the archive's layout
//! that is an hour of segments, or a stream's chain entries: a year of one every five minutes is
//! 105,000 names, some 6 MB.

use std::fs;
use std::io;
use std::path::Path;

use super::TEMPORARY;
use super::failure::is_absent;
use crate::store::memory::PAGE_OBJECTS_MAX;
use crate::store::{ListPage, ObjectKey, ObjectMeta};

/// Returns a page of the objects below `root`.
///
/// # Errors
/// `NotFound` if the root itself is not there, and what else the system says.
pub(super) fn list(root: &Path, prefix: &str, after: Option<&ObjectKey>) -> io::Result<ListPage> {
    let after = after.map_or("", ObjectKey::as_str);
    let mut walk = Walk { root, prefix, after, objects: Vec::new() };
    let start = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    if is_directory(root, start)? {
        walk.enter(start)?;
    } else if !root.is_dir() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut objects = walk.objects;
    let more = objects.len() > PAGE_OBJECTS_MAX;
    objects.truncate(PAGE_OBJECTS_MAX);
    Ok(ListPage { objects, more })
}

/// Returns whether there are directories, and not links to some, all the way to `start`.
fn is_directory(root: &Path, start: &str) -> io::Result<bool> {
    let mut path = root.to_owned();
    for (depth, part) in start.split_terminator('/').enumerate() {
        let is_key_part = !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !is_key_part || (depth == 0 && part == TEMPORARY) {
            return Ok(false);
        }
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Err(error) if !is_absent(&error) => return Err(error),
            Ok(_) | Err(_) => return Ok(false),
        }
    }
    Ok(root.is_dir())
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    /// Empty, which sorts before every key, for a listing from the beginning.
    after: &'a str,
    objects: Vec<ObjectMeta>,
}

impl Walk<'_> {
    /// Walks the directory whose keys begin with `directory` (empty or ending in `/`), until there
    /// is one object more than a page holds.
    fn enter(&mut self, directory: &str) -> io::Result<()> {
        for key in self.entries(directory)? {
            if self.objects.len() > PAGE_OBJECTS_MAX {
                break;
            }
            if key.ends_with('/') {
                self.enter(&key)?;
            } else {
                self.add(&key)?;
            }
        }
        Ok(())
    }

    /// Returns the keys of the objects and, with a `/` at the end, of the directories in
    /// `directory` that the listing asks for, sorted.
    fn entries(&self, directory: &str) -> io::Result<Vec<String>> {
        let listed = match fs::read_dir(self.root.join(directory)) {
            // It was removed since it was seen.
            Err(error) if is_absent(&error) && !directory.is_empty() => return Ok(Vec::new()),
            listed => listed?,
        };
        let mut keys = Vec::new();
        for entry in listed {
            let entry = entry?;
            // A name that is not UTF-8 is no part of a key.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if directory.is_empty() && name == TEMPORARY {
                continue;
            }
            let kind = entry.file_type()?;
            let key = format!("{directory}{name}");
            if kind.is_file() && self.wants(&key) {
                keys.push(key);
            } else if kind.is_dir() {
                let key = key + "/";
                if self.may_hold_wanted(&key) {
                    keys.push(key);
                }
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn wants(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && key > self.after
    }

    /// Returns whether a key that begins with `directory` could be wanted.
    fn may_hold_wanted(&self, directory: &str) -> bool {
        let in_prefix = directory.starts_with(self.prefix) || self.prefix.starts_with(directory);
        in_prefix && (directory > self.after || self.after.starts_with(directory))
    }

    fn add(&mut self, key: &str) -> io::Result<()> {
        let Ok(parsed) = key.parse() else { return Ok(()) };
        match fs::symlink_metadata(self.root.join(key)) {
            Ok(metadata) => {
                self.objects.push(ObjectMeta { key: parsed, size: metadata.len() });
                Ok(())
            }
            // It was deleted since it was seen.
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prefix: &str, after: &str, directory: &str, entered: bool) {
        let walk = Walk { root: Path::new("/"), prefix, after, objects: Vec::new() };
        let asked = format!("prefix `{prefix}`, after `{after}`, directory `{directory}`");
        assert_eq!(walk.may_hold_wanted(directory), entered, "{asked}");
    }

    #[test]
    fn a_directory_is_entered_only_if_it_can_hold_a_wanted_key() {
        check("", "", "a/", true);
        check("a/b", "", "a/", true);
        check("a/", "", "a/b/", true);
        check("a/b", "", "a/bc/", true);
        check("a/b/", "", "a/bc/", false);
        check("a/b", "", "a/c/", false);
        check("", "a/b", "a/", true);
        check("", "a/b/x", "a/b/", true);
        check("", "a/b/x", "a/a/", false);
        check("", "a/b", "a/b/", true);
        check("", "a/b0", "a/b/", false);
        check("", "a/b-", "a/b/", true);
        check("segments/", "segments/date=2026-01-02/x", "segments/date=2026-01-01/", false);
        check("segments/", "segments/date=2026-01-02/x", "segments/date=2026-01-03/", true);
    }
}
