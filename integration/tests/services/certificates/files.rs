//! Files with passwords, certificates and keys that are not what they should be: refused before
//! anything is connected to.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::tls;

use super::super::fixtures;
use super::{installation, text};

/// Nobody listens there.
const URL: &str = "amqps://ops:sesame@localhost:1";

/// Returns an installation with a client's certificate and key, `ops.pem` and `ops.key`.
fn with_certificate() -> Dacapo {
    let dacapo = installation(URL);
    tls::certificates(dacapo.folder()).unwrap();
    let client = tls::client(dacapo.folder(), "ops").unwrap();
    tls::encrypted_key(&client).unwrap();
    dacapo.file("text", "hello\n");
    dacapo.file("empty", "");
    dacapo.file("binary", [0xff; 64]);
    dacapo
}

#[test]
fn files_that_are_not_what_they_should_be_are_named_with_what_is_wrong() {
    let dacapo = with_certificate();
    let both = |certificate, key| vec!["--amqp-cert", certificate, "--amqp-key", key];
    for (flags, words) in [
        (vec!["--amqp-ca", "missing.pem"], ["failed to read `missing.pem`", "No such file"]),
        (vec!["--amqp-ca", "text"], ["`text` has no certificate in PEM form", "-inform der"]),
        (vec!["--amqp-ca", "binary"], ["`binary` has no certificate", "openssl x509"]),
        (vec!["--amqp-ca", "ops.key"], ["`ops.key`", "is a private key where a certificate"]),
        (vec!["--amqp-ca", "/dev/zero"], ["`/dev/zero`", "too large"]),
        (both("empty", "ops.key"), ["`empty`", "has no certificate in PEM form"]),
        (both("ops.key", "ops.pem"), ["`ops.key`", "is a private key where a certificate"]),
        (both("ops.pem", "ops.pem"), ["`ops.pem`", "is a certificate where its private key"]),
        (both("ops.pem", "text"), ["`text` has no private key in PEM form", "openssl pkey"]),
        (
            both("ops.pem", "ops.encrypted.key"),
            ["`ops.encrypted.key` is encrypted", "openssl pkey"],
        ),
        (vec!["--amqp-password-file", "empty"], ["`empty`", "has no password in it"]),
        (vec!["--amqp-password-file", "binary"], ["`binary`", "is not UTF-8"]),
    ] {
        let output = dacapo.run(["plan", "--to-queue", "orders"].iter().chain(&flags));
        fixtures::check_refused(&output, 3, &words);
    }
}

#[test]
fn a_secret_that_every_user_can_read_is_warned_of() {
    let dacapo = with_certificate();
    let password = dacapo.file("password", "sesame open\n");
    let key = dacapo.folder().join("ops.key");
    let flags = ["--amqp-cert", "ops.pem", "--amqp-key", "ops.key", "--amqp-password-file"];
    let warnings = |mode: u32| {
        for path in [&password, &key] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let command = ["plan", "--to-queue", "orders"].iter().chain(&flags);
        let output = dacapo.run(command.chain(&[text(&password)]));
        output.check(8);
        output.stderr.matches("every user of this machine can read").count()
    };
    assert_eq!(warnings(0o644), 2);
    assert_eq!(warnings(0o640), 0);
}
