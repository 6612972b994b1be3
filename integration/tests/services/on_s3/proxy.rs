//! A proxy before an S3 server: notes what is read, and answers for one object as if it lay in
//! cold storage.
//!
//! It passes one request on each connection, and only requests without a body.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// The most lines of a request's head: the SDK sends some twenty.
const HEAD_LINES_MAX: usize = 100;

/// Listens until dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    /// The end of the path of the object that is cold.
    cold: Option<String>,
    /// Paths with their queries, in the order of their arrival.
    requests: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Proxy {
    /// Starts one before the server at this URL.
    pub(super) fn before(endpoint: &str, cold: Option<&str>) -> Self {
        let upstream = endpoint.strip_prefix("http://").expect("a plain server").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream,
            // `=` is escaped in paths.
            cold: cold.map(|key| key.replace('=', "%3D")),
            requests: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let listening = Some(std::thread::spawn(move || listen(&listener, &of_thread)));
        Proxy { address, shared, listening }
    }

    /// Returns its URL, for `AWS_ENDPOINT_URL`.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests since it was asked last.
    pub(super) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.requests.lock().expect("no holder panics"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the listener; one that has ended needs no waking.
        TcpStream::connect(self.address).ok();
        if let Some(listening) = self.listening.take() {
            listening.join().ok();
        }
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(shared);
        // A connection that breaks is the client's to report.
        std::thread::spawn(move || client.and_then(|client| pass(client, &shared)).ok());
    }
}

fn pass(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    for _ in 0..HEAD_LINES_MAX {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { return Ok(()) };
    shared.requests.lock().expect("no holder panics").push(path.to_owned());
    let object = path.split('?').next().unwrap_or(path);
    if shared.cold.as_ref().is_some_and(|cold| object.ends_with(cold.as_str())) {
        return client.write_all(refusal().as_bytes());
    }
    let mut upstream = TcpStream::connect(&shared.upstream)?;
    let head: String = head.concat();
    write!(upstream, "{head}Connection: close\r\n\r\n")?;
    let length = body_length(&head);
    io::copy(&mut reader.take(length), &mut upstream)?;
    io::copy(&mut upstream, &mut client)?;
    client.shutdown(Shutdown::Both)
}

fn body_length(head: &str) -> u64 {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse().ok())
        .unwrap_or(0)
}

/// What S3 answers for an object of class `GLACIER`.
fn refusal() -> String {
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>InvalidObjectState</Code>\
                <Message>The operation is not valid for the object's storage class</Message>\
                <StorageClass>GLACIER</StorageClass></Error>";
    format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
