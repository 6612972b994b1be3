//! Where the plugin is, and the account to use there.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dacapo_event::percent::decode;
use hyper::Uri;
use hyper::header::HeaderValue;

use crate::tls::Tls;
use crate::{Certificates, ManagementError};

/// Where the plugin listens unless it is told otherwise.
const PORT_DEFAULT: u16 = 15672;

/// Where it listens over TLS, by RabbitMQ's own example.
const TLS_PORT_DEFAULT: u16 = 15671;

const EXPECTED: &str = "it is not the URL of a management plugin: `http://user:password@host:15672` or \
     `https://user:password@host:15671` (in user and password write `@`, `:`, `/`, `#` and `%` as `%40`, \
     `%3A`, `%2F`, `%23` and `%25`)";

/// The plugin's address and the account to use there. `Display` and `Debug` leave the account out.
#[derive(Clone)]
pub struct Management {
    /// Over TLS if it is there; plain HTTP if not.
    pub(crate) tls: Option<Tls>,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Before `/api`, where the plugin has a path prefix; without a slash at its end.
    pub(crate) prefix: String,
    pub(crate) authorization: HeaderValue,
}

impl fmt::Display for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.prefix)
    }
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Management({self})")
    }
}

impl Management {
    /// Parses `http://user:password@host:port` or `https://…`, which takes the certificates.
    ///
    /// # Errors
    /// It is no such URL, which is not quoted, for it may hold a password; or it is one of `https://`
    /// and a certificate or key cannot be used.
    pub fn new(text: &str, certificates: Certificates<'_>) -> Result<Self, ManagementError> {
        let refused = || ManagementError::Address { problem: EXPECTED };
        // Where a fragment would begin, the authority ends: the rest of a password would be cut off,
        // its start taken for the port, and the account sent to a host named like the user.
        if text.contains('#') {
            return Err(refused());
        }
        let url: Uri = text.parse().map_err(|_| refused())?;
        let (is_tls, port_default) = match url.scheme_str() {
            Some("http") => (false, PORT_DEFAULT),
            Some("https") => (true, TLS_PORT_DEFAULT),
            _ => return Err(refused()),
        };
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
        // An `@` after the first `/`: the password has a `/`, and what looks like the host is its start.
        if url.query().is_some() || authority.host().is_empty() || url.path().contains('@') {
            return Err(refused());
        }
        Ok(Management {
            tls: is_tls.then(|| Tls::new(certificates)).transpose()?,
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(port_default),
            prefix: url.path().trim_end_matches('/').to_owned(),
            authorization,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority of nobody: its key was thrown away.
    const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBhjCCASugAwIBAgIUUoDBnltjKtLkMQeZo9CaFSQ4pvkwCgYIKoZIzj0EAwIw\n\
FzEVMBMGA1UEAwwMZGFjYXBvIHRlc3RzMCAXDTI2MTEyNTIzMjgxNVoYDzIxMjYx\n\
MTAxMjMyODE1WjAXMRUwEwYDVQQDDAxkYWNhcG8gdGVzdHMwWTATBgcqhkjOPQIB\n\
BggqhkjOPQMBBwNCAATIMkbTkF12H2gZSrbJjHHOM4OoRSy1avIQWBqQEDsafExD\n\
Ky5LT8xwPk0doY02VZ0qZzNpIa/Cc03rh8NpazkUo1MwUTAdBgNVHQ4EFgQUKZwG\n\
UbjzV0cJgDdeEjeZHstYD74wHwYDVR0jBBgwFoAUKZwGUbjzV0cJgDdeEjeZHstY\n\
D74wDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA7LmQvwnFUKZm\n\
2XR4xrrdDKWHr4P7X6dnIq88Jtv/1usCIQDidZ9vPAOBKDCXP/Z6fUVIsVIAtEn1\n\
8urPmznTnQ1L6A==\n\
-----END CERTIFICATE-----\n\
";

    #[track_caller]
    fn check(text: &str, shown: &str, login: &str) {
        let certificates = Certificates { authorities: Some(AUTHORITY), identity: None };
        let management = Management::new(text, certificates).unwrap();
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
        check("https://ops:sesame@h/rabbit", "https://h:15671/rabbit", "ops:sesame");
    }

    #[test]
    fn what_is_no_address_is_refused_without_quoting_it() {
        for text in [
            "https://ops-sesame@h",
            "ops:sesame@h",
            "amqp://ops:sesame@h",
            "http://ops-sesame@h",
            "http://ops:12#sesame@h",
            "http://ops:12/sesame@h",
            "http://ops:12?sesame@h",
            "http://ops:sesame%4@h",
            "http://ops:sesame%ff@h",
            "http://ops:sesame@h/?sesame",
            "http://ops:12/sesame@h",
            "",
        ] {
            let refused = Management::new(text, Certificates::default());
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("management plugin"), "{text}: {error}");
            assert!(!error.contains("sesame"), "{text}: {error}");
        }
    }
}
