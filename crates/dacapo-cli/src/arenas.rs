//! How the C library keeps freed memory: in two arenas, not in eight for each core, and nothing of
//! what is large.
//!
//! Bodies are decoded on whichever thread is free, and every arena keeps the largest of them that
//! it ever held. With glibc's defaults the peak of a verification of 1 GB was 100 MB, with two
//! arenas it is 39 MB; and that of an import grew by a seventh from 100 MB to 1 GB until large
//! buffers were given back to the system. glibc reads these settings when a process starts
//! (`mallopt(3)`), so the process starts itself again, once, in place: the same process id,
//! arguments and files.

/// The settings; where the operator has made the first, all of them stay as they are. Two arenas:
/// one for the thread that waits and one for those that decode, nearly always. One MiB: pages of
/// bodies are smaller, segments and large bodies are not.
#[cfg(target_env = "gnu")]
const VARIABLES: [(&str, &str); 2] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];

/// Starts this process again with these settings, unless it has been; returns if there is no need,
/// or if the system does not let it, which costs memory only.
#[cfg(target_env = "gnu")]
#[expect(clippy::disallowed_methods, reason = "the composition root is where the environment is")]
pub fn bound() {
    use std::os::unix::process::CommandExt;

    if std::env::var_os(VARIABLES[0].0).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // It returns only if it failed.
    drop(command.args(arguments).envs(VARIABLES).exec());
}

/// Other C libraries have no arenas for each thread.
#[cfg(not(target_env = "gnu"))]
pub fn bound() {}
