//! Whatever answers where the management plugin should: no panic, bounded memory, and what is kept
//! of it is the same however often it is asked.

#![cfg(test)]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use dacapo_fuzz::Attack;
use dacapo_management::{Certificates, Management};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Answers of a few hundred kilobytes, as trees of JSON; and patterns of policies, 10 MiB each at
/// the most once compiled.
const MEMORY: usize = 64 * 1024 * 1024;

/// What definitions are kept of.
const KEPT: [&str; 6] = ["vhosts", "exchanges", "queues", "bindings", "policies", "parameters"];

/// One answer to every question, whatever that is.
#[derive(Clone)]
struct Server {
    body: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    /// Starts it; it ends with the test's process.
    fn start() -> (Self, Management) {
        let server = Server { body: Arc::default() };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answering = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away early is one that has seen enough.
                drop(stream.and_then(|stream| answering.answer(stream)));
            }
        });
        (server, Management::new(&url, Certificates::default()).unwrap())
    }

    fn set(&self, body: &[u8]) {
        *self.body.lock().unwrap() = body.to_vec();
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        for line in BufReader::new(&stream).lines() {
            if line?.is_empty() {
                break;
            }
        }
        let body = self.body.lock().unwrap().clone();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body)
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

#[test]
fn answers_are_refused_or_read() {
    let (server, management) = Server::start();
    Attack::new(HERE, "answers", MEMORY).slow(8).run(|bytes| {
        server.set(bytes);
        block_on(async {
            drop(management.nodes().await);
            drop(management.topology("/").await);
            drop(management.consumers("/").await);
            drop(management.imposed("/", ["q", "q.parked"]).await);
            if let Ok(kept) = management.definitions("/").await {
                assert_eq!(management.definitions("/").await.unwrap(), kept);
                let members: Vec<_> = kept.as_object().unwrap().keys().collect();
                assert_eq!(members, KEPT, "users, permissions and the rest are not kept");
            }
        });
    });
}

#[test]
fn an_answer_larger_than_any_is_read_no_further() {
    let (server, management) = Server::start();
    server.set(&vec![b' '; 17 * 1024 * 1024]);
    let error = block_on(management.nodes()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("limit"), "{error}: {cause}");
}
