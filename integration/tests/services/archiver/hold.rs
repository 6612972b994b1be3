//! A proxy in front of an S3 server that holds back one request, or the answer to it, for ever:
//! the moment at which a test kills whoever waits.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is read at once: a request's head comes in one piece of this.
const CHUNK_BYTES: usize = 65_536;

/// What is held back of a `PUT` whose path contains the text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hold {
    /// The server does not see it.
    Request(&'static str),
    /// The server has done it, and the client does not hear so.
    Answer(&'static str),
}

/// The proxy; what it holds is cut when dropped.
pub(crate) struct HoldingProxy {
    port: u16,
    held: Receiver<()>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl HoldingProxy {
    /// Starts one in front of `http://host:port`. Only connections made while it is kept are
    /// served; the thread that accepts them ends with the tests.
    pub(crate) fn start(endpoint: &str, hold: Hold) -> Self {
        let upstream = endpoint.strip_prefix("http://").expect("a plain address").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, held) = sync_channel(1);
        let connections = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&connections);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&upstream).unwrap();
                let ends = [&client, &server].map(|end| end.try_clone().unwrap());
                kept.lock().unwrap().extend(ends);
                serve(client, server, hold, &tell);
            }
        });
        HoldingProxy { port, held, connections }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until it holds something.
    pub(crate) fn await_held(&self, deadline: Duration) {
        self.held.recv_timeout(deadline).expect("the request comes");
    }
}

impl Drop for HoldingProxy {
    fn drop(&mut self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            // It may have been closed by its other end.
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Passes bytes on in both directions, until one end closes or something is held.
fn serve(client: TcpStream, server: TcpStream, hold: Hold, tell: &SyncSender<()>) {
    let holds_answer = Arc::new(AtomicBool::new(false));
    let (answers, told) = (Arc::clone(&holds_answer), tell.clone());
    let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || {
        pass(from, to, |chunk| {
            let interim = chunk.starts_with(b"HTTP/1.1 100");
            let held = answers.load(Ordering::SeqCst) && !interim;
            if held {
                told.try_send(()).ok();
            }
            !held
        });
    });
    let tell = tell.clone();
    std::thread::spawn(move || {
        pass(client, server, |chunk| {
            match hold {
                Hold::Request(path) if puts(chunk, path) => {
                    tell.try_send(()).ok();
                    return false;
                }
                Hold::Answer(path) if puts(chunk, path) => {
                    holds_answer.store(true, Ordering::SeqCst);
                }
                Hold::Request(_) | Hold::Answer(_) => {}
            }
            true
        });
    });
}

/// Returns whether a chunk begins a request to put such a path. A client waits for an answer
/// before it sends its next request, so a request begins where a chunk does.
fn puts(chunk: &[u8], path: &str) -> bool {
    let line = chunk.split(|byte| *byte == b'\r').next().unwrap_or_default();
    line.starts_with(b"PUT ") && String::from_utf8_lossy(line).contains(path)
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut may_pass: impl FnMut(&[u8]) -> bool) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut chunk) {
        if !may_pass(&chunk[..bytes]) {
            return;
        }
        if to.write_all(&chunk[..bytes]).is_err() {
            break;
        }
    }
    // The end of one is the end of the other, unless that is gone already.
    to.shutdown(Shutdown::Both).ok();
}
