//! What the broker and the client library say, by what the caller can do about it.

use std::io;

use dacapo_bus::BusError;
use lapin::ErrorKind;

/// What was asked of the broker, which decides what its refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Opening a connection or channel.
    Connecting,
    /// Declaring or looking up a queue, exchange or binding.
    Declaring,
    /// Consuming.
    Consuming,
    /// Publishing.
    Publishing,
}

/// What RabbitMQ says when it closes a channel over a message of more than `max_message_size`:
/// `message size 2000 is larger than configured max size 1000`.
const TOO_LARGE: &str = "message size";

/// What RabbitMQ says when it closes a channel over a delivery that was held for longer than its
/// `consumer_timeout`: `delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms.`
const HELD_TOO_LONG: [&str; 2] = ["delivery acknowledgement", "timed out"];

pub(crate) fn lost(peer: &str, reason: impl Into<String>) -> BusError {
    BusError::Disconnected { peer: peer.to_owned(), reason: reason.into() }
}

/// Returns what an error of lapin means.
pub(crate) fn from_lapin(peer: &str, error: &lapin::Error, doing: Doing) -> BusError {
    match error.kind() {
        ErrorKind::ProtocolError(said) => {
            from_close(peer, said.get_id(), said.get_message().as_str(), doing)
        }
        ErrorKind::IOError(io) => from_io(peer, io),
        _ => lost(peer, error.to_string()),
    }
}

/// Returns what an I/O error means: rustls reports every refusal as invalid data, and it would
/// refuse again.
pub(crate) fn from_io(peer: &str, error: &io::Error) -> BusError {
    let reason = error.to_string();
    match error.kind() {
        io::ErrorKind::InvalidData => {
            let hint = tls_hint(&reason);
            refused(peer, format!("TLS: {reason}"), hint)
        }
        _ => lost(peer, reason),
    }
}

/// Returns what to do about a refusal of rustls, in its words.
fn tls_hint(reason: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["received fatal alert"]) {
        // What the broker thinks of us.
        return if says(&["CertificateExpired"]) {
            "renew the client certificate (--amqp-cert), or set the broker's clock if that is wrong"
        } else if says(&["UnknownCA", "UnknownCa"]) {
            "the broker does not trust the authority of the client certificate: use one that is \
             signed by an authority in its `ssl_options.cacertfile`"
        } else if says(&["CertificateRequired", "HandshakeFailure"]) {
            "the broker asks for a client certificate: give one with its key (--amqp-cert, --amqp-key)"
        } else {
            "the broker refuses the client certificate or the connection; its log says why"
        };
    }
    if says(&["Expired", "expired", "NotValidYet", "not valid yet"]) {
        "renew the broker's certificate, or set this machine's clock if that is wrong"
    } else if says(&["invalid peer certificate"]) {
        "trust its authority with a CA file (--amqp-ca), or use the host name that is in its certificate"
    } else if says(&["No CA certificates"]) {
        "name the broker's authority with a CA file (--amqp-ca), or install this system's package of \
         authorities (`ca-certificates`)"
    } else if says(&["keys may not be consistent", "KeyMismatch"]) {
        "the client certificate and the key (--amqp-cert, --amqp-key) do not belong together"
    } else {
        "check that the port speaks TLS and that the certificate and key files are PEM and belong together"
    }
}

/// Returns what the broker's close of a connection or channel means.
///
/// The codes are those of the AMQP 0-9-1 specification, section 1.2, as RabbitMQ uses them.
pub(crate) fn from_close(peer: &str, code: u16, text: &str, doing: Doing) -> BusError {
    match code {
        403 if doing == Doing::Connecting && text.contains("EXTERNAL") => refused(
            peer,
            text,
            "the broker must know a user of the name that it reads from the client certificate \
             (`ssl_cert_login_from`), with access to the virtual host",
        ),
        403 if doing == Doing::Connecting => refused(
            peer,
            text,
            "check the user name and the password, and that this user may connect from this machine",
        ),
        403 => refused(
            peer,
            text,
            "give the user the permission it lacks (`rabbitmqctl set_permissions`), or use another user",
        ),
        404 => BusError::NotFound {
            thing: missing(text),
            peer: peer.to_owned(),
            hint: "create it first, or check the name and the virtual host".to_owned(),
        },
        405 => refused(peer, text, "another connection holds it; end that one first"),
        406 if doing == Doing::Publishing && text.contains(TOO_LARGE) => {
            BusError::TooLarge { reason: text.to_owned() }
        }
        406 if doing == Doing::Consuming
            && HELD_TOO_LONG.iter().all(|words| text.contains(words)) =>
        {
            lost(peer, text)
        }
        406 if doing == Doing::Publishing => BusError::Unsendable { reason: text.to_owned() },
        406 => refused(
            peer,
            text,
            "it exists with other settings: delete it once it is empty, or use another name",
        ),
        530 => refused(
            peer,
            text,
            "check the virtual host in the URL (`/` is written `%2f`) and the user's access to it",
        ),
        // Errors of syntax or of order, which a repeat would meet again.
        501 | 502 | 503 | 504 | 505 | 540 => {
            refused(peer, text, "RabbitMQ 3.10 or newer is needed; its log says more")
        }
        _ => lost(peer, format!("{code} {text}")),
    }
}

pub(crate) fn refused(peer: &str, reason: impl Into<String>, hint: &str) -> BusError {
    BusError::Refused { peer: peer.to_owned(), reason: reason.into(), hint: hint.to_owned() }
}

/// Returns the thing that RabbitMQ misses, from `NOT_FOUND - no queue 'x' in vhost '/'`.
fn missing(text: &str) -> String {
    ["queue", "exchange"]
        .iter()
        .find_map(|kind| {
            let after = text.split_once(&format!("no {kind} '"))?.1;
            let name = after.rsplit_once("' in vhost")?.0;
            Some(format!("{kind} `{name}`"))
        })
        .unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_so_is_the_next_step() {
        let said = "NOT_FOUND - no queue 'o'rders' in vhost '/'";
        assert_eq!(
            from_close("h:5672/%2f", 404, said, Doing::Declaring).to_string(),
            "queue `o'rders` does not exist on h:5672/%2f; \
             create it first, or check the name and the virtual host"
        );
    }

    #[test]
    fn a_message_that_is_too_large_is_told_from_one_that_is_wrong() {
        let said = "PRECONDITION_FAILED - message size 2 is larger than configured max size 1";
        let error = from_close("h", 406, said, Doing::Publishing);
        assert!(matches!(&error, BusError::TooLarge { reason } if reason == said), "{error:?}");
        let said = "PRECONDITION_FAILED - invalid expiration 'x'";
        let error = from_close("h", 406, said, Doing::Publishing);
        assert!(matches!(error, BusError::Unsendable { .. }), "{error:?}");
    }

    /// The delivery is back in the queue, and a new connection gets it again.
    #[test]
    fn a_delivery_held_beyond_the_consumer_timeout_costs_the_connection_and_no_more() {
        let said = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout \
                    value used: 1800000 ms. This timeout value can be configured, see consumers doc \
                    guide to learn more";
        assert!(from_close("h", 406, said, Doing::Consuming).is_transient());
        let said = "PRECONDITION_FAILED - unknown delivery tag 7";
        assert!(!from_close("h", 406, said, Doing::Consuming).is_transient());
    }

    #[track_caller]
    fn check_certificate(said: &str, hint: &str) {
        let io = io::Error::new(io::ErrorKind::InvalidData, said.to_owned());
        let error = from_io("h", &io);
        assert!(!error.is_transient() && error.to_string().contains(hint), "{error}");
    }

    /// As rustls says it, in short and with the times.
    #[test]
    fn what_is_wrong_with_a_certificate_decides_the_next_step() {
        check_certificate("invalid peer certificate: Expired", "renew the broker's certificate");
        check_certificate(
            "invalid peer certificate: certificate expired: verification time 3 (UNIX), …",
            "renew the broker's certificate",
        );
        check_certificate(
            "invalid peer certificate: certificate not valid yet: verification time 3 (UNIX), …",
            "this machine's clock",
        );
        check_certificate("invalid peer certificate: UnknownIssuer", "trust its authority");
        check_certificate("received fatal alert: CertificateRequired", "asks for a client");
        check_certificate("received fatal alert: HandshakeFailure", "asks for a client");
        check_certificate("received fatal alert: CertificateExpired", "renew the client");
        check_certificate("received fatal alert: UnknownCA", "does not trust the authority of the");
        check_certificate("received fatal alert: BadCertificate", "its log says why");
        check_certificate("No CA certificates were loaded from the system", "--amqp-ca");
        check_certificate("keys may not be consistent: KeyMismatch", "do not belong together");
    }

    #[test]
    fn only_what_a_new_connection_can_cure_is_transient() {
        for (code, doing, transient) in [
            (320, Doing::Consuming, true),
            (541, Doing::Publishing, true),
            (403, Doing::Connecting, false),
            (404, Doing::Publishing, false),
            (406, Doing::Publishing, false),
            (406, Doing::Declaring, false),
            (501, Doing::Publishing, false),
            (530, Doing::Connecting, false),
        ] {
            let error = from_close("h", code, "text", doing);
            assert_eq!(error.is_transient(), transient, "{code} {doing:?}");
        }
    }
}
