//! How the C library keeps freed memory: in one arena, not in eight for each core, and nothing of
//! what is large.
//!
//! Bodies are decoded on whichever thread is free, and every arena keeps the most that it ever held;
//! large buffers are kept, too, once one was freed. So a peak is greater, and the greater the longer
//! a command runs, as more arenas have had their turn. On 100 MB in a release build:
//!
//! | peak, MB | verify | replay | compact |
//! |---|---|---|---|
//! | glibc's defaults | 46 to 65 | 60 to 76 | 109 to 184 |
//! | as set here | 25 | 41 to 44 | 66 |
//! | mimalloc 2.0 | 47 to 66 | 89 to 104 | 179 to 265 |
//! | jemalloc 5.3 | 47 to 58 | 114 to 142 | |
//! | the same, one arena and 0.1 s of decay | 27 to 32 | 51 to 56 | 101 |
//!
//! With two arenas a compaction of ten times as much takes 106 to 112 % of that memory, with one
//! 101 %. What is not kept costs page faults: a tenth of the CPU time, of an import's a third. A few
//! MiB at the end of the heap are kept, therefore: replays of 60,000 events of 4 KB took 0.2 s of
//! system time without them (glibc gives back all but 128 KiB once a threshold is set), 0.17 s with 1
//! MiB, and 0.12 s with 4 and with 16.
//!
//! glibc reads the settings when a process starts (`mallopt(3)`), so the process starts itself
//! again, once, in place: the same process id, arguments and files.

/// The settings; where the operator has made the first, all of them stay as they are. Half a MiB:
/// pages of bodies are smaller, and segments, large bodies and the tables that sled makes and never
/// uses are not.
#[cfg(target_env = "gnu")]
const VARIABLES: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "524288"),
    ("MALLOC_TRIM_THRESHOLD_", "4194304"),
];

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
