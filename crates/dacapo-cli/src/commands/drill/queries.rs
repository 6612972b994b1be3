//! Asks questions: a command, a SQLite database, an address. Every answer has a deadline and a bound.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dacapo_drill::description::{How, Query};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle, OpenFlags};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::service::Group;

/// The most bytes of an answer: a number, a line, or the counts of a thousand types.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What is shown in place of a secret.
const HIDDEN: &str = "(hidden)";

/// What commands and questions are told of the drill, and where they leave what they say besides.
#[derive(Debug, Clone)]
pub struct Told {
    /// Names and values for the environment; `${NAME}` in a description stands for them as well.
    pub variables: Vec<(&'static str, String)>,
    /// What no answer and no problem shows: the broker's URL and its password.
    pub secrets: Vec<String>,
    /// The folder of the drill's report.
    pub folder: PathBuf,
}

impl Told {
    /// Returns a text with the values of the drill's variables in it.
    pub fn fill(&self, text: &str) -> String {
        let put = |text: String, (name, value): &(&str, String)| {
            text.replace(&format!("${{{name}}}"), value)
        };
        self.variables.iter().fold(text.to_owned(), put)
    }

    /// Returns a text without the secrets, to be shown.
    pub fn hide(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }

    /// Returns a command that is told of the drill; its group is ended with it.
    pub fn command(&self, words: &[String]) -> Command {
        let mut words = words.iter().map(|word| self.fill(word));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        command
    }

    /// Opens a file of the folder, to be written on.
    pub fn log(&self, name: &str) -> std::io::Result<File> {
        File::options().create(true).append(true).open(self.folder.join(name))
    }
}

/// Asks, and returns the answer without blanks around it, or why there is none.
pub async fn ask(query: &Query, told: &Told) -> Result<String, String> {
    let answer = match &query.how {
        How::Command(words) => within(query.timeout, run(words, told)).await,
        How::Sqlite { sql, path } => {
            sqlite(sql.clone(), told.fill(path).into(), query.timeout).await
        }
        How::Http(url) => within(query.timeout, get(&told.fill(url))).await,
    };
    answer.map(|answer| answer.trim().to_owned())
}

/// Returns the body of a page over plain HTTP.
pub async fn page(url: &str, timeout: Duration) -> Result<String, String> {
    within(timeout, get(url)).await
}

async fn within(
    timeout: Duration,
    asking: impl Future<Output = Result<String, String>>,
) -> Result<String, String> {
    match tokio::time::timeout(timeout, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {timeout:?}")),
    }
}

async fn run(words: &[String], told: &Told) -> Result<String, String> {
    let mut command = told.command(words);
    let log = told.log("checks.log").map_err(|error| format!("no log: {error}"))?;
    let child = command
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| format!("failed to start `{}`: {error}", words[0]))?;
    let mut group = Group::of(child);
    let stdout = group.child.stdout.take().expect("its stdout is a pipe");
    let mut stdout = stdout.take(ANSWER_BYTES_MAX as u64 + 1);
    let mut answer = Vec::new();
    stdout
        .read_to_end(&mut answer)
        .await
        .map_err(|error| format!("its answer was not read: {error}"))?;
    if answer.len() > ANSWER_BYTES_MAX {
        return Err(format!("its answer has more than {ANSWER_BYTES_MAX} bytes"));
    }
    let status = group.ended().await.map_err(|error| error.to_string())?;
    match status.success() {
        true => String::from_utf8(answer).map_err(|_| "its answer is no text".to_owned()),
        false => Err(format!("{status}; what it said is in checks.log")),
    }
}

async fn get(url: &str) -> Result<String, String> {
    let url: Uri = url.parse().map_err(|_| "this is no URL".to_owned())?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80)));
    let stream = stream.await.map_err(|error| format!("no connection: {error}"))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let question = Request::get(path)
        .header(header::HOST, url.authority().map_or("", |place| place.as_str()))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async move {
        let answer = sender.send_request(question).await.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("status {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("its body was not read: {error}"))?;
        String::from_utf8(body.to_bytes().to_vec()).map_err(|_| "its body is no text".to_owned())
    };
    // What ends the connection early ends the answer, too, and is told there.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// Rows are lines, cells are between tabs.
async fn sqlite(sql: String, path: PathBuf, timeout: Duration) -> Result<String, String> {
    let open = move || open(&path, timeout);
    let database = tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())??;
    let _stop = Interrupts(database.get_interrupt_handle());
    let mut asking = tokio::task::spawn_blocking(move || rows(&database, &sql));
    match tokio::time::timeout(timeout, &mut asking).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => Err(format!("no answer within {timeout:?}")),
    }
}

/// Ends a statement that nobody waits for any more.
struct Interrupts(InterruptHandle);

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

fn open(path: &Path, timeout: Duration) -> Result<Connection, String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags);
    let database =
        database.map_err(|error| format!("failed to open `{}`: {error}", path.display()))?;
    database.busy_timeout(timeout).map_err(|error| error.to_string())?;
    Ok(database)
}

fn rows(database: &Connection, sql: &str) -> Result<String, String> {
    let wrong = |error: rusqlite::Error| error.to_string();
    let mut statement = database.prepare(sql).map_err(wrong)?;
    let columns = statement.column_count();
    let mut rows = statement.query([]).map_err(wrong)?;
    let mut answer = String::new();
    while let Some(row) = rows.next().map_err(wrong)? {
        for column in 0..columns {
            let cell = match row.get_ref(column).map_err(wrong)? {
                ValueRef::Null => String::new(),
                ValueRef::Integer(value) => value.to_string(),
                ValueRef::Real(value) => value.to_string(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                ValueRef::Blob(bytes) => format!("({} bytes)", bytes.len()),
            };
            answer.push_str(if column == 0 { "" } else { "\t" });
            answer.push_str(&cell);
        }
        answer.push('\n');
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(format!("its answer has more than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    Ok(answer)
}

/// Pairs as a JSON object has them, a name that comes twice among them.
struct Pairs(Vec<(String, u64)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of counts by type")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = members.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Members)
    }
}

/// Reads counts by type: a JSON object of them, a JSON list of pairs, or a line `TYPE tab COUNT` each.
/// A type that comes twice is refused: which of its counts would be meant?
pub fn counts(answer: &str) -> Result<BTreeMap<String, u64>, String> {
    if answer.starts_with('{') {
        let pairs: Pairs = serde_json::from_str(answer).map_err(|error| error.to_string())?;
        return unique(pairs.0);
    }
    if answer.starts_with('[') {
        let pairs: Vec<(String, u64)> =
            serde_json::from_str(answer).map_err(|error| error.to_string())?;
        return unique(pairs);
    }
    let lines = answer.lines().filter(|line| !line.trim().is_empty());
    let pair = |line: &str| {
        let (kind, count) = line.rsplit_once('\t')?;
        Some((kind.to_owned(), count.trim().parse().ok()?))
    };
    let pairs: Option<Vec<(String, u64)>> = lines.map(pair).collect();
    unique(pairs.ok_or_else(|| {
        "it is neither a JSON object of counts by type nor lines `TYPE tab COUNT`".to_owned()
    })?)
}

fn unique(pairs: Vec<(String, u64)>) -> Result<BTreeMap<String, u64>, String> {
    let mut counts = BTreeMap::new();
    for (kind, count) in pairs {
        if counts.insert(kind.clone(), count).is_some() {
            return Err(format!("type `{kind}` comes twice"));
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_in_each_form() {
        let expected: BTreeMap<String, u64> = [("a".to_owned(), 1), ("b c".to_owned(), 2)].into();
        for text in [r#"{"a": 1, "b c": 2}"#, r#"[["a", 1], ["b c", 2]]"#, "a\t1\nb c\t2\n"] {
            assert_eq!(counts(text).as_ref(), Ok(&expected), "{text}");
        }
        for wrong in ["5", "{\"a\": -1}", "{\"a\": \"1\"}", "[1]", "a 1", "a\tx", "{"] {
            assert!(counts(wrong).is_err(), "{wrong}");
        }
        for twice in [r#"{"a": 1, "a": 1}"#, r#"[["a", 1], ["a", 2]]"#, "a\t1\na\t2\n"] {
            assert!(counts(twice).unwrap_err().contains("twice"), "{twice}");
        }
        assert_eq!(counts(""), Ok(BTreeMap::new()));
    }

    #[tokio::test]
    async fn a_database_is_read_and_never_written() {
        let folder = std::env::temp_dir().join(format!("dacapo-queries-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("t.sqlite");
        let made = Connection::open(&path).unwrap();
        made.execute_batch("CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (NULL, 2.5);")
            .unwrap();
        let soon = Duration::from_secs(30);
        let ask = |sql: &str| sqlite(sql.to_owned(), path.clone(), soon);
        assert_eq!(ask("SELECT * FROM t").await.unwrap(), "1\tx\n\t2.5\n");
        assert!(ask("DELETE FROM t").await.unwrap_err().contains("readonly"));
        assert!(ask("SELECT").await.is_err());
        let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) \
                       SELECT count(*) FROM n";
        let moment = Duration::from_millis(50);
        let late = sqlite(endless.to_owned(), path.clone(), moment).await.unwrap_err();
        assert!(late.contains("no answer within"), "{late}");
        let many =
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n";
        assert!(ask(many).await.unwrap_err().contains("more than"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
