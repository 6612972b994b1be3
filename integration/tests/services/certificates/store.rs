//! An S3 server behind `https://` with a private authority.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::process::Process;
use dacapo_integration::tls::{self, Certificates, Flaw};
use dacapo_integration::{ports, wait};

use super::super::platform::DEADLINE;
use super::text;

/// A server on localhost with a certificate; what it answers after the handshake is no S3.
struct Server {
    port: u16,
    _process: Process,
}

impl Server {
    fn start(folder: &Path, certificates: &Certificates) -> Self {
        let port = ports::free().expect("a port is free");
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-www", "-accept", &format!("127.0.0.1:{port}")])
            .arg("-cert")
            .arg(&certificates.certificate)
            .arg("-key")
            .arg(&certificates.key);
        let process = Process::start(&mut command, &folder.join("server.log"));
        wait::until("the server listens", DEADLINE, || {
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(()))
        })
        .expect("it has a port of its own");
        Server { port, _process: process.expect("`openssl` can be started") }
    }
}

/// Lists an archive there, trusting this authority, and checks what is said.
#[track_caller]
fn check(flaw: Option<Flaw>, trusted: Option<&str>, words: &[&str]) {
    let folder = RunFolder::create().expect("there is room for a folder");
    tls::certificates(folder.path()).unwrap();
    let certificates = tls::server(folder.path(), flaw).unwrap();
    let server = Server::start(folder.path(), &certificates);
    let mut dacapo = Dacapo::on_s3();
    dacapo.set("AWS_ENDPOINT_URL", &format!("https://localhost:{}", server.port));
    dacapo.set("AWS_MAX_ATTEMPTS", "1");
    if let Some(file) = trusted {
        dacapo.set("SSL_CERT_FILE", text(&folder.path().join(file)));
        dacapo.set("SSL_CERT_DIR", text(&folder.path().join("nothing")));
    }
    let output = dacapo.run(["archive", "ls"]);
    output.check(8);
    for word in words {
        assert!(output.stderr.contains(word), "no “{word}” in {output:?}");
    }
}

#[test]
fn a_store_that_is_not_trusted_is_told_with_the_next_step() {
    check(None, None, &["TLS: invalid peer certificate: UnknownIssuer", "`SSL_CERT_FILE`"]);
    check(Some(Flaw::OtherHost), Some("ca.pem"), &["rabbit.example", "use the host name"]);
    check(Some(Flaw::Expired), Some("ca.pem"), &["TLS: invalid", "renew the server's"]);
}

#[test]
fn the_authority_of_a_store_is_named_in_the_environment() {
    check(None, Some("ca.pem"), &["HTTP status 200"]);
}
