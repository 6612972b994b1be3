//! A platform with archived orders, and the description of a drill that restores them.

use std::path::{Path, PathBuf};
use std::process::Command;

use dacapo_archive::layout::KeptDefinitions;
use dacapo_event::{Digest, Timestamp};
use dacapo_integration::dacapo::Output;
use serde_json::{Value, json};

use super::super::consumer::service::{self, ENVELOPED, history};
use super::super::platform::Platform;
use super::super::{services, witness};

/// Orders of the history, and the events of that.
pub(super) const ORDERS: usize = 40;
pub(super) const EVENTS: usize = 5 * ORDERS;

/// Makes a segment of some dozen events.
const SMALL_SEGMENTS: [&str; 2] = ["--roll-bytes", "4k"];

/// A platform, and the names of a drill on it.
pub(crate) struct Stage {
    pub(crate) platform: Platform,
    /// The service's queue.
    pub(super) queue: String,
    /// A queue for what it emits.
    pub(super) settled: String,
}

/// A drill that ended.
pub(super) struct Drilled {
    pub(super) report: Value,
    pub(super) folder: PathBuf,
    status: Option<i32>,
    told: String,
}

impl Stage {
    /// Returns one, where the broker has a management plugin.
    pub(crate) fn new() -> Option<Self> {
        Stage::archived_with(&[])
    }

    /// Returns one with an archive of many segments.
    pub(super) fn of_segments() -> Option<Self> {
        Stage::archived_with(&SMALL_SEGMENTS)
    }

    fn archived_with(flags: &[&str]) -> Option<Self> {
        let management = services::management()?;
        let mut platform = Platform::new();
        platform.dacapo.set("DACAPO_MANAGEMENT", &management);
        let archiver = platform.start_archiver(&[&ENVELOPED[..], flags].concat());
        platform.publish(&history(ORDERS));
        let taken = || archiver.metric("events_total").unwrap_or(0.0);
        let unacked = || archiver.metric("unacked").unwrap_or(0.0);
        let all = || Ok((taken() + unacked() >= EVENTS as f64).then_some(()));
        let deadline = super::super::platform::DEADLINE;
        dacapo_integration::wait::until("everything was taken", deadline, all).unwrap();
        assert_eq!(archiver.stop()["events"], EVENTS);
        let stage = Stage {
            platform,
            queue: services::unique("orders"),
            settled: services::unique("settled"),
        };
        let (exchange, settled) = (&stage.platform.exchange, &stage.settled);
        let definitions = json!({
            "users": [{ "name": "u" }],
            "policies": [{ "vhost": "/" }],
            "exchanges": [{ "name": exchange, "vhost": "/", "type": "topic", "durable": true,
                            "internal": false, "arguments": {} }],
            "queues": [{ "name": settled, "vhost": "/", "durable": true, "arguments": {} }],
            "bindings": [{ "source": exchange, "vhost": "/", "destination": settled,
                           "destination_type": "queue", "routing_key": "order.settled",
                           "arguments": {} }],
        });
        stage.platform.dacapo.file("definitions.json", definitions.to_string());
        let key = Command::new("openssl").args(["genpkey", "-algorithm", "ed25519"]).output();
        let key = stage.platform.dacapo.file("drill.key", key.unwrap().stdout);
        let public = Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(key).output();
        stage.platform.dacapo.file("drill.pub", public.unwrap().stdout);
        Some(stage)
    }

    /// Puts the definitions into the archive, as those of a virtual host of this name.
    pub(super) fn keep_definitions(&self, vhost: &str) {
        let folder = self.platform.dacapo.folder();
        let text = std::fs::read_to_string(folder.join("definitions.json")).unwrap();
        let text = text.replace("\"vhost\":\"/\"", &format!("\"vhost\":\"{vhost}\""));
        let digest = Digest::of(text.as_bytes());
        let kept = KeptDefinitions::new(vhost, Timestamp::from_secs(1_700_000_000), &digest);
        let path = Path::new(self.platform.dacapo.archive()).join(kept.key.as_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Returns a description with these targets.
    pub(crate) fn description(&self, targets: &str) -> String {
        let (queue, exchange) = (&self.queue, &self.platform.exchange);
        let service = service::binary();
        let database = "${DACAPO_DRILL_FOLDER}/orders.sqlite";
        format!(
            r#"name = 'orders after a lost database'
[environment]
definitions = 'definitions.json'
[selection]
type = ['order.placed', 'order.paid', 'order.moved']
[target]
queue = '{queue}'
[pace]
[service]
command = ['{service}', '{queue}', '{exchange}', '{database}']
env = {{ ORDERS_AMQP = '${{DACAPO_DRILL_AMQP}}' }}
[[check]]
name = 'every order is there'
sql = 'SELECT count(*) FROM orders WHERE paid >= total'
database = 'sqlite:{database}'
production = {{ command = ['echo', '{ORDERS}'] }}
within = '20s'
[[check]]
name = 'nothing is left to send'
sql = 'SELECT count(*) FROM outbox WHERE sent = 0'
database = 'sqlite:{database}'
expect_number = 0
within = '2s'
[counts]
sql = "SELECT 'order.moved', 2 * count(*) FROM orders WHERE address LIKE '%New Street' UNION ALL SELECT 'order.paid', sum(paid) / 50 FROM orders UNION ALL SELECT 'order.placed', count(*) FROM orders WHERE total > 0"
database = 'sqlite:{database}'
[targets]
{targets}
"#,
            service = service.display()
        )
    }

    /// Returns a description with another service, and no checks.
    pub(super) fn with_service(&self, description: &str, command: &str, more: &str) -> String {
        let (before, rest) = description.split_once("[service]\n").unwrap();
        let (_, counts) = rest.split_once("[counts]\n").unwrap();
        format!("{before}[service]\ncommand = {command}\n{more}\n[counts]\n{counts}")
    }

    /// Returns the command of a drill.
    pub(super) fn command(&self, file: &str) -> Vec<String> {
        let words = ["drill", file, "--json", "--key", "drill.key", "--by", "the tests"];
        words.map(str::to_owned).to_vec()
    }

    /// Carries out a drill, and checks that nothing is left of it.
    #[track_caller]
    pub(super) fn drill(&self, description: &str) -> Drilled {
        self.platform.dacapo.file("drill.toml", description);
        let drilled = Drilled::of(self.platform.dacapo.run(self.command("drill.toml")));
        self.check_gone(&drilled);
        drilled
    }

    /// Verifies a report.
    pub(super) fn verify(&self, drilled: &Drilled) -> Output {
        let report = drilled.folder.join("report.json");
        let report = report.to_str().unwrap();
        self.platform.dacapo.run(["drill", "verify", report, "--key", "drill.pub", "--json"])
    }

    /// Checks the signature with a program that is not ours.
    #[track_caller]
    pub(super) fn check_signed_by_openssl(&self, drilled: &Drilled) {
        let checked = Command::new("openssl")
            .args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"])
            .arg(self.platform.dacapo.folder().join("drill.pub"))
            .arg("-in")
            .arg(drilled.folder.join("report.json"))
            .arg("-sigfile")
            .arg(drilled.folder.join("report.json.sig"))
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }

    /// Checks that the virtual host of a drill is gone.
    #[track_caller]
    pub(super) fn check_gone(&self, drilled: &Drilled) {
        assert_eq!(drilled.report["facts"]["environment"]["left_behind"], json!([]));
        let management = services::management().expect("a stage has one");
        let all = witness::management(&management, &json!([["GET", "vhosts", null]])).unwrap();
        assert!(!all[0].to_string().contains(drilled.id()), "{}", all[0]);
    }

    /// Returns the process of the service, if it runs.
    pub(super) fn service_pid(&self) -> Option<u32> {
        let is_it = |pid: &u32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("examples/orders") && words.contains(&self.queue)
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes.filter_map(|it| it.file_name().to_str()?.parse().ok()).find(is_it)
    }
}

impl Drilled {
    /// Reads what a drill left.
    #[track_caller]
    pub(super) fn of(output: Output) -> Self {
        assert!(output.stdout.contains("\"report\""), "{output:?}");
        let summary = output.json();
        let path = PathBuf::from(summary["report"].as_str().unwrap());
        let report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let folder = path.parent().unwrap().to_owned();
        Drilled { report, folder, status: output.status, told: output.stderr }
    }

    pub(super) fn id(&self) -> &str {
        self.report["facts"]["id"].as_str().unwrap()
    }

    #[track_caller]
    pub(super) fn check_met(&self) {
        assert_eq!(self.missed(), [], "{}\n{}", self.report["facts"], self.told);
        assert_eq!((self.status, &self.report["verdict"]), (Some(0), &json!("met")));
    }

    /// Checks that just these were not met.
    #[track_caller]
    pub(super) fn check_missed(&self, expected: &[(&str, &str)]) {
        let missed = self.missed();
        let missed: Vec<_> =
            missed.iter().map(|(name, how)| (name.as_str(), how.as_str())).collect();
        assert_eq!(missed, expected, "{}\n{}", self.report["facts"], self.told);
        assert_eq!((self.status, &self.report["verdict"]), (Some(10), &json!("missed")));
    }

    /// Returns what was not met, and how.
    pub(super) fn missed(&self) -> Vec<(String, String)> {
        let all = self.report["requirements"].as_array().unwrap().iter();
        let unmet = all.filter(|it| it["outcome"] != "met");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        unmet.map(|it| (text(&it["name"]), text(&it["outcome"]))).collect()
    }
}
