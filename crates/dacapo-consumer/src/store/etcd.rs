//! Remembered in etcd, for processes that share what they have handled.
//!
//! Ids and keys are kept as digests, so that an entry has one size whatever it is named, each with its
//! age; beside them the digests by age, so that the oldest is found; and one small `state`, which says
//! how many there are. A record is one transaction that holds only if nobody has changed the state
//! since it was read, so two processes never count past each other.
//!
//! Nothing here has a lease. A bound on what is kept has to be a number to fit into etcd's quota, and
//! a lease runs out while nobody is there to renew it: a service that was down for longer than that
//! would come back to its queue with every mark gone.
//!
//! Invariants: every call has a deadline; after a call that was not answered the connection is made
//! anew; what is read is what etcd's majority has (no serializable read).

mod calls;
mod layout;

use std::fmt;

use async_trait::async_trait;
use dacapo_event::Digest;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use thiserror::Error;

use super::{Forgetting, ProcessedStore, Retention, StoreError};
use crate::order::{Known, Position};
use calls::Calls;
use layout::{IDS, KEYS, Keys, Kind, Line, State};

/// How many entries of a kind one record takes out at the most, where the retention has become
/// smaller: with both kinds this is 127 operations, and etcd takes 128 (`--max-txn-ops`).
const FORGOTTEN_MAX: usize = 30;

/// How often a record is tried where others come first. One of them gets through each time, so this
/// many processes may record at the same moment; a service with a single active consumer has one.
const CONTENDED_MAX: u32 = 64;

/// How many ages are first looked through for the oldest entries: without events that came twice each
/// is in use. etcd 3.4 walks through all of a range whatever its limit, so it may not be all of them.
const SPAN: u64 = 64;

/// Where an etcd is, and who asks.
#[derive(Debug, Clone, Default)]
pub struct EtcdAt {
    /// URLs of its members, `https://etcd-1.example:2379`; `http://` only where nobody listens in.
    pub endpoints: Vec<String>,
    /// Who asks, where etcd has authentication on.
    pub account: Option<EtcdAccount>,
    /// How members and client prove who they are, over `https://`.
    pub tls: EtcdTls,
}

/// A user of etcd. It needs to read and write the store's prefix, and nothing else.
#[derive(Clone)]
pub struct EtcdAccount {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: String,
}

impl fmt::Debug for EtcdAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdAccount").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What TLS is made of; PEM.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// The authority that signed the members' certificates; without one, those of the system.
    pub authority: Option<Vec<u8>>,
    /// The client's certificate and its key, where etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

/// A [`ProcessedStore`] under a prefix of an etcd, which any number of processes of one service may
/// have at the same time.
#[derive(Debug)]
pub struct EtcdStore {
    calls: Calls,
    keys: Keys,
    retention: Retention,
    forgetting: Forgetting,
}

/// What a record has to know before it is made.
struct Seen {
    state: State,
    /// When the state was written; 0 if it never was.
    revision: i64,
    id: Option<u64>,
    key: Option<(u64, Position)>,
}

impl EtcdStore {
    /// Returns the store of one service, whose prefix is its own and ends with `/`
    /// (`services/orders/`), after a first answer of etcd.
    ///
    /// # Errors
    /// The prefix or an endpoint is none, etcd does not answer or refuses the account, or what is under
    /// the prefix is something else.
    pub async fn open(at: EtcdAt, prefix: &str, retention: Retention) -> Result<Self, StoreError> {
        // What an endpoint with a login in it holds is shown nowhere.
        check(&at).map_err(|trouble| trouble.of("open", format!("etcd {prefix}")))?;
        let name = format!("{} {prefix}", at.endpoints.join(","));
        let opening = async {
            let keys = Keys::under(prefix)?;
            let (calls, forgetting) = (Calls::new(at), Forgetting::default());
            let store = EtcdStore { calls, keys, retention, forgetting };
            store.look(digest(""), None).await?;
            Ok(store)
        };
        opening.await.map_err(|trouble: Trouble| trouble.of("open", name))
    }

    async fn known(&self, id: Digest, key: Option<Digest>) -> Result<Known, Trouble> {
        let mut reads = vec![get(self.keys.named(IDS, &id))];
        reads.extend(key.map(|key| get(self.keys.named(KEYS, &key))));
        let answers = self.read(reads).await?;
        let newest = answers.get(1).and_then(Option::as_ref).map(|(value, _)| position(value));
        let handled = answers.first().is_some_and(Option::is_some);
        Ok(Known { handled, newest: newest.transpose()? })
    }

    /// Reads what a record of these depends on, as it is at one moment.
    async fn look(&self, id: Digest, key: Option<Digest>) -> Result<Seen, Trouble> {
        let mut reads = vec![get(self.keys.state()), get(self.keys.named(IDS, &id))];
        reads.extend(key.map(|key| get(self.keys.named(KEYS, &key))));
        let mut answers = self.read(reads).await?.into_iter();
        let mut next = || answers.next().flatten();
        let (state, revision) = match next() {
            Some((value, revision)) => (State::parse(&value)?, revision),
            None => {
                self.check_nothing_is_left().await?;
                (State::default(), 0)
            }
        };
        let id = next().map(|(value, _)| age(&value)).transpose()?;
        let key = next().map(|(value, _)| Ok::<_, Trouble>((age(&value)?, position(&value)?)));
        Ok(Seen { state, revision, id, key: key.transpose()? })
    }

    /// Without a state nothing may be there, or it would be kept for ever. The state is read again, with
    /// the rest: another process may have made it meanwhile.
    async fn check_nothing_is_left(&self) -> Result<(), Trouble> {
        let any = |kind| {
            let (from, to) = self.keys.all_aged(kind);
            TxnOp::get(from, Some(GetOptions::new().with_range(to).with_limit(1)))
        };
        let answers = self.read(vec![get(self.keys.state()), any(IDS), any(KEYS)]).await?;
        match answers.as_slice() {
            [None, ids, keys] if ids.is_some() || keys.is_some() => {
                Err(Trouble::Leftovers { prefix: self.keys.prefix().to_owned() })
            }
            _ => Ok(()),
        }
    }

    async fn put(&self, id: Digest, place: Option<(Digest, Position)>) -> Result<(), Trouble> {
        for _ in 0..CONTENDED_MAX {
            let seen = self.look(id, place.map(|(key, _)| key)).await?;
            let mut after = seen.state;
            after.age += 1;
            let mut writes = Vec::new();
            let most = self.retention.ids.get();
            let entry = Entry {
                kind: IDS,
                name: id,
                before: seen.id,
                value: after.age.to_be_bytes().to_vec(),
            };
            after.ids = self.replace(&mut writes, entry, after.age, after.ids, most).await?;
            let mut forgets = false;
            if let Some((name, position)) = place {
                let newest = seen.key.map_or(position, |(_, newest)| newest.max(position));
                let value = [after.age.to_be_bytes(), newest.0.to_be_bytes()].concat();
                let before = seen.key.map(|(age, _)| age);
                let entry = Entry { kind: KEYS, name, before, value };
                let count = after.keys.count + u64::from(before.is_none());
                let most = self.retention.keys.get();
                after.keys = self.replace(&mut writes, entry, after.age, after.keys, most).await?;
                forgets = after.keys.count < count;
            }
            writes.push(TxnOp::put(self.keys.state(), after.to_string(), None));
            let unchanged =
                Compare::mod_revision(self.keys.state(), CompareOp::Equal, seen.revision);
            let answer = self.calls.txn(Txn::new().when([unchanged]).and_then(writes)).await?;
            if answer.succeeded() {
                if forgets {
                    self.forgetting.warn();
                }
                return Ok(());
            }
        }
        Err(Trouble::Contended)
    }

    /// Adds to the writes that an entry is put as the newest, and the oldest are taken out for which
    /// there is no room; returns what there is then.
    async fn replace(
        &self,
        writes: &mut Vec<TxnOp>,
        entry: Entry,
        age: u64,
        mut line: Line,
        most: usize,
    ) -> Result<Line, Trouble> {
        let Entry { kind, name, before, value } = entry;
        match before {
            Some(before) => writes.push(TxnOp::delete(self.keys.aged(kind, before), None)),
            None => line.count += 1,
        }
        let too_many = line.count.saturating_sub(most as u64).min(FORGOTTEN_MAX as u64);
        for (oldest, digest) in
            self.oldest(kind, line.oldest..age, too_many as usize, &name).await?
        {
            writes.push(TxnOp::delete(self.keys.aged(kind, oldest), None));
            writes.push(TxnOp::delete(self.keys.named_bytes(kind, &digest), None));
            line.count -= 1;
            line.oldest = oldest + 1;
        }
        writes.push(TxnOp::put(self.keys.named(kind, &name), value, None));
        writes.push(TxnOp::put(self.keys.aged(kind, age), name.as_bytes().as_slice(), None));
        Ok(line)
    }

    /// Returns the oldest entries, as many as are wanted, by their ages in this range; never that of
    /// `besides`, which is about to be the newest.
    async fn oldest(
        &self,
        kind: Kind,
        ages: std::ops::Range<u64>,
        wanted: usize,
        besides: &Digest,
    ) -> Result<Vec<(u64, Vec<u8>)>, Trouble> {
        let mut found = Vec::new();
        let (mut from, mut span) = (ages.start, SPAN);
        while found.len() < wanted && from < ages.end {
            let end = from.saturating_add(span).min(ages.end);
            let limit = i64::try_from(wanted + 1).unwrap_or(i64::MAX);
            let range = GetOptions::new().with_range(self.keys.aged(kind, end)).with_limit(limit);
            let answer = self.calls.get(self.keys.aged(kind, from), range).await?;
            for aged in answer.kvs() {
                let age = self.keys.age_of(aged.key())?;
                if aged.value() != besides.as_bytes() && found.len() < wanted {
                    found.push((age, aged.value().to_vec()));
                }
            }
            (from, span) = (end, span.saturating_mul(2));
        }
        Ok(found)
    }

    /// Reads single keys at one moment; returns the value of each with when it was written.
    async fn read(&self, reads: Vec<TxnOp>) -> Result<Vec<Option<(Vec<u8>, i64)>>, Trouble> {
        let answer = self.calls.txn(Txn::new().and_then(reads)).await?;
        let value = |answer| match answer {
            TxnOpResponse::Get(mut found) => {
                found.take_kvs().pop().map(|found| (found.value().to_vec(), found.mod_revision()))
            }
            _ => None,
        };
        Ok(answer.op_responses().into_iter().map(value).collect())
    }
}

/// What is put of a record.
struct Entry {
    kind: Kind,
    name: Digest,
    /// Its age until now.
    before: Option<u64>,
    value: Vec<u8>,
}

#[async_trait]
impl ProcessedStore for EtcdStore {
    async fn recall(&self, id: &str, key: Option<&str>) -> Result<Known, StoreError> {
        let known = self.known(digest(id), key.map(digest)).await;
        known.map_err(|trouble| trouble.of("read", self.name()))
    }

    async fn record(&self, id: &str, place: Option<(&str, Position)>) -> Result<(), StoreError> {
        let place = place.map(|(key, position)| (digest(key), position));
        let recorded = self.put(digest(id), place).await;
        recorded.map_err(|trouble| trouble.of("write", self.name()))
    }
}

impl EtcdStore {
    fn name(&self) -> String {
        format!("{} {}", self.calls.endpoints(), self.keys.prefix())
    }
}

/// Why etcd did not do what it was asked.
#[derive(Debug, Error)]
enum Trouble {
    #[error("etcd has not answered within {} s", calls::DEADLINE.as_secs())]
    Unanswered,
    /// Its alarm `NOSPACE`: from then on it takes no write, also after there is room again.
    #[error(
        "etcd is full and takes no writes; compact and defragment it or raise \
         `--quota-backend-bytes`, then run `etcdctl alarm disarm`"
    )]
    Full(#[source] etcd_client::Error),
    #[error("others have recorded first {CONTENDED_MAX} times; fewer processes may share a prefix")]
    Contended,
    #[error(
        "there are keys under `{prefix}` but no `{prefix}state`; delete the rest, too: `etcdctl del --prefix {prefix}`"
    )]
    Leftovers { prefix: String },
    #[error("an endpoint begins with neither `http://` nor `https://`, or has a login in it")]
    Endpoint,
    #[error("an endpoint is not `https://`, and so what TLS is made of would be passed over")]
    Unencrypted,
    #[error("`{0}` is no prefix: up to 200 printable ASCII characters that end with `/`")]
    Prefix(String),
    #[error("what etcd has is not what this version writes ({0}); delete what is under the prefix")]
    Foreign(String),
    #[error(transparent)]
    Etcd(etcd_client::Error),
}

impl Trouble {
    fn of(self, action: &'static str, store: String) -> StoreError {
        StoreError { action, store, source: self.into() }
    }
}

/// Refuses endpoints that would be used in clear where TLS was meant.
fn check(at: &EtcdAt) -> Result<(), Trouble> {
    let has_tls = at.tls.authority.is_some() || at.tls.identity.is_some();
    for endpoint in &at.endpoints {
        let is_https = endpoint.starts_with("https://");
        if !is_https && !endpoint.starts_with("http://") || endpoint.contains('@') {
            return Err(Trouble::Endpoint);
        }
        if has_tls && !is_https {
            return Err(Trouble::Unencrypted);
        }
    }
    Ok(())
}

fn get(key: Vec<u8>) -> TxnOp {
    TxnOp::get(key, None)
}

fn age(value: &[u8]) -> Result<u64, Trouble> {
    let age = value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    age.ok_or_else(|| Trouble::Foreign(format!("an entry of {} bytes", value.len())))
}

fn position(value: &[u8]) -> Result<Position, Trouble> {
    let (_, position) = value.split_at_checked(8).unwrap_or_default();
    let position = position.first_chunk().map(|bytes| Position(i64::from_be_bytes(*bytes)));
    position.ok_or_else(|| Trouble::Foreign(format!("an entry of {} bytes", value.len())))
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(endpoint: &str, authority: Option<&[u8]>, expected: &str) {
        let tls = EtcdTls { authority: authority.map(<[u8]>::to_vec), identity: None };
        let endpoints = vec!["https://etcd-1:2379".to_owned(), endpoint.to_owned()];
        let refused = check(&EtcdAt { endpoints, tls, ..EtcdAt::default() }).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }

    #[test]
    fn nothing_goes_in_clear_where_tls_was_meant() {
        check_refused("etcd-2:2379", None, "begins with neither");
        check_refused("https://user:secret@etcd-2:2379", None, "a login");
        check_refused("http://etcd-2:2379", Some(b"PEM"), "is not `https://`");
        let endpoints = vec!["http://etcd-1:2379".to_owned()];
        assert!(check(&EtcdAt { endpoints, ..EtcdAt::default() }).is_ok());
    }
}
