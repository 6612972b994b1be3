//! The one module that prints: stdout is data, stderr is talk.

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use crate::exit::Exit;
use crate::format;

/// Prints as a person or as a script wants it.
#[derive(Debug)]
pub struct Output {
    form: Form,
}

/// For whom stdout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

impl Output {
    /// Returns an output in JSON if asked for.
    pub fn new(json: bool) -> Self {
        Output { form: if json { Form::Json } else { Form::Text } }
    }

    /// Returns for whom stdout is.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Prints a result: `json` for scripts, or the text for people.
    pub fn result(&self, json: &Value, text: impl FnOnce() -> String) -> io::Result<()> {
        match self.form {
            Form::Json => self.data(format!("{json}\n").as_bytes()),
            Form::Text => self.data(format::harmless(&text()).as_bytes()),
        }
    }

    /// Writes bytes to stdout as they are. A reader that has gone away (`| head`) is no error.
    pub fn data(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("failed to write to stdout: {error}")))
            }
            Ok(()) => Ok(()),
        }
    }

    /// Tells a person something on stderr; a script does not see it. What events say in it cannot
    /// move the cursor.
    pub fn talk(&self, text: &str) {
        // Nobody is left to tell that stderr is closed.
        drop(writeln!(io::stderr().lock(), "{}", format::harmless(text)));
    }

    /// Returns whether a person watches stderr.
    pub fn watched(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Reports why a command failed: in words on stderr, and for scripts on stdout, too.
    pub fn error(&self, error: &anyhow::Error, exit: Exit) {
        let words = words(error.as_ref());
        self.talk(&format!("error: {words}"));
        if self.form == Form::Json {
            let json = json!({ "error": words, "status": exit as u8 });
            drop(self.data(format!("{json}\n").as_bytes()));
        }
    }
}

/// Returns an error with its causes, each said once.
pub fn words(error: &(dyn Error + 'static)) -> String {
    let mut words = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.ends_with(&text) {
            if !words.is_empty() {
                words.push_str(": ");
            }
            words.push_str(&text);
        }
        cause = error.source();
    }
    words
}
