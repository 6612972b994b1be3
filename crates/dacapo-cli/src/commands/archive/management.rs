//! RabbitMQ's management plugin, asked for one thing: how full the disks of the nodes are.
//!
//! One connection for each question, over plain HTTP. Nothing here waits without a deadline or
//! reads without a bound, and no message holds the password.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::disk::Disk;
use crate::exit::Failure;

/// Where the plugin listens unless it is told otherwise.
const PORT_DEFAULT: u16 = 15672;

/// Past a slow answer of a busy node, and before the next question is due.
const DEADLINE: Duration = Duration::from_secs(10);

/// Four columns take some 150 bytes a node; a broker has at the most tens of nodes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The question: only these columns, because a node has hundreds.
const QUESTION: &str = "/api/nodes?columns=name,running,disk_free,disk_free_limit";

/// The plugin's address and the account to use there. `Display` and `Debug` leave the account out.
pub struct Management {
    host: String,
    port: u16,
    /// Before `/api`, where the plugin has a path prefix; without a slash at its end.
    prefix: String,
    authorization: HeaderValue,
}

impl Management {
    /// Returns the disks of the nodes that run and say how full they are.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, an answer of another form.
    /// Cancel-safe.
    pub async fn disks(&self) -> anyhow::Result<Vec<Disk>> {
        let answer = tokio::time::timeout(DEADLINE, self.ask());
        let answer = answer
            .await
            .map_err(|_| anyhow::anyhow!("{self} did not answer in {DEADLINE:?}"))??;
        read_disks(&answer).with_context(|| format!("{self} answered something else"))
    }

    async fn ask(&self) -> anyhow::Result<Bytes> {
        let host = self.host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.port)).await;
        let stream = stream.with_context(|| format!("no connection to {self}"))?;
        let opened = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.with_context(|| format!("{self} speaks no HTTP"))?;
        let question = Request::get(format!("{}{QUESTION}", self.prefix))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .context("the path is not one of a URL")?;
        let answer = async move {
            let answer = sender.send_request(question).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            anyhow::Ok((status, body.map_err(anyhow::Error::from_boxed)?.to_bytes()))
        };
        // What ends the connection early ends the answer, too, and is told there.
        let (answer, _) = tokio::join!(answer, connection);
        let (status, body) = answer.with_context(|| format!("{self} broke off"))?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(
                "{self} refused the account; check user and password, and give the user the tag \
                 `monitoring` (`rabbitmqctl set_user_tags`)"
            ),
            status => bail!("{self} answered {status}; is this the management plugin?"),
        }
    }
}

impl fmt::Display for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.prefix)
    }
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Management({self})")
    }
}

/// Parses `http://user:password@host:port`; the error does not quote it, for it may hold a password.
impl FromStr for Management {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let refused = || {
            Failure::configuration(
                "--management (DACAPO_MANAGEMENT) is not the URL of a management plugin: \
                 `http://user:password@host:15672` (in user and password write `@`, `:`, `/` and `%` \
                 as `%40`, `%3A`, `%2F` and `%25`)",
            )
        };
        let url: Uri = text.parse().map_err(|_| refused())?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(Failure::configuration(
                    "--management takes no https://; give a plain http:// listener of the management \
                     plugin on a private network, or leave it out: only the time that the broker's \
                     disk lasts is then not told",
                ));
            }
            _ => return Err(refused()),
        }
        let authority = url.authority().ok_or_else(refused)?;
        let login = authority.as_str().rsplit_once('@').map(|(login, _)| login);
        // RabbitMQ's own defaults, which it accepts from the local machine only.
        let (user, password) =
            login.unwrap_or("guest:guest").split_once(':').ok_or_else(refused)?;
        let (user, password) =
            (decode(user).ok_or_else(refused)?, decode(password).ok_or_else(refused)?);
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        let mut authorization = HeaderValue::try_from(format!("Basic {encoded}"))
            .expect("base64 has no character that a header refuses");
        authorization.set_sensitive(true);
        if url.query().is_some() || authority.host().is_empty() {
            return Err(refused());
        }
        Ok(Management {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(PORT_DEFAULT),
            prefix: url.path().trim_end_matches('/').to_owned(),
            authorization,
        })
    }
}

/// Returns text with `%XX` resolved, if that is UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits =
            after.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

/// Reads the answer; nodes that are down, or that cannot tell how full their disk is, are left out.
fn read_disks(answer: &[u8]) -> anyhow::Result<Vec<Disk>> {
    let nodes: Vec<Value> = serde_json::from_slice(answer)?;
    let disk = |node: &Value| {
        Some(Disk {
            node: node["name"].as_str()?.to_owned(),
            free: node["disk_free"].as_u64()?,
            limit: node["disk_free_limit"].as_u64()?,
        })
    };
    Ok(nodes.iter().filter(|node| node["running"] == true).filter_map(disk).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, shown: &str, login: &str) {
        let management: Management = text.parse().unwrap();
        assert_eq!(management.to_string(), shown);
        let expected = format!("Basic {}", STANDARD.encode(login));
        assert_eq!(management.authorization, expected.as_str());
        let debug = format!("{management:?} {:?}", management.authorization);
        assert!(!debug.contains("sesame") && !debug.contains(&expected), "{debug}");
    }

    #[test]
    fn an_address_is_shown_without_its_account() {
        check(
            "http://ops:sesame@rabbit.example:15673",
            "http://rabbit.example:15673",
            "ops:sesame",
        );
        check("http://ops:s%40same%25@h/", "http://h:15672", "ops:s@same%");
        check("http://u:p@[::1]:1/rabbit/", "http://[::1]:1/rabbit", "u:p");
        check("http://127.0.0.1", "http://127.0.0.1:15672", "guest:guest");
    }

    #[test]
    fn what_is_no_address_is_refused_without_quoting_it() {
        for text in [
            "https://ops:sesame@h",
            "ops:sesame@h",
            "amqp://ops:sesame@h",
            "http://ops-sesame@h",
            "http://ops:sesame%4@h",
            "http://ops:sesame%ff@h",
            "http://ops:sesame@h/?sesame",
            "",
        ] {
            let error = text.parse::<Management>().unwrap_err().to_string();
            assert!(error.contains("--management") && !error.contains("sesame"), "{text}: {error}");
        }
    }

    #[test]
    fn only_running_nodes_that_know_their_disk_are_read() {
        let answer = br#"[
            {"name": "rabbit@a", "running": true, "disk_free": 900, "disk_free_limit": 50},
            {"name": "rabbit@b", "running": false},
            {"name": "rabbit@c", "running": true, "disk_free": "NaN", "disk_free_limit": 50}
        ]"#;
        let expected = [Disk { node: "rabbit@a".to_owned(), free: 900, limit: 50 }];
        assert_eq!(read_disks(answer).unwrap(), expected);
        assert!(read_disks(b"<html>").is_err());
        assert!(read_disks(b"{}").is_err());
    }
}
