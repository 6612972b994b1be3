//! The product as a user has it: the binary, its folders, its output and its signals.
//!
//! Whatever a command writes, to its output or to its folders, must not tell a secret that it was
//! given ([`Secrets`]); a test in which one does fails.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Lifeline, Signal, signal};
use crate::secrets::Secrets;
use crate::{environment, services, wait};

/// No command of a test takes longer on a loaded machine; one that does hangs.
const RUN_DEADLINE: Duration = Duration::from_secs(180);

/// What a pipe holds on Linux.
const PIPE_BYTES: usize = 65_536;

/// An installation of the test's own: a binary, and folders that are removed when dropped.
#[derive(Debug)]
pub struct Dacapo {
    binary: PathBuf,
    folder: Folder,
    archive: String,
    variables: Vec<(String, String)>,
}

/// The folder of an installation; that no file in it tells a secret, and no object of its archive on
/// the S3 server under test, is checked when it is dropped.
#[derive(Debug)]
struct Folder {
    folder: TempDir,
    /// What the test put there.
    inputs: Mutex<Vec<PathBuf>>,
    /// Those of all commands so far.
    secrets: Mutex<Secrets>,
    /// Where the archive is on the S3 server under test, if it is there.
    prefix: Option<String>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; absent if a signal ended it.
    pub status: Option<i32>,
    /// Everything it wrote to stdout, with U+FFFD for what is not UTF-8.
    pub stdout: String,
    /// The same as bytes.
    pub stdout_bytes: Vec<u8>,
    /// Everything it wrote to stderr.
    pub stderr: String,
}

/// A command that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Its arguments, for messages.
    args: Vec<OsString>,
    secrets: Secrets,
    _lifeline: Lifeline,
    written: Arc<Written>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy)]
enum Pipe {
    Stdout,
    Stderr,
}

/// What a command has written so far; its two readers write, waiting tests read.
#[derive(Debug, Default)]
struct Written {
    so_far: Mutex<SoFar>,
    more: Condvar,
}

#[derive(Debug, Default, Clone)]
struct SoFar {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// How many of the two pipes have ended.
    ended: usize,
}

impl Dacapo {
    /// Returns one with an archive in a folder, not yet there.
    ///
    /// # Panics
    /// The test was not started by `integration/test`.
    #[track_caller]
    pub fn new() -> Self {
        Dacapo::of_binary(services::required(environment::BIN).into())
    }

    /// Returns one of this binary, with an archive in a folder, not yet there.
    ///
    /// # Panics
    /// There is no room for a temporary folder.
    pub fn of_binary(binary: PathBuf) -> Self {
        let folder = TempDir::new().expect("there is room for a temporary folder");
        let archive = folder.path().join("archive").display().to_string();
        let folder =
            Folder { folder, inputs: Mutex::default(), secrets: Mutex::default(), prefix: None };
        Dacapo { binary, folder, archive, variables: Vec::new() }
    }

    /// Returns one with an archive in the S3 server under test, under a prefix of its own.
    ///
    /// # Panics
    /// The test was not started by `integration/test`.
    #[track_caller]
    pub fn on_s3() -> Self {
        let s3 = services::s3();
        let prefix = services::unique("archive");
        let archive = format!("s3://{}/{prefix}", s3.bucket);
        let mut dacapo = Dacapo { archive, ..Dacapo::new() };
        dacapo.folder.prefix = Some(prefix);
        dacapo.set("AWS_ENDPOINT_URL", &s3.endpoint);
        dacapo
    }

    /// Sets an environment variable of all further commands.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Returns the folder of everything: `archive/` (if it is a folder), `index/`, `state/`, and
    /// whatever the test puts there. It is also the commands' working directory.
    pub fn folder(&self) -> &Path {
        self.folder.folder.path()
    }

    /// Returns the binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Puts the archive at another path or URL.
    pub fn set_archive(&mut self, archive: String) {
        self.archive = archive;
    }

    /// Returns the archive's path or URL.
    pub fn archive(&self) -> &str {
        &self.archive
    }

    /// Writes a file into the folder and returns its path.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, content).expect("the folder is ours");
        self.folder.inputs.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        path
    }

    /// Returns the segments of an archive in a folder, in the order of their paths.
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect_parquet(Path::new(&self.archive), &mut found);
        found.sort();
        found
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// The binary is not there, or the command hangs.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.spawn(args).wait(RUN_DEADLINE)
    }

    /// Runs a command to its end with `input` on its stdin.
    ///
    /// # Panics
    /// The binary is not there, or the command hangs.
    #[track_caller]
    pub fn run_with_input<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        input: Vec<u8>,
    ) -> Output {
        let mut running = self.start(&[], args, &[], Stdio::piped());
        let mut stdin = running.child.stdin.take().expect("its stdin is a pipe");
        // A command may end without reading all of it; what it says then is what counts.
        running.readers.push(std::thread::spawn(move || drop(stdin.write_all(&input))));
        running.wait(RUN_DEADLINE)
    }

    /// Runs a command that must succeed, and returns the one JSON object on its stdout.
    ///
    /// # Panics
    /// It fails, or writes something else.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let output = self.run(args);
        output.check(0);
        output.json()
    }

    /// Starts a command.
    ///
    /// # Panics
    /// The binary is not there.
    #[track_caller]
    pub fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        self.spawn_with(args, &[])
    }

    /// Starts a command with further environment variables, which win over those that are set.
    ///
    /// # Panics
    /// The binary is not there.
    #[track_caller]
    pub fn spawn_with<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        variables: &[(&str, &str)],
    ) -> Running {
        self.start(&[], args, variables, Stdio::null())
    }

    /// Starts a command as [`Dacapo::spawn_with`] does, through another program and its arguments.
    ///
    /// # Panics
    /// The program is not there.
    #[track_caller]
    pub fn spawn_under<A: AsRef<OsStr>>(
        &self,
        program: &[&str],
        args: impl IntoIterator<Item = A>,
        variables: &[(&str, &str)],
    ) -> Running {
        self.start(program, args, variables, Stdio::null())
    }

    /// Returns what a command must not tell.
    fn secrets(&self, args: &[OsString], variables: &[(&str, &str)]) -> Secrets {
        let mut secrets = Secrets::of_suite();
        let own = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.chain(variables.iter().copied()) {
            secrets.add_variable(name, value);
        }
        let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        secrets.add_command(self.folder(), &args);
        self.folder.secrets.lock().unwrap_or_else(PoisonError::into_inner).add_all(&secrets);
        secrets
    }

    #[track_caller]
    fn start<A: AsRef<OsStr>>(
        &self,
        program: &[&str],
        args: impl IntoIterator<Item = A>,
        variables: &[(&str, &str)],
        stdin: Stdio,
    ) -> Running {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let secrets = self.secrets(&args, variables);
        let mut words = program.iter().map(OsStr::new).chain([self.binary.as_os_str()]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words);
        for setting in environment::settings() {
            command.env_remove(setting);
        }
        let mut child = command
            .args(&args)
            .current_dir(self.folder())
            .env("HOME", self.folder())
            .env("DACAPO_ARCHIVE", &self.archive)
            .env("DACAPO_INDEX", self.folder().join("index"))
            .env("DACAPO_STATE", self.folder().join("state"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(variables.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the `dacapo` binary runs");
        let lifeline = Lifeline::to_process(child.id()).expect("a shell can be started");
        let written = Arc::new(Written::default());
        let stdout = child.stdout.take().expect("its stdout is a pipe");
        let stderr = child.stderr.take().expect("its stderr is a pipe");
        let readers = vec![
            follow(stdout, Pipe::Stdout, Arc::clone(&written)),
            follow(stderr, Pipe::Stderr, Arc::clone(&written)),
        ];
        Running { child, args, secrets, _lifeline: lifeline, written, readers }
    }
}

impl Default for Dacapo {
    fn default() -> Self {
        Dacapo::new()
    }
}

impl Output {
    /// Checks the exit code.
    ///
    /// # Panics
    /// It is another; the message shows everything the command wrote.
    #[track_caller]
    pub fn check(&self, status: i32) {
        assert_eq!(self.status, Some(status), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
    }

    /// Returns the one JSON value on stdout.
    ///
    /// # Panics
    /// There is something else.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("{error} in stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr),
        }
    }

    /// Returns the JSON values on stdout, one a line.
    ///
    /// # Panics
    /// A line is something else.
    #[track_caller]
    pub fn ndjson(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| match serde_json::from_str(line) {
                Ok(value) => value,
                Err(error) => panic!("{error} in the line {line}"),
            })
            .collect()
    }
}

impl Running {
    /// Returns its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has written a line that contains `text`, on stdout or stderr, and returns
    /// the line. Lines written before count too.
    ///
    /// # Panics
    /// It has not within `deadline`, or it ended without; the message shows what it wrote.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str, deadline: Duration) -> String {
        let so_far = self.written.lock();
        let (so_far, _) = self
            .written
            .more
            .wait_timeout_while(so_far, deadline, |so_far| {
                so_far.line_with(text).is_none() && so_far.ended < 2
            })
            .unwrap_or_else(PoisonError::into_inner);
        match so_far.line_with(text) {
            Some(line) => line,
            None => panic!("no line with “{text}”; {so_far}"),
        }
    }

    /// Returns what it has written so far to stdout and to stderr.
    pub fn written(&self) -> (String, String) {
        let so_far = self.written.lock();
        (lossy(&so_far.stdout), lossy(&so_far.stderr))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, which: Signal) -> Result<()> {
        signal(self.pid(), which)
    }

    /// Returns whether it runs.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("failed to ask for a child process")?.is_none())
    }

    /// Ends it at once with `kill -9`, and returns what it wrote.
    ///
    /// # Panics
    /// It does not end.
    #[track_caller]
    pub fn kill(mut self) -> Output {
        self.child.kill().expect("it is our child");
        self.wait(RUN_DEADLINE)
    }

    /// Waits until it ends, and returns how.
    ///
    /// # Panics
    /// It does not within `deadline`; the message shows what it wrote.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Output {
        let ended = wait::until("the command ends", deadline, || {
            self.child.try_wait().context("failed to ask for a child process")
        });
        let status = match ended {
            Ok(status) => status,
            Err(error) => panic!("{error:#}; {}", *self.written.lock()),
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        self.check_secrets();
        let (stdout, stderr) = self.written();
        let stdout_bytes = self.written.lock().stdout.clone();
        Output { status: status.code(), stdout, stdout_bytes, stderr }
    }
}

impl Running {
    /// Checks that nothing it has written tells a secret that it was given.
    #[track_caller]
    fn check_secrets(&self) {
        let written = self.written.lock();
        for (pipe, bytes) in [("stdout", &written.stdout), ("stderr", &written.stderr)] {
            if let Some(told) = self.secrets.told(bytes) {
                panic!("{told} of {pipe} of `dacapo {:?}`; {}", self.args, *written);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only if it has already been waited for.
        let dropped_running = self.child.kill().and_then(|()| self.child.wait()).is_ok();
        if dropped_running && !std::thread::panicking() {
            self.check_secrets();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let told = secrets.told_by_files(self.folder.path(), &inputs);
        let told = told.expect("the installation's files are readable");
        assert!(told.is_empty(), "files tell secrets: {told:?}");
        #[cfg(feature = "services")]
        if let Some(prefix) = &self.prefix {
            let told = crate::stored::told_by_objects(prefix, &secrets);
            let told = told.expect("the S3 server under test answers");
            assert!(told.is_empty(), "objects tell secrets: {told:?}");
        }
    }
}

impl Written {
    fn lock(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SoFar {
    /// Returns the first finished line that contains `text`.
    fn line_with(&self, text: &str) -> Option<String> {
        [&self.stdout, &self.stderr].into_iter().find_map(|written| {
            let finished = written.iter().rposition(|byte| *byte == b'\n')?;
            let lines = String::from_utf8_lossy(&written[..finished]);
            lines.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }
}

impl fmt::Display for SoFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stdout:\n{}\nstderr:\n{}", lossy(&self.stdout), lossy(&self.stderr))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Copies from a pipe until it ends.
fn follow(mut from: impl Read + Send + 'static, pipe: Pipe, to: Arc<Written>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = [0; PIPE_BYTES];
        loop {
            // An error is the end, as a closed pipe is.
            let bytes = from.read(&mut chunk).unwrap_or(0);
            let mut so_far = to.lock();
            match (bytes, pipe) {
                (0, _) => so_far.ended += 1,
                (_, Pipe::Stdout) => so_far.stdout.extend_from_slice(&chunk[..bytes]),
                (_, Pipe::Stderr) => so_far.stderr.extend_from_slice(&chunk[..bytes]),
            }
            to.more.notify_all();
            if bytes == 0 {
                return;
            }
        }
    })
}

fn collect_parquet(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect_parquet(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests;
