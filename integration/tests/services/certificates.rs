//! A broker that cannot prove who it is, as an operator meets it.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::process::Process;
use dacapo_integration::tls::{self, Certificates, Flaw};
use dacapo_integration::{ports, wait};
use serde_json::json;

use super::services;

const DEADLINE: Duration = Duration::from_secs(30);

/// Returns an installation with one event, for a broker at this URL.
fn installation(url: &str) -> Dacapo {
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_AMQP", url);
    let event = format!("{}\n", json!({ "id": "1", "body": {} })).into_bytes();
    dacapo.run_with_input(["archive", "import", "-", "--name", "history"], event).check(0);
    dacapo
}

/// Runs what connects in each of the ways that dacapo has, and checks the refusal.
#[track_caller]
fn check_refused(dacapo: &Dacapo, authority: &Path, reason: &str, hint: &str) {
    let authority = authority.to_str().expect("the path is UTF-8");
    for command in [
        ["archive", "run", "--bind", "shop"].as_slice(),
        &["plan", "--to-queue", "orders"],
        &["replay", "--to-queue", "orders"],
    ] {
        let output = dacapo.run(command.iter().chain(&["--amqp-ca", authority]));
        output.check(5);
        assert!(output.stderr.contains("error: localhost:"), "{output:?}");
        assert!(output.stderr.contains(reason), "{output:?}");
        assert!(output.stderr.contains(hint), "{output:?}");
        assert!(!output.stderr.contains("sesame"), "{output:?}");
    }
}

const TRUST: &str = "trust its authority with a CA file";

#[test]
fn a_broker_of_another_authority_is_refused_and_of_its_own_trusted() {
    let Some(amqps) = services::amqps() else { return };
    let dacapo = installation(&amqps.url);
    let other = tls::certificates(dacapo.folder()).unwrap();
    check_refused(&dacapo, &other.authority, "invalid peer certificate", TRUST);
    let own = amqps.authority.to_str().expect("the path is UTF-8");
    dacapo.run(["plan", "--to-queue", "orders", "--amqp-ca", own]).check(0);
}

/// A server on localhost with a certificate; what it would say after the handshake is never heard.
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

#[track_caller]
fn check_flawed(flaw: Flaw, reason: &str, hint: &str) {
    let folder = RunFolder::create().expect("there is room for a folder");
    let certificates = tls::flawed(folder.path(), flaw).expect("`openssl` makes certificates");
    let server = Server::start(folder.path(), &certificates);
    let dacapo = installation(&format!("amqps://ops:sesame@localhost:{}", server.port));
    check_refused(&dacapo, &certificates.authority, reason, hint);
}

#[test]
fn an_expired_certificate_is_refused() {
    check_flawed(Flaw::Expired, "invalid peer certificate: ", "renew the broker's certificate");
}

#[test]
fn a_certificate_of_another_host_is_refused() {
    check_flawed(Flaw::OtherHost, "rabbit.example", "use the host name that is in its certificate");
}
