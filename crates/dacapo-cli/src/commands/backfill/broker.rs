//! What a backfill asks of the broker, once or until it answers.

use std::time::Duration;

use dacapo_amqp::{AmqpConnect, AmqpTarget, Binding};
use dacapo_bus::{Connect, Outcome, Sink};
use dacapo_engine::backfill::{Bound, Description, Stage, Standing};
use dacapo_event::Message;
use dacapo_republish::Control;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::exit::{Exit, Failure};
use crate::output::{Output, words};
use crate::settings::Settings;

/// The first and the longest delay between attempts, as for a replay's target.
const DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often it is tried: with the delays above five and a half minutes, as for a replay's target.
const ATTEMPTS_MAX: u32 = 40;

/// How long a few messages may take to be confirmed: a quorum queue that elects a new leader needs
/// some seconds, a blocked connection as long as its alarm.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(120);

/// Does something on the broker, again and again while the connection is lost; nothing if it was told
/// to stop meanwhile.
pub async fn persist<T>(
    what: &str,
    control: &watch::Receiver<Control>,
    output: &Output,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let mut delay = DELAY.0;
    for tried in 1.. {
        let error = match attempt().await {
            Ok(done) => return Ok(Some(done)),
            Err(error) => error,
        };
        let is_transient = crate::exit::classify(&error) == Exit::Unavailable;
        if !is_transient || tried >= ATTEMPTS_MAX {
            return Err(error);
        }
        if tried == 1 {
            output.talk(&format!("{what}: trying again: {}", words(error.as_ref())));
        }
        if pause(delay, control).await == Control::Stop {
            return Ok(None);
        }
        delay = (delay * 2).min(DELAY.1);
    }
    unreachable!("the last attempt returns")
}

/// Waits so long, or until it is told to stop.
pub async fn pause(delay: Duration, control: &watch::Receiver<Control>) -> Control {
    let mut control = control.clone();
    let stopped = control.wait_for(|wanted| *wanted == Control::Stop);
    match timeout(delay, stopped).await {
        Ok(Ok(_)) => Control::Stop,
        // Nobody can tell it any more.
        Ok(Err(_)) => {
            sleep(delay).await;
            Control::Run
        }
        Err(_) => Control::Run,
    }
}

/// Refuses to go on with another broker or virtual host than it began with, as far as these can be
/// told apart; a wrong address is told at once.
pub async fn check(description: &Description, settings: &Settings) -> anyhow::Result<()> {
    let broker = settings.broker("dacapo backfill")?;
    let cluster = dacapo_amqp::cluster(&broker).await?;
    let is_other = |then: &Option<String>, now: Option<&str>| match (then.as_deref(), now) {
        (Some(then), Some(now)) => then != now,
        _ => false,
    };
    let vhost = broker.url.vhost();
    if is_other(&description.vhost, Some(vhost))
        || is_other(&description.cluster, cluster.as_deref())
    {
        let named = |cluster: Option<&str>| cluster.unwrap_or("without a name").to_owned();
        let problem = format!(
            "the backfill began in virtual host `{}` of cluster `{}`, and --amqp is virtual host `{vhost}` \
             of cluster `{}`; name that broker",
            description.vhost.as_deref().unwrap_or_default(),
            named(description.cluster.as_deref()),
            named(cluster.as_deref()),
        );
        return Err(Failure::configuration(problem).into());
    }
    Ok(())
}

/// Refuses to go on if the queue that history was played to is gone: what it had would be missing.
pub async fn check_target(
    description: &Description,
    standing: &Standing,
    settings: &Settings,
) -> anyhow::Result<()> {
    let (queue, broker) = (description.queue(), settings.broker("dacapo backfill")?);
    let is_there = dacapo_amqp::queue_state(&broker, queue).await?.is_some();
    if is_there || standing.stage == Stage::Preparing {
        return Ok(());
    }
    let problem = format!(
        "queue `{queue}` is gone, and with it what it had of history; end this backfill (`dacapo backfill \
         cancel`) and begin another"
    );
    Err(Failure::refused(problem).into())
}

/// Refuses if the broker would refuse the user a step of a backfill.
pub async fn refuse_denied(
    queue: &str,
    bindings: &[Binding],
    settings: &Settings,
) -> anyhow::Result<()> {
    let broker = settings.broker("dacapo backfill")?;
    let denied = dacapo_amqp::backfill_objections(&broker, queue, bindings).await?;
    if denied.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "nothing was begun, because the broker would refuse it: {}; give the user the permissions of \
         `backfill` (`rabbitmqctl set_permissions`), or use another user",
        denied.join("; ")
    );
    Err(Failure::refused(problem).into())
}

/// Publishes a few messages as they are, and returns when each is in a queue.
pub async fn publish(messages: &[Message], settings: &Settings) -> anyhow::Result<()> {
    let broker = settings.broker("dacapo backfill")?;
    let mut sink = AmqpConnect { broker, target: AmqpTarget::Original }.open().await?;
    let published = timeout(CONFIRM_DEADLINE, publish_through(&mut *sink, messages)).await;
    // Everything was answered for, or is published again.
    if let Err(error) = sink.close().await {
        tracing::debug!(%error, "the connection did not close in order");
    }
    published.unwrap_or_else(|_| {
        let problem = format!("the broker has confirmed nothing for {CONFIRM_DEADLINE:?}");
        Err(Failure::unavailable(problem).into())
    })
}

async fn publish_through(sink: &mut dyn Sink, messages: &[Message]) -> anyhow::Result<()> {
    sink.send(messages).await?;
    let mut answered = 0;
    while answered < messages.len() {
        for outcome in sink.outcomes().await? {
            let queue = messages.get(answered).map(|message| message.routing_key.to_string());
            let queue = queue.unwrap_or_default();
            answered += 1;
            let problem = match outcome {
                Outcome::Confirmed => continue,
                Outcome::Nacked => format!("queue `{queue}` takes nothing (is it full?)"),
                Outcome::Returned { .. } => format!("queue `{queue}` is not there any more"),
            };
            return Err(Failure::refused(problem).into());
        }
    }
    Ok(())
}

/// Returns bindings as the broker is told them.
pub fn bindings(bindings: &[Bound]) -> Vec<Binding> {
    let binding =
        |bound: &Bound| Binding { exchange: bound.exchange.clone(), pattern: bound.key.clone() };
    bindings.iter().map(binding).collect()
}
