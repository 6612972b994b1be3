//! A proxy before a server that takes what it is sent and then does not answer: as a store or a
//! broker does that is slow, for as long as a test wants it to.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Answers are held back once so much went to the server: a part of the first segment, or of the
/// first window, and nothing that comes before one.
const SHUT_AFTER_BYTES: usize = 1_000_000;

/// What is passed on at once.
const CHUNK_BYTES: usize = 65_536;

/// The proxy; its connections end when it is dropped.
pub(super) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What still has to go to the server before the gate shuts; nothing once it did.
    before_shut: Option<usize>,
    shut: bool,
    connections: Vec<TcpStream>,
}

impl Gate {
    /// Starts one before `host:port`, which shuts when [`SHUT_AFTER_BYTES`] went there.
    pub(super) fn before(server: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            State { before_shut: Some(SHUT_AFTER_BYTES), shut: false, connections: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (of_thread, server) = (Arc::clone(&shared), server.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&server).unwrap();
                let ends = [&client, &server].map(|end| end.try_clone().unwrap());
                of_thread.lock().connections.extend(ends);
                serve(client, server, &of_thread);
            }
        });
        Gate { address, shared }
    }

    /// Returns where it listens, `host:port`.
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Waits until it is shut.
    #[track_caller]
    pub(super) fn await_shut(&self, deadline: Duration) {
        let waiting = |state: &mut State| !state.shut;
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, deadline, waiting);
        assert!(waited.unwrap().0.shut, "nothing large went to the server");
    }

    /// Lets answers pass, for good.
    pub(super) fn open(&self) {
        self.shared.lock().shut = false;
        self.shared.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        for connection in self.shared.lock().connections.drain(..) {
            // It may have been closed by its other end.
            connection.shutdown(Shutdown::Both).ok();
        }
        self.open();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Notes that so much went to the server.
    fn passed(&self, bytes: usize) {
        let mut state = self.lock();
        let Some(left) = state.before_shut else { return };
        state.before_shut = left.checked_sub(bytes);
        if state.before_shut.is_none() {
            state.shut = true;
            self.changed.notify_all();
        }
    }

    fn await_open(&self) {
        drop(self.changed.wait_while(self.lock(), |state| state.shut).unwrap());
    }
}

/// Passes bytes on in both directions.
fn serve(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let answers = Arc::clone(shared);
    std::thread::spawn(move || pass(from, to, |_| answers.await_open()));
    let requests = Arc::clone(shared);
    std::thread::spawn(move || pass(client, server, |bytes| requests.passed(bytes)));
}

fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn(usize)) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut chunk) {
        before(bytes);
        if to.write_all(&chunk[..bytes]).is_err() {
            break;
        }
    }
    // The end of one is the end of the other, unless that is gone already.
    to.shutdown(Shutdown::Both).ok();
}
