//! Bad input gets a clear error with its exit code, which names the thing, the place and the next
//! step; and nothing is lost by it.

mod archives;
mod damaged;
mod files;
mod lines;
mod odd_events;
mod plans;
mod selection;
mod settings;
