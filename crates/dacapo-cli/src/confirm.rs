//! Asks a person before something that cannot be taken back.

use std::io::{IsTerminal, stdin};

use crate::exit::Failure;
use crate::output::Output;

/// Asks a person at the terminal to type `word`; without a terminal there is nobody to ask, and
/// `instead` says what to do.
pub fn ask(output: &Output, question: &str, word: &str, instead: &str) -> anyhow::Result<()> {
    if !stdin().is_terminal() {
        let problem = format!("{question}; there is nobody to ask here: {instead}");
        return Err(Failure::usage(problem).into());
    }
    output.talk(&format!("{question}.\nType `{word}` to go on:"));
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    match answer.trim() == word {
        true => Ok(()),
        false => Err(Failure::usage("not confirmed; nothing was published").into()),
    }
}
