//! `amqp://` and `amqps://` addresses: parsed here, shown without the password.

use std::fmt;
use std::str::FromStr;

use dacapo_event::ParseError;
use dacapo_event::percent::{decode, encode};
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};

/// Seconds between heartbeats unless the URL says otherwise: a broker or a standby notices a
/// vanished host after two of them, well before an operator does.
const HEARTBEAT_SECS: u16 = 20;

const EXPECTED: &str = "an AMQP URL (for example `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS; \
     the virtual host `/` is `%2f` or left out)";

/// Where a broker is, and the account to use there.
///
/// `Display` and `Debug` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    transport: Transport,
    user: String,
    password: String,
    host: String,
    port: u16,
    vhost: String,
    query: Query,
}

/// What may be asked for after the `?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Query {
    heartbeat_secs: u16,
    login: Login,
}

/// How to say who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    /// By user name and password: `PLAIN`.
    Password,
    /// By the client certificate, from which the broker takes the user's name: `EXTERNAL`.
    Certificate,
}

/// What carries the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    /// `amqp://`
    Plain,
    /// `amqps://`
    Tls,
}

impl AmqpUrl {
    /// Returns the same address with this password, for one that was not in the URL.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = password.into();
        self
    }

    /// Returns host, port and virtual host as they are shown in messages.
    pub fn peer(&self) -> String {
        let vhost = encode(&self.vhost);
        let Self { host, port, .. } = self;
        if host.contains(':') {
            format!("[{host}]:{port}/{vhost}")
        } else {
            format!("{host}:{port}/{vhost}")
        }
    }

    /// Returns the virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Returns the same address in another virtual host.
    #[must_use]
    pub fn with_vhost(mut self, vhost: impl Into<String>) -> Self {
        self.vhost = vhost.into();
        self
    }

    /// Returns the user; with `auth_mechanism=external` the one that the URL names all the same.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the address with its password, for a program that is started to connect there.
    pub fn reveal(&self) -> String {
        let shown = self.to_string();
        match self.login() {
            Login::Certificate => shown,
            Login::Password => {
                let (user, password) = (encode(&self.user), encode(&self.password));
                let scheme = if self.is_tls() { "amqps" } else { "amqp" };
                format!("{scheme}://{user}:{password}@{}", self.peer())
            }
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.transport == Transport::Tls
    }

    pub(crate) fn heartbeat_secs(&self) -> u16 {
        self.query.heartbeat_secs
    }

    pub(crate) fn login(&self) -> Login {
        self.query.login
    }

    /// Returns the name of the SASL mechanism, and the response that begins it.
    pub(crate) fn sasl(&self) -> (&'static str, Vec<u8>) {
        match self.login() {
            Login::Password => {
                ("PLAIN", format!("\0{}\0{}", self.user, self.password).into_bytes())
            }
            Login::Certificate => ("EXTERNAL", Vec::new()),
        }
    }

    pub(crate) fn to_lapin(&self) -> AMQPUri {
        AMQPUri {
            scheme: match self.transport {
                Transport::Plain => AMQPScheme::AMQP,
                Transport::Tls => AMQPScheme::AMQPS,
            },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.user.clone(),
                    password: self.password.clone(),
                },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(self.heartbeat_secs()),
                auth_mechanism: Some(match self.login() {
                    Login::Password => SASLMechanism::Plain,
                    Login::Certificate => SASLMechanism::External,
                }),
                ..AMQPQueryString::default()
            },
        }
    }
}

impl FromStr for AmqpUrl {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError::new(&without_password(text), EXPECTED);
        let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
        let transport = match scheme {
            "amqp" => Transport::Plain,
            "amqps" => Transport::Tls,
            _ => return Err(refused()),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        // The password has a `/` that is not encoded, and what looks like the host is its start.
        if vhost.contains('@') {
            return Err(refused());
        }
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = host_and_port(address, transport).ok_or_else(refused)?;

        // RabbitMQ's own defaults, which it accepts from the local machine only.
        let (user, password) = if login.is_empty() { ("guest", "guest") } else { (user, password) };
        // An empty last segment would name the virtual host ``, which nobody has; a slash at the
        // end of a URL is common.
        let vhost = if vhost.is_empty() { "%2f" } else { vhost };
        Ok(AmqpUrl {
            transport,
            user: decode(user).ok_or_else(refused)?,
            password: decode(password).ok_or_else(refused)?,
            host: decode(host).filter(|host| !host.is_empty()).ok_or_else(refused)?,
            port,
            vhost: decode(vhost).ok_or_else(refused)?,
            query: asked_for(query).ok_or_else(refused)?,
        })
    }
}

/// Splits `host:port`, `[v6]:port` or a bare host, whose port is the scheme's.
fn host_and_port(address: &str, transport: Transport) -> Option<(&str, u16)> {
    let default = match transport {
        Transport::Plain => 5672,
        Transport::Tls => 5671,
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    Some((host, port.map_or(Ok(default), str::parse).ok()?))
}

/// Reads the query: `heartbeat=SECONDS` and `auth_mechanism=plain` or `external`, joined by `&`.
fn asked_for(query: &str) -> Option<Query> {
    let mut asked = Query { heartbeat_secs: HEARTBEAT_SECS, login: Login::Password };
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=')? {
            ("heartbeat", seconds) => {
                asked.heartbeat_secs = seconds.parse().ok().filter(|seconds| *seconds > 0)?;
            }
            ("auth_mechanism", name) if name.eq_ignore_ascii_case("external") => {
                asked.login = Login::Certificate;
            }
            ("auth_mechanism", name) if name.eq_ignore_ascii_case("plain") => {
                asked.login = Login::Password;
            }
            _ => return None,
        }
    }
    Some(asked)
}

/// Returns a URL that was refused without what may be a password in it: in one that is malformed
/// that is all between the scheme and the last `@`, and without one all.
fn without_password(text: &str) -> String {
    let scheme = match text.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://"),
        None => String::new(),
    };
    match text.rsplit_once('@') {
        Some((_, address)) => format!("{scheme}…@{address}"),
        None => format!("{scheme}…"),
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Plain => "amqp",
            Transport::Tls => "amqps",
        };
        match self.login() {
            Login::Password => write!(f, "{scheme}://{}@{}", encode(&self.user), self.peer()),
            Login::Certificate => {
                write!(f, "{scheme}://{}?auth_mechanism=external", self.peer())
            }
        }
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, shown: &str) {
        let url: AmqpUrl = text.parse().unwrap();
        assert_eq!(url.to_string(), shown);
    }

    #[test]
    fn what_is_left_out_gets_rabbitmqs_defaults() {
        check("amqp://localhost", "amqp://guest@localhost:5672/%2F");
        check("amqp://localhost/", "amqp://guest@localhost:5672/%2F");
        check("amqps://h", "amqps://guest@h:5671/%2F");
    }

    #[test]
    fn a_virtual_host_and_a_login_may_hold_any_character() {
        check("amqp://a%40b:p%3a%2f@h:1/x%2fy", "amqp://a%40b@h:1/x%2Fy");
        let url: AmqpUrl = "amqp://a%40b:p%3a%2f@h:1/x%2fy".parse().unwrap();
        assert_eq!(url.sasl(), ("PLAIN", b"\0a@b\0p:/".to_vec()));
        assert_eq!(url.vhost(), "x/y");
    }

    #[test]
    fn an_ipv6_address_keeps_its_brackets_in_messages_only() {
        check("amqp://u:p@[::1]:5673/v", "amqp://u@[::1]:5673/v");
        assert_eq!("amqp://[::1]".parse::<AmqpUrl>().unwrap().to_lapin().authority.host, "::1");
    }

    #[test]
    fn the_heartbeat_is_settable_and_never_off() {
        let url: AmqpUrl = "amqp://h/v?heartbeat=5".parse().unwrap();
        assert_eq!(url.heartbeat_secs(), 5);
        for bad in ["heartbeat=0", "heartbeat", "heartbeat=5&x=1", "auth_mechanism=amqplain"] {
            assert!(format!("amqp://h/v?{bad}").parse::<AmqpUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_logs_in_without_user_or_password() {
        for text in [
            "amqps://h/v?auth_mechanism=external&heartbeat=5",
            "amqps://u:sesame@h/v?heartbeat=5&auth_mechanism=EXTERNAL",
        ] {
            let url: AmqpUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), "amqps://h:5671/v?auth_mechanism=external");
            assert_eq!(url.sasl(), ("EXTERNAL", Vec::new()));
            assert_eq!(url.heartbeat_secs(), 5);
            let asked = url.to_lapin().query.auth_mechanism;
            assert_eq!(asked, Some(SASLMechanism::External));
        }
        check("amqps://u@h/v?auth_mechanism=plain", "amqps://u@h:5671/v");
    }

    #[test]
    fn what_is_revealed_is_the_same_address() {
        for text in ["amqp://u:p%40%2F@h:1/x%2Fy", "amqps://u:p@h:5671/%2F"] {
            let url: AmqpUrl = text.parse().unwrap();
            assert_eq!(url.reveal(), text);
            let other = url.clone().with_vhost("a b");
            assert_eq!((other.user(), other.vhost()), ("u", "a b"));
            assert_eq!(other.reveal().parse::<AmqpUrl>(), Ok(other));
        }
    }

    #[test]
    fn no_form_of_it_shows_the_password() {
        let url: AmqpUrl = "amqp://u:sesame@h".parse().unwrap();
        let url = url.with_password("tulip");
        let shown = format!("{url} {url:?} {}", url.peer());
        assert!(!shown.contains("sesame") && !shown.contains("tulip"), "{shown}");

        for bad in [
            "http://u:sesame@h",
            "amqp://u:sesame@h:port",
            "amqp://u:sesame@",
            "u:sesame@h",
            "amqp://u:sesame",
            "amqp:u:sesame",
            "amqp://u:12/sesame@h",
            "amqp://u:12/3@sesame@h/v",
            "amqp://u:12?sesame@h",
            "amqp://u:se%same@h",
            "amqp://u:%+1sesame@h",
        ] {
            let error = bad.parse::<AmqpUrl>().unwrap_err().to_string();
            assert!(!error.contains("sesame"), "{error}");
        }
    }
}
