//! One question, one connection, one answer: with a deadline and a bound.

use std::error::Error;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::{Management, ManagementError, tls};

/// Past a slow answer of a busy node, and before the next question of who watches is due.
const DEADLINE: Duration = Duration::from_secs(10);

/// A virtual host with some hundred queues takes seconds to go.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);

/// The most of one answer: 20,000 queues at 800 bytes each, in the columns that are asked for.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most values in one answer: 20,000 queues with a dozen arguments have 300,000. Each takes some
/// 100 bytes while it is read, so that `[[],[],…]` would take 20 times its bytes.
const ANSWER_VALUES_MAX: usize = 500_000;

/// RabbitMQ's names for what a user may see.
pub(crate) mod tags {
    /// Nodes, queues, exchanges, bindings and policies; parameters and definitions are not in it.
    pub(crate) const MONITORING: &str = "monitoring";
    /// Virtual hosts are made and deleted.
    pub(crate) const ADMINISTRATOR: &str = "administrator";
}

type Reason = Box<dyn Error + Send + Sync>;

impl Management {
    /// Returns the answer to `GET /api/PATH`; `tag` is named if the account is refused.
    ///
    /// Cancel-safe.
    pub(crate) async fn get(
        &self,
        path: &str,
        tag: &'static str,
    ) -> Result<Value, ManagementError> {
        let (status, body) = self.within(DEADLINE, Method::GET, path, Bytes::new()).await?;
        match status {
            StatusCode::OK => {
                let read = off_the_runtime(move || read(&body)).await;
                read.map_err(|problem| self.strange(path, problem))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(ManagementError::Denied { place: self.to_string(), path: named(path), tag })
            }
            status => Err(self.strange(path, status.to_string())),
        }
    }

    /// Changes something with `METHOD /api/PATH` and returns the status; an account that may not is an
    /// error.
    ///
    /// Not cancel-safe: a dropped call may have changed it.
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<StatusCode, ManagementError> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let (status, said) = self.within(CHANGE_DEADLINE, method, path, body).await?;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ManagementError::Denied {
                place: self.to_string(),
                path: named(path),
                tag: tags::ADMINISTRATOR,
            }),
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(status),
            status => {
                let said: String = String::from_utf8_lossy(&said).chars().take(200).collect();
                Err(self.strange(path, format!("{status} {said}")))
            }
        }
    }

    async fn within(
        &self,
        deadline: Duration,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ManagementError> {
        let asked = tokio::time::timeout(deadline, self.ask(method, path, body));
        let asked = match asked.await {
            Ok(asked) => asked,
            Err(_) => Err(format!("no answer within {deadline:?}").into()),
        };
        asked.map_err(|source| self.unanswered(source))
    }

    fn unanswered(&self, source: Reason) -> ManagementError {
        let place = self.to_string();
        let next_step = source.downcast_ref::<io::Error>().and_then(tls::next_step);
        match (next_step, source.downcast::<io::Error>()) {
            (Some(next_step), Ok(source)) => {
                ManagementError::Untrusted { place, source: *source, next_step }
            }
            (_, Ok(source)) => ManagementError::Unavailable { place, source },
            (_, Err(source)) => ManagementError::Unavailable { place, source },
        }
    }

    pub(crate) fn strange(&self, path: &str, problem: impl Into<String>) -> ManagementError {
        ManagementError::Strange {
            place: self.to_string(),
            path: named(path),
            problem: problem.into(),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Reason> {
        let host = self.host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.port)).await?;
        match &self.tls {
            None => self.ask_over(stream, method, path, body).await,
            Some(tls) => {
                self.ask_over(tls.shake_hands(host, stream).await?, method, path, body).await
            }
        }
    }

    async fn ask_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Reason> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let question = Request::builder()
            .method(method)
            .uri(format!("{}/api/{path}", self.prefix))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::CONNECTION, "close")
            .body(Full::new(body))?;
        let answer = async move {
            let answer = sender.send_request(question).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?;
            Ok((status, body.to_bytes()))
        };
        // What ends the connection early ends the answer, too, and is told there.
        let (answer, _) = tokio::join!(answer, connection);
        answer
    }
}

/// Does CPU work of some size on a blocking thread: whoever asks may serve a bus in the same task.
pub(crate) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn read(body: &[u8]) -> Result<Value, String> {
    // More than there are, where a text has such bytes; every value but the first follows one.
    let values = body.iter().filter(|byte| matches!(byte, b'[' | b'{' | b',')).count();
    if values > ANSWER_VALUES_MAX {
        return Err(format!("it has more than {ANSWER_VALUES_MAX} values"));
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Returns a path as it is shown: without the columns asked for.
fn named(path: &str) -> String {
    let (path, _) = path.split_once('?').unwrap_or((path, ""));
    format!("/api/{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_too_many_values_is_refused_before_it_is_read() {
        let lists = |count: usize| format!("[{}]", vec!["[]"; count].join(","));
        assert!(read(lists(ANSWER_VALUES_MAX / 2).as_bytes()).is_ok());
        let refused = read(lists(ANSWER_VALUES_MAX / 2 + 1).as_bytes());
        assert_eq!(refused, Err("it has more than 500000 values".to_owned()));
        assert!(read(b"<html>").is_err());
    }
}
