//! Connecting through lapin: TLS, heartbeat, the name shown in the broker's lists, and a deadline
//! on each wait.

use std::fmt;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use dacapo_bus::BusError;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::types::LongString;
use lapin::{Channel, Connection, ConnectionProperties};

use crate::AmqpUrl;
use crate::error::{Doing, from_io, from_lapin, lost};

/// How long a broker may take to accept a connection: past a TLS handshake over a slow link, and
/// short of a person's patience.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// How long to listen for a refusal that was lost: it comes with the end of the handshake.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a broker may take to answer a request on an open connection; a quorum queue that has
/// just lost its leader takes some seconds.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long an orderly end may take; past it the connection is dropped, which the broker
/// notices too.
pub(crate) const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes in and out.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A broker, and everything needed to connect to it.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Where it is, and the account.
    pub url: AmqpUrl,
    /// Certificates for `amqps://`.
    pub tls: Tls,
    /// The name of the connection in the broker's lists, for example `dacapo replay 0193`.
    pub client_name: String,
}

/// Certificates for TLS, in PEM form; with none of them the system's authorities are trusted and
/// no certificate is shown.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Authorities to trust besides the system's.
    pub authorities: Option<String>,
    /// What to show a broker that asks for a client certificate.
    pub identity: Option<ClientIdentity>,
}

/// A client certificate with its key, in PEM form. `Debug` leaves the key out.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate, and those between it and the authority.
    pub certificates: String,
    /// The private key.
    pub key: String,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn to_lapin(&self) -> OwnedTLSConfig {
        OwnedTLSConfig {
            identity: self.identity.as_ref().map(|identity| OwnedIdentity::PKCS8 {
                pem: identity.certificates.clone().into_bytes(),
                key: identity.key.clone().into_bytes(),
            }),
            cert_chain: self.authorities.clone(),
        }
    }
}

impl Broker {
    /// Returns host, port and virtual host for messages.
    pub(crate) fn peer(&self) -> String {
        self.url.peer()
    }

    /// Opens a stream of bytes, TLS included.
    pub(crate) async fn stream(&self) -> Result<Pin<Box<dyn Duplex>>, BusError> {
        let peer = self.peer();
        let runtime = lapin::runtime::default_runtime()
            .map_err(|error| from_lapin(&peer, &error, Doing::Connecting))?;
        let tls = self.tls.to_lapin();
        let url = self.url.to_lapin();
        let connecting = url.connect_with_config_async(tls.as_ref(), &runtime);
        match connecting.await {
            Ok(stream) => Ok(Box::pin(stream)),
            Err(error) => Err(from_io(&peer, &error)),
        }
    }

    /// Returns why a connection over TLS was lost before it was open, if a second one tells.
    ///
    /// In TLS 1.3 the broker judges the client's certificate after the client's handshake is over,
    /// so its refusal may meet bytes that are under way to it, and is then lost in a reset. A
    /// broker does not speak first: what comes to a connection on which nothing is sent is that
    /// refusal.
    pub(crate) async fn reason_of(&self, lost: BusError) -> BusError {
        if !self.url.is_tls() || !lost.is_transient() {
            return lost;
        }
        let listening = async {
            let mut stream = self.stream().await?;
            match stream.read(&mut [0]).await {
                Ok(_) => Ok(()),
                Err(error) => Err(from_io(&self.peer(), &error)),
            }
        };
        match tokio::time::timeout(REFUSAL_DEADLINE, listening).await {
            Ok(Err(refused)) if !refused.is_transient() => refused,
            _ => lost,
        }
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Session, BusError> {
        match self.connect_once().await {
            Ok(session) => Ok(session),
            Err(error) => Err(self.reason_of(error).await),
        }
    }

    async fn connect_once(&self) -> Result<Session, BusError> {
        let peer = self.peer();
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(self.client_name.as_str()))
            .with_client_property("product".into(), "dacapo".into());
        let runtime = lapin::runtime::default_runtime()
            .map_err(|error| from_lapin(&peer, &error, Doing::Connecting))?;
        let connecting = Connection::connect_uri_with_config(
            self.url.to_lapin(),
            properties,
            self.tls.to_lapin(),
            runtime,
        );
        let connection = tokio::time::timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| lost(&peer, format!("no answer within {CONNECT_DEADLINE:?}")))?
            .map_err(|error| from_lapin(&peer, &error, Doing::Connecting))?;
        Ok(Session { connection, peer, channels: Mutex::default() })
    }
}

/// An open connection, with its name for messages.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) peer: String,
    /// Kept until the connection is closed: lapin closes a channel that is dropped, and takes the
    /// end of the connection meanwhile for an error, which leaves the connection open.
    channels: Mutex<Vec<Channel>>,
}

impl Session {
    /// Opens a channel; it lives as long as the session.
    pub(crate) async fn channel(&self) -> Result<Channel, BusError> {
        let channel = self.ask(Doing::Connecting, self.connection.create_channel()).await?;
        self.channels
            .lock()
            .expect("nothing panics while it holds this lock")
            .push(channel.clone());
        Ok(channel)
    }

    /// Waits for the broker's answer with a deadline.
    pub(crate) async fn ask<T>(
        &self,
        doing: Doing,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BusError> {
        tokio::time::timeout(ANSWER_DEADLINE, request)
            .await
            .map_err(|_| lost(&self.peer, format!("no answer within {ANSWER_DEADLINE:?}")))?
            .map_err(|error| from_lapin(&self.peer, &error, doing))
    }

    /// Closes in order; a broker that does not answer in time finds the connection dropped.
    pub(crate) async fn close(&self) {
        let closing = self.connection.close(200, "done".into());
        match tokio::time::timeout(CLOSE_DEADLINE, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(peer = self.peer, %error, "not closed in order"),
            Err(_) => tracing::debug!(peer = self.peer, "close was not answered"),
        }
    }
}
