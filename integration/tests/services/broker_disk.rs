//! How long the broker's disk lasts, as an operator sees it.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::folder::RunFolder;
use dacapo_integration::seaweed::{self, Seaweed};
use serde_json::json;

use super::platform::{DEADLINE, Platform, message};
use super::services;

#[test]
fn the_disk_of_a_real_broker_is_in_the_metrics() {
    let Some(url) = services::management() else { return };
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_MANAGEMENT", &url);
    let platform = Platform::on(&services::amqp(), dacapo);
    let archiver = platform.start_archiver(&[]);
    archiver.await_metric("broker_disk_free_bytes", 1);
    assert_eq!(archiver.metric("broker_disk_seconds"), None, "one reading is no estimate");
    archiver.stop();
}

#[test]
fn a_plugin_that_refuses_is_told_of_once_and_stops_nothing() {
    let Some(url) = services::management() else { return };
    let (_, place) = url.rsplit_once('@').expect("the URL has credentials");
    let mut dacapo = Dacapo::new();
    dacapo.set("DACAPO_MANAGEMENT", &format!("http://guest:sesame@{place}"));
    let platform = Platform::on(&services::amqp(), dacapo);
    let archiver = platform.start_archiver(&[]);
    let told = archiver.running.wait_for_line("how long the broker's disk lasts", DEADLINE);
    assert!(told.contains("refused the account"), "{told}");
    assert!(told.contains(place), "{told}");
    assert_eq!(archiver.metric("broker_disk_free_bytes"), None);
    assert_eq!(archiver.health().0, 200);
    let output = archiver.kill();
    assert!(!output.stderr.contains("sesame"), "{output:?}");
}

#[test]
fn an_url_that_is_none_is_refused_without_its_password() {
    let dacapo = Dacapo::new();
    let command = ["archive", "run", "--bind", "shop", "--amqp", "amqp://127.0.0.1:1"];
    for url in ["https://ops-sesame@h:15671", "ops:sesame@h"] {
        let output = dacapo.run(command.iter().chain(&["--management", url]));
        output.check(3);
        assert!(output.stderr.contains("--management"), "{output:?}");
        assert!(!output.stderr.contains("sesame"), "{output:?}");
    }
}

/// Answers each question with 15 MB less free disk, and takes note of what was asked.
fn filling_up(listener: &TcpListener, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    for (n, stream) in (0u64..).zip(listener.incoming()) {
        let mut stream = stream?;
        let mut question = String::new();
        for line in BufReader::new(&stream).lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            question += &format!("{line}\n");
        }
        asked.lock().expect("nothing panics here").push(question);
        let (free, limit) = (1_000_000_000 - 15_000_000 * n, 50_000_000);
        let nodes = json!([
            { "name": "rabbit@one", "running": true, "disk_free": free, "disk_free_limit": limit },
            { "name": "rabbit@two", "running": true, "disk_free": limit * 4, "disk_free_limit": limit },
        ]);
        let body = nodes.to_string();
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")?;
    }
    Ok(())
}

#[test]
fn while_the_store_is_down_the_time_that_the_brokers_disk_lasts_is_told() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let asked: &'static Mutex<Vec<String>> = Box::leak(Box::default());
    std::thread::spawn(move || filling_up(&listener, asked));
    let folder = RunFolder::create().unwrap();
    let mut store = Seaweed::start(&folder.path().join("seaweed")).unwrap();
    let mut dacapo = Dacapo::new();
    for (name, value) in [
        ("DACAPO_ARCHIVE", format!("s3://{}/events", seaweed::BUCKET).as_str()),
        ("AWS_ENDPOINT_URL", &store.endpoint()),
        ("AWS_REGION", seaweed::REGION),
        ("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY),
        ("DACAPO_MANAGEMENT", &format!("http://ops:s%40same@{address}/rabbit/")),
    ] {
        dacapo.set(name, value);
    }
    let platform = Platform::on(&services::amqp(), dacapo);
    let archiver = platform.start_archiver(&["--roll-age", "1s"]);
    store.kill().unwrap();
    platform.publish(&[message("waits")]);

    let told =
        archiver.running.wait_for_line("the store is down, and the broker's disk", 2 * DEADLINE);
    assert!(told.contains("rabbit@one") && told.contains(" min "), "{told}");
    let left = archiver.metric("broker_disk_seconds").expect("it was told");
    // 950 MB above the limit at 1 MB a second, give or take a loaded machine.
    assert!((500.0..1_000.0).contains(&left), "{left}");
    let question = asked.lock().unwrap()[0].clone();
    assert!(question.starts_with("GET /rabbit/api/nodes?"), "{question}");
    // `ops:s@same`
    assert!(
        question.to_lowercase().contains("authorization: basic b3bzonnac2ftzq=="),
        "{question}"
    );
    let output = archiver.kill();
    assert!(!output.stderr.contains("same@"), "{output:?}");
}
