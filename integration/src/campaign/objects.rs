//! A proxy before the S3 server that fails requests as S3, a network or a disk does: at the one
//! request it was told to wait for, before the server has done it or after.
//!
//! It passes one request on each connection, whole.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use super::wire::Gauge;
use crate::wait;

/// The most lines of a request's head: the SDK sends some twenty.
const HEAD_LINES_MAX: usize = 100;

/// How long an answer is held back at the most: longer than any request may take, so that the
/// client gives up first.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A request that may be struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// Its method.
    pub method: &'static str,
    /// What its path contains.
    pub path: &'static str,
}

/// Whether the server has done what was asked when it is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It never hears of the request.
    Before,
    /// It has, and the client does not hear so.
    After,
}

/// What becomes of a struck request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// This status, with this code in the body.
    Answer(u16, &'static str, Moment),
    /// No answer until [`Objects::heal`].
    Hold(Moment),
    /// The body ends half way: that of a put on its way up, else that of the answer.
    Truncate,
    /// A byte in the middle of the body is another.
    Corrupt,
    /// The connection is reset.
    Reset(Moment),
}

/// Listens until dropped.
#[derive(Debug)]
pub struct Objects {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ended: bool,
    rule: Option<Rule>,
    /// What was struck, in words.
    struck: Vec<String>,
    /// Raised by each [`Objects::heal`]: what is held from before goes on.
    healed: u64,
    /// The last parts of keys that listings do not show.
    hidden: Hidden,
}

#[derive(Debug, Default)]
struct Hidden {
    active: bool,
    keys: BTreeSet<String>,
}

#[derive(Debug)]
struct Rule {
    aim: Aim,
    harm: Harm,
    times: u32,
    /// Only while this has something unconfirmed.
    during: Option<Gauge>,
}

impl Objects {
    /// Starts one before the server's port.
    ///
    /// # Errors
    /// No port is free.
    pub fn before(server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
        let address = listener.local_addr().context("a bound socket has an address")?;
        let shared = Arc::new(Shared { server, state: Mutex::default(), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || listen(&listener, &of_thread));
        Ok(Objects { address, shared })
    }

    /// Returns its URL, for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Strikes the next `times` requests at which it is aimed, while `during` has something
    /// unconfirmed if it is given.
    pub fn strike(&self, aim: Aim, harm: Harm, times: u32, during: Option<Gauge>) {
        self.tell(|state| {
            state.struck.clear();
            state.rule = Some(Rule { aim, harm, times, during });
        });
    }

    /// Waits until a request was struck, and returns which.
    ///
    /// # Errors
    /// None was within `deadline`.
    pub fn await_struck(&self, deadline: Duration) -> Result<String> {
        wait::until("a request to S3 is struck", deadline, || {
            Ok(self.shared.lock().struck.first().cloned())
        })
    }

    /// Returns what was struck since [`Objects::strike`].
    pub fn struck(&self) -> Vec<String> {
        self.shared.lock().struck.clone()
    }

    /// Does no harm from now on, lets go what is held, and lists everything.
    pub fn heal(&self) {
        self.tell(|state| {
            state.rule = None;
            state.healed += 1;
            state.hidden = Hidden::default();
        });
    }

    /// Leaves everything that is put from now on out of listings.
    pub fn hide_new(&self) {
        self.tell(|state| state.hidden = Hidden { active: true, keys: BTreeSet::new() });
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.tell(|state| {
            state.ended = true;
            state.healed += 1;
        });
        // Wakes the listener; one that has ended needs no waking.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the harm that this request comes to, and notes it.
    fn harm_of(&self, request: &Request) -> Option<Harm> {
        let mut state = self.lock();
        if state.hidden.active && request.method == "PUT" {
            let key = last_part(&request.path).to_owned();
            state.hidden.keys.insert(key);
        }
        let rule = state.rule.as_mut()?;
        let aimed = rule.aim.method == request.method && request.path.contains(rule.aim.path);
        if !aimed || rule.during.as_ref().is_some_and(|gauge| gauge.unconfirmed() == 0) {
            return None;
        }
        let harm = rule.harm;
        let window =
            rule.during.as_ref().map(|gauge| format!(", {} unconfirmed", gauge.unconfirmed()));
        rule.times -= 1;
        if rule.times == 0 {
            state.rule = None;
        }
        let moment = match harm {
            Harm::Answer(_, _, Moment::After)
            | Harm::Hold(Moment::After)
            | Harm::Reset(Moment::After) => "done",
            _ => "begun",
        };
        let path = last_parts(&request.path);
        let (method, window) = (&request.method, window.unwrap_or_default());
        state.struck.push(format!("{method} {path} {moment} and not answered{window}"));
        drop(state);
        self.changed.notify_all();
        Some(harm)
    }

    /// Waits until it is healed.
    fn hold(&self) {
        let state = self.lock();
        let healed = state.healed;
        let waited =
            self.changed.wait_timeout_while(state, SILENCE_MAX, |state| state.healed == healed);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

struct Request {
    method: String,
    /// With its query.
    path: String,
    head: String,
    body: Vec<u8>,
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.lock().ended {
            return;
        }
        let shared = Arc::clone(shared);
        // A connection that breaks is the client's to report.
        std::thread::spawn(move || client.and_then(|client| serve(client, &shared)).ok());
    }
}

fn serve(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let Some(mut request) = read_request(&client)? else { return Ok(()) };
    let harm = shared.harm_of(&request);
    match harm {
        Some(Harm::Answer(status, code, Moment::Before)) => {
            return client.write_all(&failure(status, code));
        }
        Some(Harm::Hold(Moment::Before)) => {
            shared.hold();
            if is_gone(&client)? {
                // What a dead machine had not sent is never sent.
                return Ok(());
            }
        }
        Some(Harm::Reset(Moment::Before)) => return reset(&client),
        Some(Harm::Truncate) if !request.body.is_empty() => {
            request.body.truncate(request.body.len() / 2);
            // The server waits for the rest, and hears the end of the connection instead.
            let mut upstream = begin(&request, shared.server)?;
            upstream.shutdown(Shutdown::Both)?;
            upstream.flush()?;
            return reset(&client);
        }
        Some(Harm::Corrupt) if !request.body.is_empty() => corrupt(&mut request.body),
        _ => {}
    }
    let mut answer = Vec::new();
    begin(&request, shared.server)?.read_to_end(&mut answer)?;
    match harm {
        Some(Harm::Answer(status, code, Moment::After)) => answer = failure(status, code),
        Some(Harm::Hold(Moment::After)) => shared.hold(),
        Some(Harm::Reset(Moment::After)) => return reset(&client),
        Some(Harm::Truncate) if request.body.is_empty() => {
            let body = body_of(&answer);
            answer.truncate(body + (answer.len() - body) / 2);
        }
        Some(Harm::Corrupt) if request.body.is_empty() => {
            let body = body_of(&answer);
            corrupt(&mut answer[body..]);
        }
        _ => {}
    }
    if request.path.contains("list-type=2") {
        answer = without_hidden(answer, &shared.lock().hidden);
    }
    client.write_all(&answer)?;
    client.shutdown(Shutdown::Both)
}

/// Reads a request whole; nothing if the client made none.
fn read_request(client: &TcpStream) -> io::Result<Option<Request>> {
    let mut reader = BufReader::new(client);
    let mut head = String::new();
    let mut length = 0;
    let mut expects = false;
    for _ in 0..HEAD_LINES_MAX {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "expect" => {
                expects = true;
                continue;
            }
            "connection" => continue,
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
        head.push_str(&line);
    }
    let mut words = head.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let (method, path) = (method.to_owned(), path.to_owned());
    if expects {
        let mut client = client;
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    Ok(Some(Request { method, path, head, body }))
}

/// Sends a request to the server.
fn begin(request: &Request, server: u16) -> io::Result<TcpStream> {
    let mut upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
    upstream.set_nodelay(true)?;
    let head = format!("{}Connection: close\r\n\r\n", request.head);
    upstream.write_all(&[head.as_bytes(), &request.body].concat())?;
    Ok(upstream)
}

/// Returns whether the client has ended the connection.
fn is_gone(client: &TcpStream) -> io::Result<bool> {
    client.set_nonblocking(true)?;
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false)?;
    Ok(!peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock))
}

fn reset(client: &TcpStream) -> io::Result<()> {
    SockRef::from(client).set_linger(Some(Duration::ZERO))
}

fn corrupt(body: &mut [u8]) {
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 0x20;
    }
}

/// Returns where the body of an answer begins.
fn body_of(answer: &[u8]) -> usize {
    answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer.len(), |at| at + 4)
}

fn failure(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>the campaign says so</Message></Error>"
    );
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Takes what is hidden out of the answer to a listing.
fn without_hidden(answer: Vec<u8>, hidden: &Hidden) -> Vec<u8> {
    const BEGIN: &str = "<Contents>";
    const END: &str = "</Contents>";
    let body = body_of(&answer);
    let Ok(text) = std::str::from_utf8(&answer[body..]) else { return answer };
    if hidden.keys.is_empty() || !text.contains(BEGIN) {
        return answer;
    }
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, entry_on)) = rest.split_once(BEGIN) {
        let (entry, after) = entry_on.split_once(END).unwrap_or((entry_on, ""));
        let key = entry.split_once("<Key>").and_then(|(_, on)| on.split_once("</Key>"));
        let key = key.map_or("", |(key, _)| key);
        shown.push_str(before);
        if !hidden.keys.contains(last_part(key)) {
            shown.extend([BEGIN, entry, END]);
        }
        rest = after;
    }
    shown.push_str(rest);
    let length = shown.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{shown}"
    )
    .into_bytes()
}

/// Returns what a path or key ends with.
fn last_part(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the kind of object and its name.
fn last_parts(path: &str) -> String {
    let kind = ["segments", "chain", "heads"].into_iter().find(|kind| path.contains(kind));
    format!("{}/…/{}", kind.unwrap_or("?"), last_part(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_shows_only_what_is_not_hidden() {
        let entry = |key: &str| format!("<Contents><Key>p/{key}</Key><Size>1</Size></Contents>");
        let list = |keys: &[&str]| {
            let entries: String = keys.iter().map(|key| entry(key)).collect();
            format!("<List>{entries}<KeyCount>9</KeyCount></List>")
        };
        let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}", list(&["1", "2", "3"])).into_bytes();
        let keys = ["2".to_owned()].into();
        let shown = without_hidden(answer, &Hidden { active: true, keys });
        let text = String::from_utf8(shown).unwrap();
        assert_eq!(text.split_once("\r\n\r\n").unwrap().1, list(&["1", "3"]));
    }

    #[test]
    fn a_corrupted_body_differs_in_one_byte() {
        let mut body = *b"abcd";
        corrupt(&mut body);
        assert_eq!(&body, b"abCd");
    }
}
