//! Where a drill is done: chosen without a change, made, and taken down again whatever happened.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use dacapo_amqp::{
    BindTo, Broker, Copied, CopiedBinding, CopiedExchange, CopiedQueue, Made, Place, cluster,
    declare_copy, declare_witness, queue_state, remove,
};
use dacapo_drill::definitions::{DEFINITIONS_BYTES_MAX, Destination, Topology};
use dacapo_drill::description::{Definitions, DefinitionsFrom, Description, Shared, Vhost};
use dacapo_drill::report::{self, Isolation};
use dacapo_management::{Management, ManagementError};
use tokio::task::JoinHandle;

use crate::args::read_bounded;
use crate::commands::archive::definitions;
use crate::exit::Failure;
use crate::open::{self, Access};
use crate::output::words;
use crate::settings::Settings;

/// How long taking everything down may take, a virtual host with all that is in it among it.
const TAKE_DOWN_DEADLINE: Duration = Duration::from_secs(120);

/// Things that one connection removes, each on a channel of its own, of which it has 2,047.
const REMOVED_AT_ONCE: usize = 500;

/// An environment, and what was made of it so far.
#[derive(Debug)]
pub struct Environment {
    /// The settings of the command, but for the broker, which is that of the drill.
    pub settings: Settings,
    /// The queue beside the target queue, where the replay has an exchange of its own.
    pub witness: Option<String>,
    vhost: String,
    isolation: Isolation,
    production: Option<String>,
    /// The virtual host of its own was made, or may have been.
    owns_vhost: bool,
    /// Makes it; a signal does not stop that half way, for what comes after its deletion would stay.
    making: Option<JoinHandle<Result<(), ManagementError>>>,
    /// The witness was made, or may have been.
    owns_witness: bool,
    made: Made,
    /// What a replay declares for itself, should it be ended before it removes that.
    replay_exchange: Option<String>,
    copied_from: Option<String>,
    left_out: Vec<String>,
}

impl Environment {
    /// Chooses the broker and the virtual host; nothing is made.
    pub async fn choose(
        description: &Description,
        given: &Settings,
        id: &str,
        witnessed: bool,
    ) -> anyhow::Result<Self> {
        let wanted = &description.environment;
        let production = given.peer();
        let there = match &wanted.amqp {
            None => {
                given.broker("dacapo drill")?;
                given.clone()
            }
            Some(amqp) => {
                let management = wanted.management.as_ref().map(|url| url.0.as_str());
                given.on_broker(&amqp.0, management)?
            }
        };
        let (vhost, settings) = match &wanted.vhost {
            Vhost::New => {
                if there.management().is_none() {
                    let problem = "a virtual host of the drill's own is made through the management plugin: \
                                   give --management with an administrator's account (`management` in the \
                                   description for another broker), or name a virtual host that is there";
                    return Err(Failure::configuration(problem).into());
                }
                let vhost = format!("dacapo-drill-{id}");
                let settings = there.in_vhost(&vhost);
                (vhost, settings)
            }
            Vhost::Taken(vhost) => (vhost.clone(), there.in_vhost(vhost)),
        };
        let isolation = match wanted.vhost {
            Vhost::New => Isolation::Made,
            Vhost::Taken(_) => isolation(given, &settings).await?,
        };
        if wanted.shared == Shared::Refuse
            && let Some(problem) = objection(isolation, &vhost)
        {
            return Err(Failure::refused(problem).into());
        }
        Ok(Environment {
            settings,
            witness: witnessed.then(|| format!("dacapo.drill.witness.{id}")),
            vhost,
            isolation,
            production,
            owns_vhost: false,
            making: None,
            owns_witness: false,
            made: Made::default(),
            replay_exchange: None,
            copied_from: None,
            left_out: Vec::new(),
        })
    }

    /// Returns the broker as it is connected to.
    pub fn broker(&self) -> anyhow::Result<Broker> {
        self.settings.broker("dacapo drill")
    }

    /// Returns the virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Makes the virtual host, if it is the drill's own, and in it what the description asks for.
    pub async fn make(&mut self, description: &Description) -> anyhow::Result<()> {
        // Before anything is made.
        let copied = self.copied(description).await?;
        let broker = self.broker()?;
        let place = match self.isolation {
            Isolation::Made => {
                self.make_vhost(broker.url.user()).await?;
                Place::Empty
            }
            Isolation::Taken | Isolation::SameBroker | Isolation::Unknown | Isolation::Shared => {
                Place::InUse
            }
        };
        if place == Place::InUse
            && let Some(state) = queue_state(&broker, &description.queue).await?
            && state.ready > 0
        {
            let problem = format!(
                "queue `{}` of {} has {} messages already, which would be counted as the drill's; empty it, \
                 or let the drill make a virtual host of its own",
                description.queue,
                broker.url.peer(),
                state.ready
            );
            return Err(Failure::refused(problem).into());
        }
        declare_copy(&broker, &copied, place, &mut self.made).await?;
        if let Some(witness) = &self.witness {
            self.owns_witness = true;
            declare_witness(&broker, witness).await?;
        }
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "the composition root spawns, and waits for it")]
    async fn make_vhost(&mut self, user: &str) -> anyhow::Result<()> {
        let (management, vhost, user) =
            (self.management()?.clone(), self.vhost.clone(), user.to_owned());
        self.owns_vhost = true;
        let making = self
            .making
            .insert(tokio::spawn(async move { management.make_vhost(&vhost, &user).await }));
        let made = making.await.context("making a virtual host does not panic")?;
        self.making = None;
        Ok(made?)
    }

    /// Notes which exchange a replay makes for itself.
    pub fn replays_through(&mut self, exchange: String) {
        self.replay_exchange = Some(exchange);
    }

    fn management(&self) -> anyhow::Result<&Management> {
        let problem = "a virtual host of the drill's own needs --management";
        self.settings.management().ok_or_else(|| Failure::configuration(problem).into())
    }

    async fn copied(&mut self, description: &Description) -> anyhow::Result<Copied> {
        let wanted = &description.environment;
        let mut copied = match &wanted.definitions {
            None => Copied::default(),
            Some(definitions) => self.defined(definitions).await?,
        };
        for queue in &wanted.queues {
            copied.queues.retain(|other| other.name != queue.name);
            let (name, arguments) = (queue.name.clone(), queue.arguments.clone());
            copied.queues.push(CopiedQueue { name, arguments });
        }
        Ok(copied)
    }

    async fn defined(&mut self, definitions: &Definitions) -> anyhow::Result<Copied> {
        let vhost = definitions.vhost.as_deref();
        let (text, from) = match &definitions.from {
            DefinitionsFrom::File(path) => {
                let text = read_bounded(Path::new(path), DEFINITIONS_BYTES_MAX)?;
                (text.into(), path.clone())
            }
            DefinitionsFrom::Archive => {
                let of_production = self.production.as_deref().and_then(vhost_of);
                let vhost = vhost.map(str::to_owned).or(of_production);
                let vhost = vhost.unwrap_or_else(|| "/".to_owned());
                let store = open::store(&self.settings, Access::Read).await?;
                let (kept, text) = definitions::in_force(&store, &vhost, None).await?;
                (text, format!("`{}` of the archive", kept.key))
            }
        };
        let topology = Topology::parse(&text, vhost)?;
        self.copied_from = Some(format!("{from} (virtual host `{}`)", topology.vhost));
        self.left_out = topology.left_out.clone();
        Ok(to_amqp(topology))
    }

    /// Takes down everything that was made, and returns what could not be.
    pub async fn take_down(&mut self) -> Vec<String> {
        let what = self.what_is_left();
        match tokio::time::timeout(TAKE_DOWN_DEADLINE, self.remove()).await {
            Ok(left) => left,
            Err(_) => what
                .into_iter()
                .map(|it| format!("{it}: not within {TAKE_DOWN_DEADLINE:?}"))
                .collect(),
        }
    }

    /// Returns what is there to be taken down, for whoever ends a drill at once.
    pub fn what_is_left(&self) -> Vec<String> {
        if self.owns_vhost {
            return vec![format!("virtual host `{}`", self.vhost)];
        }
        let queues = self.queues().into_iter().map(|name| format!("queue `{name}`"));
        let exchanges = self.exchanges().into_iter().map(|name| format!("exchange `{name}`"));
        queues.chain(exchanges).collect()
    }

    async fn remove(&mut self) -> Vec<String> {
        if self.owns_vhost {
            // Deleted before it is made, it would stay.
            let made = match self.making.take() {
                Some(making) => making.await.context("making a virtual host does not panic"),
                None => Ok(Ok(())),
            };
            let deleted = match self.management() {
                Ok(management) => {
                    management.delete_vhost(&self.vhost).await.map_err(|it| words(&it))
                }
                Err(error) => Err(error.to_string()),
            };
            let left = |why| vec![format!("virtual host `{}`: {why}", self.vhost)];
            return match (deleted, made) {
                (Err(why), _) => left(why),
                // No answer came: it may yet be made.
                (Ok(()), Ok(Err(ManagementError::Unavailable { .. }))) => left(
                    "the broker did not say whether it was made; look whether it is there".into(),
                ),
                (Ok(()), Err(why)) => left(words(why.as_ref())),
                (Ok(()), Ok(_)) => Vec::new(),
            };
        }
        let broker = match self.broker() {
            Ok(broker) => broker,
            Err(error) => return vec![error.to_string()],
        };
        let mut left = Vec::new();
        for queues in self.queues().chunks(REMOVED_AT_ONCE) {
            if let Err(error) = remove(&broker, queues, &[]).await {
                left.push(format!("queues `{}`: {}", queues.join("`, `"), words(&error)));
            }
        }
        for exchanges in self.exchanges().chunks(REMOVED_AT_ONCE) {
            if let Err(error) = remove(&broker, &[], exchanges).await {
                left.push(format!("exchanges `{}`: {}", exchanges.join("`, `"), words(&error)));
            }
        }
        left
    }

    fn queues(&self) -> Vec<String> {
        let witness = self.witness.iter().filter(|_| self.owns_witness);
        self.made.queues.iter().chain(witness).cloned().collect()
    }

    fn exchanges(&self) -> Vec<String> {
        self.made.exchanges.iter().chain(&self.replay_exchange).cloned().collect()
    }

    /// Returns what the report says of it.
    pub fn told(&self, left_behind: Vec<String>) -> report::Environment {
        let count = |names: &[String]| names.len() as u64;
        let unbound = match self.made.unbound {
            0 => None,
            some => Some(format!("bindings with an end that was there already ({some})")),
        };
        report::Environment {
            broker: self.settings.peer().unwrap_or_default(),
            isolation: self.isolation,
            production: self.production.clone(),
            copied_from: self.copied_from.clone(),
            made: report::Made {
                exchanges: count(&self.made.exchanges),
                queues: count(&self.made.queues),
                bindings: self.made.bindings,
            },
            left_out: self.left_out.iter().cloned().chain(unbound).collect(),
            found: self.made.found.iter().cloned().collect(),
            left_behind,
        }
    }
}

/// Returns how far a virtual host that is there is from production's. The same broker may be reached by
/// several addresses, so the names of the clusters are compared.
async fn isolation(production: &Settings, there: &Settings) -> anyhow::Result<Isolation> {
    let Some(broker) = production.broker_if_named("dacapo drill")? else {
        return Ok(Isolation::Unknown);
    };
    if production.peer() == there.peer() {
        return Ok(Isolation::Shared);
    }
    let same = match production.vhost() == there.vhost() {
        true => Isolation::Shared,
        false => Isolation::SameBroker,
    };
    let vhost = there.vhost().unwrap_or_default();
    if production.in_vhost(vhost).peer() == there.peer() {
        return Ok(same);
    }
    let other = cluster(&there.broker("dacapo drill")?).await?;
    Ok(match cluster(&broker).await {
        Ok(name) if name.is_some() && name == other => same,
        Ok(Some(_)) if other.is_some() => Isolation::Taken,
        Ok(_) => Isolation::Unknown,
        Err(error) => {
            tracing::warn!(
                error = words(&error),
                "production was not asked whether it is the same"
            );
            Isolation::Unknown
        }
    })
}

/// Returns why a drill is not done in a virtual host unless the description allows it.
fn objection(isolation: Isolation, vhost: &str) -> Option<String> {
    let what = match isolation {
        Isolation::Made | Isolation::Taken | Isolation::SameBroker => return None,
        Isolation::Shared => format!("`{vhost}` is production's own virtual host"),
        Isolation::Unknown => format!(
            "`{vhost}` may be production's own virtual host, for production was not named (--amqp), did \
             not answer, or does not tell the name of its cluster"
        ),
    };
    Some(format!(
        "{what}; a drill there is refused unless the description says `allow_shared = true`"
    ))
}

/// The virtual host in `host:port/vhost`, which has it encoded.
fn vhost_of(peer: &str) -> Option<String> {
    dacapo_event::percent::decode(peer.rsplit_once('/')?.1)
}

fn to_amqp(topology: Topology) -> Copied {
    let exchanges = topology.exchanges.into_iter().map(|exchange| CopiedExchange {
        name: exchange.name,
        kind: exchange.kind,
        internal: exchange.internal,
        arguments: exchange.arguments,
    });
    let queues = topology
        .queues
        .into_iter()
        .map(|queue| CopiedQueue { name: queue.name, arguments: queue.arguments });
    let bindings = topology.bindings.into_iter().map(|binding| CopiedBinding {
        source: binding.source,
        to: match binding.destination {
            Destination::Queue(name) => BindTo::Queue(name),
            Destination::Exchange(name) => BindTo::Exchange(name),
        },
        routing_key: binding.routing_key,
        arguments: binding.arguments,
    });
    Copied {
        exchanges: exchanges.collect(),
        queues: queues.collect(),
        bindings: bindings.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_production_is_refused_unless_it_is_allowed() {
        for isolation in [Isolation::Made, Isolation::Taken, Isolation::SameBroker] {
            assert_eq!(objection(isolation, "v"), None);
        }
        for isolation in [Isolation::Shared, Isolation::Unknown] {
            let problem = objection(isolation, "v").unwrap();
            assert!(problem.contains("`v`") && problem.contains("allow_shared"), "{problem}");
        }
    }
}
