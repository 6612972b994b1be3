//! Every form in which a secret may be told is found, and nothing else.

use super::*;

/// With characters that URLs and base64 have forms of their own for.
const SECRET: &str = "s3cr+t/p@ss%:wörd";

fn secrets() -> Secrets {
    let mut secrets = Secrets::default();
    secrets.add("TEST", SECRET.as_bytes());
    secrets
}

#[track_caller]
fn check(text: &str, form: Option<&str>) {
    let told = secrets().told(text.as_bytes());
    assert_eq!(told.map(|told| told.form), form, "{text}");
}

#[test]
fn it_is_found_as_it_is_and_escaped() {
    check("password: s3cr+t/p@ss%:wörd.", Some("text"));
    check(r"s3cr+t\/p@ss%:w\xc3\xB6rd", Some("text"));
    check("s3cr+t/p@ss%:word", None);
    check("", None);
}

#[test]
fn it_is_found_percent_encoded_however_much_of_it() {
    check("amqp://u:s3cr%2Bt%2Fp%40ss%25%3Aw%C3%B6rd@h", Some("text"));
    check("amqp://u:s3cr%2bt%2fp%40ss%25%3aw%c3%b6rd@h", Some("text"));
    check("amqp://u:s3cr+t%2fp@ss%25:w%c3%B6rd@h", Some("text"));
    check("%733cr+t/p@ss%:wörd", Some("text"));
}

/// `openssl base64` says the same.
#[test]
fn it_is_found_in_base64_at_any_alignment_and_in_both_alphabets() {
    // Of it alone, after `:` and after `u:`; each followed by more.
    check("czNjcit0L3BAc3MlOnfDtnJk", Some("base64"));
    check("Basic OnMzY3IrdC9wQHNzJTp3w7ZyZA==", Some("base64"));
    check("Basic dTpzM2NyK3QvcEBzcyU6d8O2cmQK", Some("base64"));
    check("Basic dTpzM2NyK3QvcEBzcyU6d8O2cmQ", Some("base64"));
    check("Basic dTpzM2NyX3QvcEBzcyU6d8O2cmQK", None);
    let mut bytes = Secrets::default();
    // `+/+/` and more in the standard alphabet.
    bytes.add("TEST", &[0xfb, 0xff, 0xbf, 1, 2, 3]);
    for text in ["+/+/AQID", "-_-_AQID", "%2B%2f%2b%2FAQID"] {
        assert_eq!(bytes.told(text.as_bytes()).unwrap().form, "base64", "{text}");
    }
}

#[test]
fn it_is_found_as_numbers() {
    let bytes = SECRET.as_bytes();
    check(&format!("{bytes:?}"), Some("bytes"));
    check(&format!("{bytes:#?}"), Some("bytes"));
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    check(&hex.concat(), Some("hexadecimal"));
    check(&hex.join(":"), Some("hexadecimal"));
}

#[track_caller]
fn check_command(args: &[&str], told: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n";
    let config = "amqp = 'amqp://u:of-url-in-file@h'\namqp_password = \"of-config\"\n";
    for (name, text) in [("key.pem", key), ("password", "of-file\n"), ("dacapo.toml", config)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let mut secrets = Secrets::default();
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    secrets.add_command(folder.path(), &args);
    let mut known: Vec<_> = secrets.known.keys().map(|key| String::from_utf8_lossy(key)).collect();
    known.retain(|secret| secret != "of-config" && secret != "of-url-in-file");
    assert_eq!(known, told);
    assert_eq!(secrets.known.len(), told.len() + 2, "the configuration's are always known");
    let left = secrets.told_by_files(folder.path(), &[]).unwrap();
    assert_eq!(left, [], "files that hold them on purpose");
    fs::write(folder.path().join("log"), "of-config").unwrap();
    assert_eq!(secrets.told_by_files(folder.path(), &[]).unwrap().len(), 1);
    assert_eq!(secrets.told_by_files(folder.path(), &[folder.path().join("log")]).unwrap(), []);
}

#[test]
fn what_a_command_is_given_is_known() {
    check_command(&["plan", "--amqp", "amqp://u:of%2Durl@h"], &["of-url"]);
    check_command(&["plan", "--amqp=amqp://u:p@ss/word@h"], &["p@ss/word"]);
    check_command(&["plan", "--amqp-password-file", "password"], &["of-file"]);
    check_command(&["plan", "--amqp-key=key.pem"], &["MIGHAgEAMBMGByqGSM49"]);
    check_command(&["plan", "--amqp", "amqp://guest:guest@h"], &[]);
}
