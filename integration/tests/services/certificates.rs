//! Connections over TLS as an operator meets them: a broker that cannot prove who it is, one that
//! asks for a client's certificate, and files that are none.

mod files;
mod management;
mod mutual;
mod store;

use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::{ClientCertificates, Rabbit};
use dacapo_integration::tls::{self, Client, Flaw};
use serde_json::json;

use super::services;

/// Who the client's certificate is for, and a user of the broker.
const USER: &str = "dacapo-ops";

/// A broker that takes nobody over TLS without a certificate of its own authority; one for all
/// tests here, because a start takes seconds.
struct Node {
    rabbit: Rabbit,
    client: Client,
    folder: RunFolder,
}

impl Node {
    fn start() -> Self {
        let folder = RunFolder::create().expect("there is room for a folder");
        let rabbit = Rabbit::start_with(folder.path(), ClientCertificates::Required).unwrap();
        let client = tls::client(folder.path(), USER).unwrap();
        rabbit.ctl(&["add_user", USER, "never asked for"]).unwrap();
        rabbit.ctl(&["set_permissions", USER, ".*", ".*", ".*"]).unwrap();
        Node { rabbit, client, folder }
    }

    /// Returns the one node, with a certificate that is right; nobody else has it meanwhile.
    fn lock() -> MutexGuard<'static, Node> {
        static NODE: LazyLock<Mutex<Node>> = LazyLock::new(|| Mutex::new(Node::start()));
        // A test that failed may have left it with a flaw.
        let node = NODE.lock().unwrap_or_else(PoisonError::into_inner);
        node.rabbit.change_certificate(None).unwrap();
        node
    }

    /// Returns a configuration file's lines that name the authority and a client's certificate.
    fn configuration(&self, client: &Client) -> String {
        let authority = self.rabbit.authority().display();
        let (certificate, key) = (client.certificate.display(), client.key.display());
        format!("amqp_ca = '{authority}'\namqp_cert = '{certificate}'\namqp_key = '{key}'\n")
    }
}

/// Returns an installation with one event, for a broker at this URL.
fn installation(url: &str) -> Dacapo {
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_AMQP", url);
    let event = format!("{}\n", json!({ "id": "1", "body": {} })).into_bytes();
    dacapo.run_with_input(["archive", "import", "-", "--name", "history"], event).check(0);
    dacapo
}

/// Runs what connects in each of the ways that dacapo has: the archiver's own, and lapin's.
fn run_all(dacapo: &Dacapo, more: &[&str]) -> Vec<Output> {
    let commands = [
        ["archive", "run", "--bind", "shop"].as_slice(),
        &["plan", "--to-queue", "orders"],
        &["replay", "--to-queue", "orders"],
    ];
    commands.iter().map(|command| dacapo.run(command.iter().chain(more))).collect()
}

/// Checks that each way to connect is refused, with the reason and the next step.
#[track_caller]
fn check_refused(dacapo: &Dacapo, more: &[&str], reason: &str, hint: &str) {
    for output in run_all(dacapo, more) {
        output.check(5);
        for words in ["error: localhost:", reason, hint] {
            assert!(output.stderr.contains(words), "no “{words}” in {output:?}");
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

const TRUST: &str = "trust its authority with a CA file";

#[test]
fn a_broker_of_another_authority_is_refused_and_of_its_own_trusted() {
    let Some(amqps) = services::amqps() else { return };
    let dacapo = installation(&amqps.url);
    let other = tls::certificates(&dacapo.folder().join("other")).unwrap();
    let more = ["--amqp-ca", text(&other.authority)];
    check_refused(&dacapo, &more, "invalid peer certificate", TRUST);
    check_refused(&dacapo, &[], "invalid peer certificate", TRUST);
    dacapo.run(["plan", "--to-queue", "orders", "--amqp-ca", text(&amqps.authority)]).check(0);
}

#[track_caller]
fn check_flawed(flaw: Flaw, reason: &str, hint: &str) {
    let node = Node::lock();
    let dacapo = installation(&node.rabbit.amqps_url());
    dacapo.file("dacapo.toml", node.configuration(&node.client));
    dacapo.run(["plan", "--to-queue", "orders"]).check(0);
    node.rabbit.change_certificate(Some(flaw)).unwrap();
    check_refused(&dacapo, &[], reason, hint);
}

#[test]
fn an_expired_certificate_is_refused() {
    check_flawed(Flaw::Expired, "invalid peer certificate: ", "renew the broker's certificate");
}

#[test]
fn a_certificate_of_another_host_is_refused() {
    check_flawed(Flaw::OtherHost, "rabbit.example", "use the host name that is in its certificate");
}

/// As in a small container image.
#[test]
fn a_machine_without_any_authority_needs_one_named_and_no_more() {
    let Some(amqps) = services::amqps() else { return };
    let mut dacapo = installation(&amqps.url);
    let empty = dacapo.file("empty.pem", "");
    dacapo.set("SSL_CERT_FILE", text(&empty));
    let nothing = dacapo.folder().join("nothing");
    dacapo.set("SSL_CERT_DIR", text(&nothing));
    check_refused(&dacapo, &[], "No CA certificates", "--amqp-ca");
    dacapo.run(["plan", "--to-queue", "orders", "--amqp-ca", text(&amqps.authority)]).check(0);
}

#[test]
fn a_port_without_tls_is_told_from_one_with_it() {
    let url = services::amqp();
    let (_, place) = url.rsplit_once('@').expect("the URL has credentials");
    let dacapo = installation(&format!("amqps://ops:sesame@{place}"));
    for output in run_all(&dacapo, &[]) {
        output.check(5);
        assert!(output.stderr.contains("check that the port speaks TLS"), "{output:?}");
    }
}
