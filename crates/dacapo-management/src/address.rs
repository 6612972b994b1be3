//! Where the plugin is, and the account to use there.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dacapo_event::percent::decode;
use hyper::Uri;
use hyper::header::HeaderValue;

use crate::ManagementError;

/// Where the plugin listens unless it is told otherwise.
const PORT_DEFAULT: u16 = 15672;

const EXPECTED: &str = "it is not the URL of a management plugin: `http://user:password@host:15672` (in user and \
     password write `@`, `:`, `/`, `#` and `%` as `%40`, `%3A`, `%2F`, `%23` and `%25`)";

const NO_TLS: &str = "https:// is not spoken; give a plain http:// listener of the management plugin on a private \
     network, or leave it out: what only the plugin can tell is then not known";

/// The plugin's address and the account to use there. `Display` and `Debug` leave the account out.
#[derive(Clone, PartialEq, Eq)]
pub struct Management {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Before `/api`, where the plugin has a path prefix; without a slash at its end.
    pub(crate) prefix: String,
    pub(crate) authorization: HeaderValue,
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
    type Err = ManagementError;

    fn from_str(text: &str) -> Result<Self, ManagementError> {
        let refused = || ManagementError::Address { problem: EXPECTED };
        // Where a fragment would begin, the authority ends: the rest of a password would be cut off,
        // its start taken for the port, and the account sent to a host named like the user.
        if text.contains('#') {
            return Err(refused());
        }
        let url: Uri = text.parse().map_err(|_| refused())?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(ManagementError::Address { problem: NO_TLS }),
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
        // An `@` after the first `/`: the password has a `/`, and what looks like the host is its start.
        if url.query().is_some() || authority.host().is_empty() || url.path().contains('@') {
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
            "http://ops:12#sesame@h",
            "http://ops:12/sesame@h",
            "http://ops:12?sesame@h",
            "http://ops:sesame%4@h",
            "http://ops:sesame%ff@h",
            "http://ops:sesame@h/?sesame",
            "http://ops:12/sesame@h",
            "",
        ] {
            let error = text.parse::<Management>().unwrap_err().to_string();
            assert!(error.contains("management plugin"), "{text}: {error}");
            assert!(!error.contains("sesame"), "{text}: {error}");
        }
    }
}
