//! How the C library keeps freed memory: in two arenas, not in eight for each core.
//!
//! Bodies are decoded on whichever thread is free, and every arena keeps the largest of them that
//! it ever held. With two arenas the peak of a verification of 1 GB is 39 MB, with glibc's default
//! 100 MB. glibc reads the setting when a process starts (`mallopt(3)`, `MALLOC_ARENA_MAX`), so the
//! process starts itself again, once, in place: the same process id, arguments and files.

/// The setting; one that the operator made stays.
#[cfg(target_env = "gnu")]
const VARIABLE: &str = "MALLOC_ARENA_MAX";

/// One for the thread that waits and one for those that decode, nearly always.
#[cfg(target_env = "gnu")]
const ARENAS: &str = "2";

/// Starts this process again with few arenas, unless it has been; returns if there is no need, or
/// if the system does not let it, which costs memory only.
#[cfg(target_env = "gnu")]
#[expect(clippy::disallowed_methods, reason = "the composition root is where the environment is")]
pub fn bound() {
    use std::os::unix::process::CommandExt;

    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // It returns only if it failed.
    drop(command.args(arguments).env(VARIABLE, ARENAS).exec());
}

/// Other C libraries have no arenas for each thread.
#[cfg(not(target_env = "gnu"))]
pub fn bound() {}
