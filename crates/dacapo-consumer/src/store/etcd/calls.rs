//! Calls of etcd, each with a deadline, on a connection that is made anew after one that failed: what
//! holds the connections of `etcd-client` waits longer and longer between its own attempts, and keeps
//! a token that a restarted etcd does not know any more.

use std::sync::Mutex;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, KvClient,
    TlsOptions, Txn, TxnResponse,
};

use super::{EtcdAt, Trouble};

/// etcd itself gives a request up after 7 s (5 s, and two elections of a leader).
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// The start of what etcd says when its quota is used up, and from then on.
const FULL: &str = "etcdserver: mvcc: database space exceeded";

/// An etcd, connected to or not.
pub(super) struct Calls {
    at: EtcdAt,
    /// Absent at first and after a call that failed.
    open: Mutex<Option<KvClient>>,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Calls {
    pub(super) fn new(at: EtcdAt) -> Self {
        Calls { at, open: Mutex::new(None) }
    }

    pub(super) fn endpoints(&self) -> String {
        self.at.endpoints.join(",")
    }

    pub(super) async fn get(
        &self,
        key: impl Into<Vec<u8>>,
        options: GetOptions,
    ) -> Result<GetResponse, Trouble> {
        let key = key.into();
        self.call(async move |client| client.get(key, Some(options)).await).await
    }

    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, Trouble> {
        self.call(async move |client| client.txn(txn).await).await
    }

    /// A call that is dropped before it was answered leaves the connection as it is.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(&mut KvClient) -> Result<T, Error>,
    ) -> Result<T, Trouble> {
        let calling = async {
            let mut client = match self.opened() {
                Some(client) => client,
                None => self.connect().await?,
            };
            let answer = call(&mut client).await?;
            self.keep(Some(client));
            Ok(answer)
        };
        let answer = tokio::time::timeout(DEADLINE, calling).await;
        let answer = answer.map_or(Err(Trouble::Unanswered), |answer| answer.map_err(trouble));
        if answer.is_err() {
            self.keep(None);
        }
        answer
    }

    fn opened(&self) -> Option<KvClient> {
        self.open.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn keep(&self, client: Option<KvClient>) {
        *self.open.lock().expect("nothing panics while it holds this lock") = client;
    }

    async fn connect(&self) -> Result<KvClient, Error> {
        // Without a leader a member would wait for one, and tell nobody.
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some(account) = &self.at.account {
            // A token of etcd lasts five minutes unless it is used.
            let options_of_account = options.with_user(&account.user, &account.password);
            options = options_of_account.with_auto_token_refresh(true);
        }
        if self.at.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            options = options.with_tls(self.tls());
        }
        Ok(Client::connect(&self.at.endpoints, Some(options)).await?.kv_client())
    }

    fn tls(&self) -> TlsOptions {
        let tls = match &self.at.tls.authority {
            Some(authority) => TlsOptions::new().ca_certificate(Certificate::from_pem(authority)),
            None => TlsOptions::new().with_native_roots(),
        };
        match &self.at.tls.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        }
    }
}

fn trouble(error: Error) -> Trouble {
    match &error {
        Error::GRpcStatus(status) if status.message().starts_with(FULL) => Trouble::Full(error),
        _ => Trouble::Etcd(error),
    }
}
