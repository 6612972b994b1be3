//! `/metrics` for Prometheus and `/health`, for commands that run long.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::exit::Failure;

/// Connections served at once: a scraper, a probe, and a few people.
const CONNECTIONS_MAX: usize = 16;

/// A client that sends its request no faster than this is cut off.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Says whether the command does its work: `Ok`, or what is wrong.
pub type Health = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Listens, and returns a future that serves until dropped, and the address.
pub async fn listen(
    address: SocketAddr,
    registry: Arc<Registry>,
    health: Health,
) -> anyhow::Result<(SocketAddr, impl Future<Output = ()>)> {
    let refused = |error| {
        Failure::configuration(format!(
            "cannot listen on {address}: {error}; choose another --metrics ADDRESS"
        ))
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    tracing::info!(address = %bound, "serving /metrics and /health");
    Ok((bound, accept(listener, registry, health)))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the composition root spawns; connections are bounded"
)]
async fn accept(listener: TcpListener, registry: Arc<Registry>, health: Health) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to /metrics was not accepted");
                tokio::time::sleep(REQUEST_DEADLINE / 10).await;
                continue;
            }
        };
        let (registry, health) = (Arc::clone(&registry), Arc::clone(&health));
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = answer(&request, &registry, &health);
                async move { Ok::<_, Infallible>(response) }
            });
            let serve = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_DEADLINE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = serve.await {
                tracing::debug!(%error, "a client of /metrics went away");
            }
            drop(place);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    health: &Health,
) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, kind: &'static str, body: String| {
        Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, kind)
            .body(Full::from(body))
            .expect("a status, a header and a text are a response")
    };
    let plain = "text/plain; charset=utf-8";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut body = String::new();
            encode(&mut body, registry).expect("a String takes everything");
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            text(StatusCode::OK, kind, body)
        }
        (&Method::GET, "/health") => match health() {
            Ok(()) => text(StatusCode::OK, plain, "ok\n".to_owned()),
            Err(problem) => text(StatusCode::SERVICE_UNAVAILABLE, plain, format!("{problem}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, plain, "there are /metrics and /health\n".to_owned()),
    }
}
