//! The store of handled events in a real etcd: its promises, what it takes of the quota, and a service
//! on it while etcd is killed, halted and full.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dacapo_amqp::{AmqpConnect, AmqpQueue, AmqpTarget, Binding, Broker, Tls, Via, declare_service};
use dacapo_consumer::store::conformance::{Step, check_steps, check_store, retention};
use dacapo_consumer::store::{EtcdAccount, EtcdAt, EtcdStore, EtcdTls, Retention, StoreError};
use dacapo_consumer::{
    Consumer, Delivery, Effect, Failure, Known, Metrics, Order, Position, ProcessedStore,
    Remembering, Retry, Settings, Turn,
};
use dacapo_event::Timestamp;
use dacapo_event::attributes::AttributeRules;
use dacapo_integration::campaign::schedule::Dice;
use dacapo_integration::etcd::{Etcd, QUOTA_BYTES, Transport};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::{environment, tls};
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Certificate, Client, CompactionOptions, ConnectOptions,
    GetOptions, Identity, Permission, TlsOptions,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::platform::{DEADLINE, Platform, ask, id, ids, message, messages};
use super::services;

fn at(etcd: &Etcd) -> EtcdAt {
    EtcdAt { endpoints: vec![etcd.endpoint()], ..EtcdAt::default() }
}

async fn open(etcd: &Etcd, prefix: &str, retention: Retention) -> EtcdStore {
    EtcdStore::open(at(etcd), prefix, retention).await.unwrap()
}

async fn client(etcd: &Etcd) -> Client {
    Client::connect([etcd.endpoint()], None).await.unwrap()
}

/// Gives up all history, and gives its room back.
async fn compact(client: &mut Client) {
    let now = client.get("any", None).await.unwrap().header().unwrap().revision();
    let physical = CompactionOptions::new().with_physical();
    client.compact(now, Some(physical)).await.unwrap();
    client.defragment().await.unwrap();
}

/// Returns an error as a log would tell it, with what is behind it.
fn told(error: &StoreError) -> String {
    format!("{error}: {}", error.source)
}

#[tokio::test]
async fn the_store_in_etcd_keeps_its_promises() {
    let folder = RunFolder::create().unwrap();
    let etcd = Etcd::start(folder.path()).unwrap();
    let fresh = || format!("{}/", services::unique("service"));
    check_store(async |retention| open(&etcd, &fresh(), retention).await).await;

    let mut dice = Dice::new(7);
    for _ in 0..8 {
        let steps: Vec<Step> = (0..30).map(|_| step(&mut dice)).collect();
        let kept = retention(1 + dice.below(5) as usize, 1 + dice.below(3) as usize);
        check_steps(&open(&etcd, &fresh(), kept).await, kept, &steps).await;
    }
}

/// Of few ids and keys, so that they meet.
fn step(dice: &mut Dice) -> Step {
    let id = dice.choose(&["a", "b", "c", "d", "e", "f"]).to_owned();
    let place = (dice.below(4) > 0)
        .then(|| (dice.choose(&["k", "l", "m"]).to_owned(), dice.below(9) as i64 - 4));
    (id, place)
}

#[tokio::test]
async fn processes_of_one_service_share_it_and_those_of_others_do_not() {
    const EACH: usize = 40;
    let folder = RunFolder::create().unwrap();
    let mut etcd = Etcd::start(folder.path()).unwrap();
    let kept = retention(2 * EACH - 10, 1);
    let (one, two) = (open(&etcd, "orders/", kept).await, open(&etcd, "orders/", kept).await);
    let other = open(&etcd, "orders/mails/", kept).await;
    let long = "x".repeat(100_000);
    other.record(&long, Some(("\u{0}", Position(i64::MIN)))).await.unwrap();
    let record = async |store: &EtcdStore, name: &str| {
        for n in 0..EACH {
            store.record(&format!("{name}-{n}"), Some((name, Position(n as i64)))).await.unwrap();
        }
    };
    tokio::join!(record(&one, "one"), record(&two, "two"));

    let known = |handled, newest: Option<usize>| Known {
        handled,
        newest: newest.map(|newest| Position(newest as i64)),
    };
    let mut handled = 0;
    for name in ["one", "two"] {
        for n in 0..EACH {
            let by_one = one.recall(&format!("{name}-{n}"), None).await.unwrap();
            assert_eq!(two.recall(&format!("{name}-{n}"), None).await.unwrap(), by_one);
            handled += usize::from(by_one.handled);
        }
    }
    assert_eq!(handled, 2 * EACH - 10, "no more and no fewer than are kept");
    assert_eq!(other.recall("one-39", Some("one")).await.unwrap(), known(false, None));
    let seen = other.recall(&long, Some("\u{0}")).await.unwrap();
    assert_eq!(seen, Known { handled: true, newest: Some(Position(i64::MIN)) });

    // What was recorded lasts, and a smaller retention is reached step by step.
    etcd.kill().unwrap();
    etcd.start_again().unwrap();
    let three = open(&etcd, "orders/", retention(5, 9)).await;
    for n in 0..4 {
        three.record(&format!("three-{n}"), None).await.unwrap();
    }
    for id in ["three-0", "three-3"] {
        assert!(one.recall(id, None).await.unwrap().handled, "{id}");
    }
    let mut client = client(&etcd).await;
    let count = GetOptions::new().with_prefix().with_count_only();
    let entries = client.get("orders/i", Some(count)).await.unwrap().count();
    assert_eq!(entries, 5, "what is beyond the retention is gone");
}

#[tokio::test]
async fn what_is_no_store_is_refused_with_what_to_do() {
    let folder = RunFolder::create().unwrap();
    let etcd = Etcd::start(folder.path()).unwrap();
    let kept = retention(9, 9);
    let refused = async |prefix: &str| {
        told(&EtcdStore::open(at(&etcd), prefix, kept).await.map(drop).unwrap_err())
    };
    let address = etcd.endpoint();
    assert_eq!(
        refused("orders").await,
        format!(
            "failed to open the processed events in `{address} orders`: `orders` is no prefix: up to \
             200 printable ASCII characters that end with `/`"
        )
    );
    let mut client = client(&etcd).await;
    let leftover = [b"left/I".as_slice(), &1_u64.to_be_bytes()].concat();
    client.put(leftover, "x", None).await.unwrap();
    assert!(refused("left/").await.ends_with("`etcdctl del --prefix left/`"), "it is not empty");
    client.put("foreign/state", "{}", None).await.unwrap();
    assert!(refused("foreign/").await.contains("a state of 2 bytes"), "another's");
    let nowhere = EtcdAt { endpoints: vec![], ..EtcdAt::default() };
    let refused = EtcdStore::open(nowhere, "orders/", kept).await.map(drop).unwrap_err();
    assert!(told(&refused).contains("empty endpoints"), "{refused:?}");
}

#[tokio::test]
async fn over_tls_with_a_certificate_and_an_account_that_has_only_its_prefix() {
    let folder = RunFolder::create().unwrap();
    let mut etcd = Etcd::start_with(folder.path(), QUOTA_BYTES, Transport::Tls).unwrap();
    let of_client = tls::client(etcd.folder(), "orders").unwrap();
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let authority = read(&etcd.folder().join("ca.pem"));
    let identity = (read(&of_client.certificate), read(&of_client.key));
    let options = ConnectOptions::new().with_tls(
        TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&authority))
            .identity(Identity::from_pem(&identity.0, &identity.1)),
    );
    let mut root = Client::connect([etcd.endpoint()], Some(options)).await.unwrap();
    let own = Permission::read_write("orders/").with_prefix();
    for (user, role) in [("root", "root"), ("orders", "orders")] {
        root.role_add(role).await.unwrap();
        root.user_add(user, "s3cr+t", None).await.unwrap();
        root.user_grant_role(user, role).await.unwrap();
    }
    root.role_grant_permission("orders", own).await.unwrap();
    root.auth_enable().await.unwrap();

    let account = |password: &str| {
        Some(EtcdAccount { user: "orders".to_owned(), password: password.to_owned() })
    };
    let tls = EtcdTls { authority: Some(authority), identity: Some(identity) };
    let at = EtcdAt { endpoints: vec![etcd.endpoint()], account: account("s3cr+t"), tls };
    let store = EtcdStore::open(at.clone(), "orders/", retention(9, 9)).await.unwrap();
    store.record("e-1", Some(("k", Position(1)))).await.unwrap();
    // A restarted member knows no token that it gave before.
    etcd.kill().unwrap();
    etcd.start_again().unwrap();
    let known = outlasting(async || store.recall("e-1", Some("k")).await).await;
    assert_eq!(known, Known { handled: true, newest: Some(Position(1)) });

    let elsewhere = EtcdStore::open(at.clone(), "mails/", retention(9, 9)).await;
    let elsewhere = told(&elsewhere.map(drop).unwrap_err());
    assert!(elsewhere.contains("permission denied"), "{elsewhere}");
    let wrong = EtcdAt { account: account("sesame"), ..at.clone() };
    assert!(!format!("{wrong:?}").contains("sesame"), "{wrong:?}");
    let wrong = EtcdStore::open(wrong, "orders/", retention(9, 9)).await.map(drop).unwrap_err();
    assert!(told(&wrong).contains("authentication failed"), "{wrong:?}");
    let nobody = EtcdAt { tls: EtcdTls::default(), ..at };
    EtcdStore::open(nobody, "orders/", retention(9, 9)).await.map(drop).unwrap_err();
}

/// Returns the answer after those that failed, as a service that tries again would.
async fn outlasting<T>(mut call: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let trying = async {
        loop {
            if let Ok(answer) = call().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, trying).await.expect("it answers again")
}

/// What was applied, by event: how often.
type Applied = Arc<Mutex<BTreeMap<String, usize>>>;

/// An effect that is idempotent: what is there is there.
struct Index(Applied);

#[async_trait]
impl Effect for Index {
    async fn apply(&mut self, delivery: &Delivery, _: Turn) -> Result<(), Failure> {
        *self.0.lock().unwrap().entry(delivery.id.clone()).or_default() += 1;
        Ok(())
    }
}

/// A service on a real broker, and a real etcd.
struct Service {
    broker: Broker,
    queue: String,
    applied: Applied,
}

impl Service {
    async fn new(platform: &Platform) -> Self {
        let url = services::amqp().parse().unwrap();
        let broker = Broker { url, tls: Tls::default(), client_name: "index".to_owned() };
        let queue = services::unique("index");
        let binding = Binding { exchange: platform.exchange.clone(), pattern: "#".to_owned() };
        declare_service(&broker, &queue, &format!("{queue}.dead"), &[binding]).await.unwrap();
        Service { broker, queue, applied: Applied::default() }
    }

    /// Runs until it is shut down, or dropped, which is as sudden as a kill: whatever was asked of etcd
    /// may be done or not.
    async fn run(&self, store: EtcdStore, shutdown: impl Future<Output = ()> + Send) {
        let prefetch = NonZeroU16::new(20).unwrap();
        let source = AmqpQueue::new(self.broker.clone(), &self.queue, prefetch, 1 << 20).unwrap();
        let letters = format!("{}.dead", self.queue);
        let target = AmqpTarget::Queue { queue: letters, via: Via::DefaultExchange };
        let consumer = Consumer {
            settings: Settings {
                queue: self.queue.clone(),
                attributes: AttributeRules::default(),
                position: Vec::new(),
                retry: Retry::default(),
                handle_deadline: Duration::from_secs(120),
            },
            source: Box::new(source),
            dead_letters: Box::new(AmqpConnect { broker: self.broker.clone(), target }),
            metrics: Metrics::register(&mut Default::default()),
            clock: || Timestamp::EPOCH,
        };
        let mut handler = Remembering::new(store, Order::Accept, Index(Arc::clone(&self.applied)));
        consumer.run(&mut handler, shutdown).await.unwrap();
    }

    /// Runs it until so many events were applied, and does `meanwhile` at the same time.
    async fn run_until(
        &self,
        store: EtcdStore,
        events: usize,
        meanwhile: impl Future<Output = ()>,
    ) {
        let (told, shutdown) = oneshot::channel();
        let watching = async {
            meanwhile.await;
            let all = async {
                while self.count() < events {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(DEADLINE, all).await.expect("it goes on");
            told.send(()).unwrap();
        };
        let shutdown = async { shutdown.await.unwrap() };
        tokio::join!(self.run(store, shutdown), watching);
    }

    fn count(&self) -> usize {
        self.applied.lock().unwrap().len()
    }

    /// Returns how many messages wait, of events and of dead letters.
    fn waiting(&self) -> (u64, u64) {
        let depth = |queue: &str| {
            let declare = json!({ "op": "declare_queue", "queue": queue, "passive": true });
            ask(&services::amqp(), declare)["messages"].as_u64().unwrap()
        };
        (depth(&self.queue), depth(&format!("{}.dead", self.queue)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for queue in [self.queue.clone(), format!("{}.dead", self.queue)] {
            ask(&services::amqp(), json!({ "op": "delete_queue", "queue": queue }));
        }
    }
}

#[tokio::test]
async fn a_service_outlasts_etcd_killed_and_halted_and_its_own_kills_and_applies_every_event() {
    const EVENTS: usize = 400;
    const KILLS: usize = 12;
    let folder = RunFolder::create().unwrap();
    let mut etcd = Etcd::start(folder.path()).unwrap();
    let platform = Platform::new();
    let service = Service::new(&platform).await;
    let kept = retention(2 * EVENTS, 1);
    platform.publish(&messages(EVENTS));
    // Some come twice.
    platform.publish(&messages(EVENTS / 4));

    let progress = async |events: usize| {
        while service.count() < events {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut dice = Dice::new(3);
    for _ in 0..KILLS {
        let store = open(&etcd, "index/", kept).await;
        let enough = service.count() + 1 + dice.below(10) as usize;
        let instant = Duration::from_micros(dice.below(8_000));
        tokio::select! {
            () = service.run(store, std::future::pending()) => panic!("nobody has shut it down"),
            () = async { progress(enough).await; tokio::time::sleep(instant).await } => {}
        }
    }
    let before = service.count();
    assert!(before < EVENTS / 2, "{before} were applied before etcd was killed");
    let store = open(&etcd, "index/", kept).await;
    let faults = async {
        progress(before + 20).await;
        etcd.kill().unwrap();
        etcd.start_again().unwrap();
        progress(before + 60).await;
        etcd.freeze().unwrap();
        // As long as etcd halts, nothing can be marked: no more than one event is applied.
        let halted = service.count();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(service.count() <= halted + 1, "{halted}");
        etcd.thaw().unwrap();
    };
    service.run_until(store, EVENTS, faults).await;

    // One event more, behind all the repeats.
    platform.publish(&[message(&id(EVENTS))]);
    let store = open(&etcd, "index/", kept).await;
    service.run_until(store, EVENTS + 1, std::future::ready(())).await;

    let applied = service.applied.lock().unwrap();
    assert_eq!(applied.keys().cloned().collect::<Vec<_>>(), ids(EVENTS + 1), "nothing is lost");
    let again: usize = applied.values().map(|times| times - 1).sum();
    // One at each kill of the service and each fault of etcd, where it came between effect and mark.
    assert!(again <= KILLS + 2, "{again} were applied more than once");
    assert_eq!(service.waiting(), (0, 0), "everything is acked, and nothing was buried");
}

#[tokio::test]
async fn a_full_etcd_is_an_outage_that_says_what_to_do_and_buries_nothing() {
    const ROOM_BYTES: u64 = 4 * 1024 * 1024;
    let folder = RunFolder::create().unwrap();
    let etcd = Etcd::start_with(folder.path(), ROOM_BYTES, Transport::Plain).unwrap();
    let platform = Platform::new();
    let service = Service::new(&platform).await;
    let store = open(&etcd, "index/", retention(1_000, 1)).await;
    store.record("before", None).await.unwrap();
    let mut client = client(&etcd).await;
    // Another's history, as without compaction.
    while client.put("another's", vec![b'x'; 100_000], None).await.is_ok() {}

    let error = store.record("e", None).await.unwrap_err();
    assert_eq!(
        told(&error),
        format!(
            "failed to write the processed events in `{} index/`: etcd is full and takes no writes; \
             compact and defragment it or raise `--quota-backend-bytes`, then run `etcdctl alarm \
             disarm`",
            etcd.endpoint()
        )
    );
    let known = store.recall("before", None).await.unwrap();
    assert!(known.handled, "it is still read");

    const EVENTS: usize = 20;
    platform.publish(&messages(EVENTS));
    let mending = async {
        let tried = async {
            while service.applied.lock().unwrap().values().sum::<usize>() < 4 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, tried).await.expect("the first is tried again");
        assert_eq!(service.count(), 1, "it is waited for");
        compact(&mut client).await;
        // As `etcdctl alarm disarm` does it.
        let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
        for alarm in alarms.alarms() {
            let mut of_member = AlarmOptions::new();
            of_member.with_member(alarm.member_id());
            let disarm = (AlarmAction::Deactivate, alarm.alarm(), Some(of_member));
            client.alarm(disarm.0, disarm.1, disarm.2).await.unwrap();
        }
    };
    service.run_until(store, EVENTS, mending).await;
    assert_eq!(service.waiting(), (0, 0), "everything is acked, and nothing was buried");
}

/// What a mark takes, measured: how much more etcd's data are after so many more marks.
#[tokio::test]
async fn what_a_mark_takes_of_etcds_quota_is_what_the_document_says() {
    const FEW: usize = 300;
    const MANY: usize = 1_300;
    let folder = RunFolder::create().unwrap();
    let etcd = Etcd::start(folder.path()).unwrap();
    let mut client = client(&etcd).await;
    let store = open(&etcd, "services/index/", retention(MANY, MANY)).await;
    let record = async |range: std::ops::Range<usize>, ordered: bool| {
        for n in range {
            let (id, key) = (format!("e-{n}"), format!("k-{n}"));
            let place = ordered.then_some((key.as_str(), Position(n as i64)));
            store.record(&id, place).await.unwrap();
        }
    };
    let mut size = async |compacted: bool| {
        if compacted {
            compact(&mut client).await;
        }
        client.status().await.unwrap().db_size() as f64
    };
    record(0..FEW, false).await;
    let few = size(true).await;
    record(FEW..MANY, false).await;
    let many = size(true).await;
    let id = (many - few) / (MANY - FEW) as f64;
    // The store is full, so each of these puts out another.
    record(MANY..MANY + FEW, false).await;
    let history = (size(false).await - many) / FEW as f64;
    let before = size(true).await;
    record(FEW..MANY + FEW, true).await;
    let key = (size(true).await - before) / MANY as f64;
    println!("an id takes {id:.0} bytes, a key {key:.0}, a record's history {history:.0}");

    let document = environment::root().join("docs/writing-a-service.md");
    let document = std::fs::read_to_string(document).unwrap();
    let said = |what: &str| -> f64 {
        let row = document.lines().find_map(|line| line.strip_prefix(&format!("| {what} | ")));
        let bytes = row.and_then(|row| row.split(' ').next()).expect("the table has the row");
        bytes.parse().expect("a number of bytes")
    };
    for (what, measured) in [
        ("an id", id),
        ("a key with its position", key),
        ("a record until it is compacted", history),
    ] {
        let said = said(what);
        assert!(measured <= said && said <= 1.6 * measured, "{what}: {measured:.0}, not {said}");
    }
}
