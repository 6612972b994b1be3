//! `amqp://` and `amqps://` addresses: parsed here, shown without the password.

use std::fmt;
use std::str::FromStr;

use dacapo_event::ParseError;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};

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
    heartbeat_secs: u16,
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

    pub(crate) fn heartbeat_secs(&self) -> u16 {
        self.heartbeat_secs
    }

    /// Returns the response of SASL's PLAIN mechanism.
    pub(crate) fn plain_response(&self) -> Vec<u8> {
        format!("\0{}\0{}", self.user, self.password).into_bytes()
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
                heartbeat: Some(self.heartbeat_secs),
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
            heartbeat_secs: heartbeat(query).ok_or_else(refused)?,
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

/// Reads the query: `heartbeat=SECONDS` is all there is.
fn heartbeat(query: &str) -> Option<u16> {
    match query {
        "" => Some(HEARTBEAT_SECS),
        query => query.strip_prefix("heartbeat=")?.parse().ok().filter(|seconds| *seconds > 0),
    }
}

/// Returns a URL that was refused without what may be a password in it.
fn without_password(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((login, address)) => {
            let scheme = login.split_once("://").map_or("", |(scheme, _)| scheme);
            format!("{scheme}://…@{address}")
        }
        None => text.to_owned(),
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02x}"));
        }
    }
    encoded
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Plain => "amqp",
            Transport::Tls => "amqps",
        };
        write!(f, "{scheme}://{}@{}", encode(&self.user), self.peer())
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
        check("amqp://localhost", "amqp://guest@localhost:5672/%2f");
        check("amqp://localhost/", "amqp://guest@localhost:5672/%2f");
        check("amqps://h", "amqps://guest@h:5671/%2f");
    }

    #[test]
    fn a_virtual_host_and_a_login_may_hold_any_character() {
        check("amqp://a%40b:p%3a%2f@h:1/x%2fy", "amqp://a%40b@h:1/x%2fy");
        let url: AmqpUrl = "amqp://a%40b:p%3a%2f@h:1/x%2fy".parse().unwrap();
        assert_eq!(url.plain_response(), b"\0a@b\0p:/");
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
        assert!("amqp://h/v?heartbeat=0".parse::<AmqpUrl>().is_err());
    }

    #[test]
    fn no_form_of_it_shows_the_password() {
        let url: AmqpUrl = "amqp://u:sesame@h".parse().unwrap();
        let url = url.with_password("tulip");
        let shown = format!("{url} {url:?} {}", url.peer());
        assert!(!shown.contains("sesame") && !shown.contains("tulip"), "{shown}");

        for bad in ["http://u:sesame@h", "amqp://u:sesame@h:port", "amqp://u:sesame@", "u:sesame@h"]
        {
            let error = bad.parse::<AmqpUrl>().unwrap_err().to_string();
            assert!(!error.contains("sesame"), "{error}");
        }
    }
}
