//! The broker's definitions, kept in the archive at each change, so that a lost broker can be made
//! again: `dacapo archive run` keeps them, `dacapo archive definitions` shows them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use dacapo_archive::layout::{self, KeptDefinitions};
use dacapo_archive::store::{ByteRange, Put, Store};
use dacapo_event::{Clock, Digest, Timestamp};
use dacapo_filter::parse_time;
use dacapo_management::Management;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use crate::args::DefinitionsArgs;
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::{Output, words};
use crate::settings::Settings;

/// How often the broker is asked: what is made and taken away again within it is not seen.
const EVERY: Duration = Duration::from_secs(300);

/// Shown if neither a virtual host nor a broker is named: RabbitMQ's own default.
const DEFAULT_VHOST: &str = "/";

/// Keeps the definitions of one virtual host for as long as it is polled.
#[derive(Debug)]
pub struct Keeping {
    management: Management,
    vhost: String,
    store: Arc<dyn Store>,
    clock: Clock,
    failures: Counter,
}

impl Keeping {
    /// Registers `dacapo_archiver_definitions_failures_total`.
    pub fn register(
        registry: &mut Registry,
        management: Management,
        vhost: String,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Self {
        let failures = Counter::default();
        registry.sub_registry_with_prefix("dacapo_archiver_definitions").register(
            "failures",
            "Times that the broker's definitions could not be asked for or kept",
            failures.clone(),
        );
        Keeping { management, vhost, store, clock, failures }
    }

    /// Looks again and again; never returns. A failure is told and counted, and stops nothing.
    pub async fn run(self) {
        let mut last = None;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.keep(&mut last).await {
                self.failures.inc();
                let error = words(error.as_ref());
                tracing::warn!(error, vhost = self.vhost, "the broker's definitions were not kept");
            }
        }
    }

    /// Keeps the definitions if they are not those that were kept last; `last` remembers these.
    async fn keep(&self, last: &mut Option<Digest>) -> anyhow::Result<()> {
        let definitions = self.management.definitions(&self.vhost).await?;
        let text = serde_json::to_vec_pretty(&definitions)?;
        let digest = Digest::of(&text);
        if *last == Some(digest) {
            return Ok(());
        }
        let kept = KeptDefinitions::new(&self.vhost, (self.clock)(), &digest);
        // A standby or an earlier run may have kept them.
        let newest = all(&self.store, &layout::definitions_of(&self.vhost)).await?.pop();
        if newest.is_none_or(|newest| newest.digest != kept.digest) {
            match self.store.put_new(&kept.key, Bytes::from(text)).await? {
                Put::Created => {
                    tracing::info!(object = %kept.key, "the broker's definitions were kept");
                }
                Put::Exists => bail!("`{}` is there already with other bytes", kept.key),
            }
        }
        *last = Some(digest);
        Ok(())
    }
}

/// Returns all that was kept below a prefix, by virtual host, oldest first.
async fn all(store: &Arc<dyn Store>, prefix: &str) -> anyhow::Result<Vec<KeptDefinitions>> {
    let (mut kept, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, after.as_ref()).await?;
        kept.extend(page.objects.iter().filter_map(|object| KeptDefinitions::parse(&object.key)));
        match page.objects.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(kept),
        }
    }
}

/// Shows the definitions in force at a time, or lists all that was kept.
pub async fn show(
    args: &DefinitionsArgs,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let at = args.at.as_deref().map(|text| parse_time(text, settings.now())).transpose()?;
    let store = open::store(settings, Access::Read).await?;
    if args.list {
        return list(args, &store, output).await;
    }
    let vhost = args.vhost.as_deref().or(settings.vhost()).unwrap_or(DEFAULT_VHOST);
    let (_, text) = in_force(&store, vhost, at).await?;
    let json = serde_json::from_slice(&text).context("the definitions are JSON")?;
    output.result(&json, || String::from_utf8_lossy(&text).into_owned() + "\n")?;
    Ok(Exit::Success)
}

/// Returns the definitions of a virtual host that were in force at a time, or the newest, and where
/// they are kept.
pub async fn in_force(
    store: &Arc<dyn Store>,
    vhost: &str,
    at: Option<Timestamp>,
) -> anyhow::Result<(KeptDefinitions, Bytes)> {
    let mut kept = all(store, &layout::definitions_of(vhost)).await?;
    kept.retain(|kept| at.is_none_or(|at| kept.since <= at));
    let Some(newest) = kept.pop() else {
        return Err(none_kept(vhost, at, store).await?.into());
    };
    let text = store.get(&newest.key, ByteRange::Full).await?;
    if !Digest::of(&text).to_string().starts_with(&newest.digest) {
        let problem = format!("`{}` is not what was kept: its digest differs", newest.key);
        return Err(Failure::damaged(problem).into());
    }
    Ok((newest, text))
}

async fn list(
    args: &DefinitionsArgs,
    store: &Arc<dyn Store>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let prefix = args.vhost.as_deref().map_or(layout::DEFINITIONS.into(), layout::definitions_of);
    let kept = all(store, &prefix).await?;
    let row = |kept: &KeptDefinitions| {
        vec![kept.vhost.clone(), kept.since.to_string(), kept.key.to_string()]
    };
    let rows: Vec<Vec<String>> = kept.iter().map(row).collect();
    let json = |kept: &KeptDefinitions| {
        json!({
            "vhost": kept.vhost,
            "since": kept.since.to_string(),
            "object": kept.key.as_str(),
        })
    };
    let all: Vec<Value> = kept.iter().map(json).collect();
    output.result(&json!({ "definitions": all }), || match rows.is_empty() {
        true => format!("no definitions in {}\n", store.location()),
        false => format::table(&["VIRTUAL HOST", "SINCE", "OBJECT"], &rows),
    })?;
    Ok(Exit::Success)
}

/// Returns the error of definitions that are not there, with the next step: to look at another time
/// or virtual host if anything was kept, else to begin to keep them.
async fn none_kept(
    vhost: &str,
    at: Option<Timestamp>,
    store: &Arc<dyn Store>,
) -> anyhow::Result<Failure> {
    let kept = all(store, layout::DEFINITIONS).await?;
    let of_vhost = kept.iter().find(|kept| kept.vhost == vhost);
    let others: BTreeSet<String> = kept.iter().map(|kept| format!("`{}`", kept.vhost)).collect();
    let next_step = match (of_vhost, others.is_empty()) {
        (Some(first), _) => format!("the first ones are of {}", first.since),
        (None, false) => {
            let others: Vec<String> = others.into_iter().collect();
            format!("give --vhost: there are those of {}", others.join(", "))
        }
        (None, true) => "`dacapo archive run --management URL` keeps them".to_owned(),
    };
    let until = at.map_or(String::new(), |at| format!(" up to {at}"));
    Ok(Failure::configuration(format!(
        "no definitions of virtual host `{vhost}` were kept{until} in {}; {next_step}",
        store.location()
    )))
}
