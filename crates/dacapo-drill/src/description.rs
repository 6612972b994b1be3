//! What a drill is asked to do, out of TOML. Typed here; the form in the file is `wire`.

mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dacapo_event::FieldTable;

use crate::DrillError;

/// The most bytes of a description: a hundred checks of a screen each have some 100 KB.
pub const DESCRIPTION_BYTES_MAX: u64 = 256 * 1024;

/// The most checks: at a second each they take less than two minutes.
pub const CHECKS_MAX: usize = 100;

/// The longest name of a drill or check: it stands in one line of a report.
const NAME_CHARS_MAX: usize = 100;

/// How long a service may take to be ready unless the description says otherwise.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long draining may take unless the description says otherwise.
const DRAIN_WITHIN: Duration = Duration::from_secs(60 * 60);

/// How long a service may take to stop before it is killed: as Kubernetes has it.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How long a check may take to become green: past the commit of the last event.
const CHECK_WITHIN: Duration = Duration::from_secs(30);

/// How long one question of a check may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The longest time that a description may name: a clock has a year to go, whatever its form.
pub const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What stands for the broker's URL, with its password, in texts of a description.
const AMQP_VARIABLE: &str = "${DACAPO_DRILL_AMQP}";

/// A rehearsal, described.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// What it is called in reports.
    pub name: String,
    /// Where it is done.
    pub environment: Environment,
    /// Which events, as flags of a selection.
    pub selection: Vec<Flag>,
    /// The queue that they are played to.
    pub queue: String,
    /// The rest of the target, as flags.
    pub target: Vec<Flag>,
    /// How fast, as flags.
    pub pace: Vec<Flag>,
    /// What consumes them.
    pub service: Service,
    /// What must be true afterwards.
    pub checks: Vec<Check>,
    /// What the service says it has of each type, if it is asked.
    pub counts: Option<Query>,
    /// What is to be met.
    pub targets: Targets,
    /// Where the archiver tells its lag, if it is asked.
    pub archiver_metrics: Option<String>,
}

/// Where a drill is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// The virtual host.
    pub vhost: Vhost,
    /// Another broker than that of the command line.
    pub amqp: Option<Secret>,
    /// The management plugin of that broker.
    pub management: Option<Secret>,
    /// Whether it may be production's own virtual host.
    pub shared: Shared,
    /// What is made of it, beside the queues.
    pub definitions: Option<Definitions>,
    /// Queues to make.
    pub queues: Vec<Queue>,
}

/// A virtual host to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vhost {
    /// One of the drill's own, made and deleted.
    New,
    /// One that is there, and stays.
    Taken(String),
}

/// Whether production's own virtual host may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// It is refused.
    Refuse,
    /// The description says `allow_shared = true`.
    Allow,
}

/// Where exchanges, queues and bindings are copied from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definitions {
    /// The newest that the archive keeps, or a file.
    pub from: DefinitionsFrom,
    /// The virtual host whose they are; the only one there is, if not named.
    pub vhost: Option<String>,
}

/// A place of definitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefinitionsFrom {
    /// The archive.
    Archive,
    /// A file.
    File(String),
}

/// A queue to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// A flag of the command line, as the section of the description says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag(pub String);

/// What consumes the events.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// What is started; nothing if it is running already.
    pub command: Option<Vec<String>>,
    /// What its environment has besides.
    pub env: BTreeMap<String, Secret>,
    /// What says that it is ready; a consumer on the queue, if nothing.
    pub ready: Option<Vec<String>>,
    /// Within which time.
    pub ready_within: Duration,
    /// How it is asked to end.
    pub stop: Stop,
    /// Within which time it ends before it is killed.
    pub stop_within: Duration,
    /// Within which time its queue is empty once all is published.
    pub drain_within: Duration,
}

/// How a service is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGKILL: it is not asked.
    Kill,
}

/// A question with the answer that is expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What it is called.
    pub name: String,
    /// The question.
    pub query: Query,
    /// The answer.
    pub expect: Expect,
    /// It is asked again until it is answered so, for no longer than this.
    pub within: Duration,
}

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// How it is asked.
    pub how: How,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// How a question is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// A command; its stdout is the answer, and its exit status must be 0.
    Command(Vec<String>),
    /// A statement to a SQLite database that is opened for reading.
    Sqlite {
        /// The statement.
        sql: String,
        /// The path of the database.
        path: String,
    },
    /// A GET over plain HTTP; its body is the answer, and its status must be 200.
    Http(String),
}

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Expect {
    /// Any.
    Success,
    /// This text, blanks around it aside.
    Text(String),
    /// This whole number.
    Integer(i64),
    /// This number.
    Number(f64),
    /// What production answers.
    Production(Query),
}

/// What is to be met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Targets {
    /// Within which time the service is restored.
    pub rto: Option<Duration>,
    /// Of which time at the most events are lost.
    pub rpo: Option<Duration>,
}

/// A text that no message, log or report shows. `Debug` leaves it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Says what is asked, without what a database's path or a URL may hold of secrets.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            // Arguments may be passwords.
            How::Command(command) => write!(f, "command `{}`", command[0]),
            How::Sqlite { sql, .. } => write!(f, "SQL `{sql}`"),
            How::Http(url) => {
                write!(f, "GET {}", url.split_once('?').map_or(url.as_str(), |(url, _)| url))
            }
        }
    }
}

impl Description {
    /// Parses a description.
    ///
    /// # Errors
    /// It is not one; the message has the line and the key, and quotes no value.
    pub fn parse(text: &str) -> Result<Self, DrillError> {
        wire::parse(text)
    }
}

#[cfg(test)]
mod tests;
