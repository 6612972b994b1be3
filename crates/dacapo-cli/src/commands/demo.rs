//! `dacapo demo`: the whole story on this machine. A shop emits events to two services, the
//! archiver keeps them, one service loses its state and is rebuilt from the archive, and the
//! other one does not notice.
//!
//! Only the shop and the services are made for the demo; everything else is what the other
//! commands are made of.

mod acts;
mod bus;
mod crew;
mod folder;
mod report;
mod services;
mod shop;

use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::CommandFactory;
use clap::parser::ValueSource;
use dacapo_archive::store::Store;
use dacapo_archive::store::file::FileStore;
use tokio::time::Instant;

use self::bus::{Bus, Role};
use self::crew::Crew;
use self::folder::Folder;
use self::report::{Figures, MailerState, OrdersState, short};
use self::services::{Mailer, Orders};
use self::shop::What;
use crate::args::{Cli, DemoArgs};
use crate::exit::{Exit, Failure};
use crate::format::number;
use crate::output::Output;
use crate::settings::Settings;
use crate::signals::Signals;

pub(crate) async fn run(
    args: &DemoArgs,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::take()?;
    let name = folder::name(settings.now());
    let bus = bus(&name, settings, output)?;
    // Before anything is made: a broker that cannot be reached leaves nothing behind.
    unless_interrupted(&mut signals, async { Ok(bus.facts(Role::Orders).await?) }).await?;
    let folder = Folder::make(args.dir.as_deref(), &name)?;

    let story = Story { events: args.events, folder: &folder, bus: &bus, settings, output };
    let mut crew = Crew::default();
    let told = unless_interrupted(&mut signals, story.tell(&mut crew)).await;
    let told = told.with_context(|| format!("the demo did not come to its end; see `{folder}`"));
    let removed = unless_interrupted(&mut signals, async {
        crew.end().await;
        Ok(bus.remove().await?)
    });
    let removed = removed.await.with_context(|| {
        format!("failed to delete the queues and exchanges `{name}.*`; delete them by hand")
    });
    let figures = match (told, removed) {
        (Ok(figures), removed) => removed.map(|()| figures)?,
        (Err(error), Ok(())) => return Err(error),
        (Err(error), Err(left)) => {
            output.talk(&format!("warning: {left:#}"));
            return Err(error);
        }
    };
    output.result(&figures.to_json(), || figures.text())?;
    Ok(if figures.passed() { Exit::Success } else { Exit::Failed })
}

/// Returns the bus that was asked for: one in memory, unless a broker was named on the command
/// line. From the environment or a file it is the one that people work with, and a demo does not
/// go there unasked.
fn bus(name: &str, settings: &Settings, output: &Output) -> anyhow::Result<Bus> {
    for (flag, was_typed) in ["archive", "index", "state"].map(|flag| (flag, was_typed(flag))) {
        if was_typed {
            let problem = format!("the demo has its own {flag}, below --dir; leave --{flag} out");
            return Err(Failure::usage(problem).into());
        }
    }
    if was_typed("amqp") {
        return Ok(Bus::on(settings.broker(name)?, name));
    }
    if settings.broker_if_named(name)?.is_some() {
        output.talk("note: the broker that is configured is left alone; --amqp URL goes to one");
    }
    Ok(Bus::in_memory())
}

fn was_typed(flag: &str) -> bool {
    let matches = Cli::command().try_get_matches().ok();
    let matches = matches.as_ref().and_then(|matches| matches.subcommand());
    matches.is_some_and(|(_, matches)| matches.value_source(flag) == Some(ValueSource::CommandLine))
}

async fn unless_interrupted<T>(
    signals: &mut Signals,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = signals.next() => Err(anyhow!("interrupted")),
    }
}

/// What the story is told with; its acts are in [`acts`].
struct Story<'a> {
    events: u64,
    folder: &'a Folder,
    bus: &'a Bus,
    settings: &'a Settings,
    output: &'a Output,
}

impl Story<'_> {
    async fn tell(&self, crew: &mut Crew) -> anyhow::Result<Figures> {
        let began = Instant::now();
        self.output.talk("A shop, its archive, a disaster, and the way back");
        self.output.talk(&format!("on {},", self.bus.place()));
        self.output.talk(&format!("with a folder of its own: `{}`\n", self.folder));
        self.folder.configure()?;
        let store: Arc<dyn Store> = Arc::new(FileStore::create(self.folder.archive()).await?);
        self.bus.set_up().await?;
        self.begin_to_archive(crew, &store)?;
        self.begin(&mut crew.orders, Role::Orders, Orders::default()).await?;
        self.begin(&mut crew.mailer, Role::Mailer, Mailer::default()).await?;

        let by_type = self.emit().await?;
        let archive = self.archived(crew, &store).await?;

        let of = |what: What| by_type.get(&what).copied().unwrap_or(0);
        let mails = of(What::Placed) + of(What::Shipped);
        crew.orders.until(self.events, "orders").await?;
        crew.mailer.until(mails, "mailer").await?;
        let orders = crew.orders.stop().await?;
        let before = OrdersState::of(&orders);
        let then = MailerState { received: mails, waiting: 0, sent: mails, repeats: 0 };
        let example = orders.example().unwrap_or_default().to_owned();
        let knows = |state: &OrdersState| {
            format!(
                "`orders` knows {} orders, digest {}",
                number(state.orders),
                short(&state.digest)
            )
        };
        self.step(
            "3 services",
            &[&knows(&before), &format!("`mailer` has sent {} mails", number(mails))],
        );

        drop(orders);
        let nothing = Orders::default();
        let lost = OrdersState::of(&nothing);
        self.begin(&mut crew.orders, Role::Orders, nothing).await?;
        self.step("4 disaster", &["`orders` loses its state", &knows(&lost)]);

        let plan = self.plan(&store).await?;
        let receipt = self.replay(&plan, store).await?;
        crew.orders.until(receipt.counts.confirmed, "orders").await?;
        let after = OrdersState::of(&crew.orders.stop().await?);

        // In this order: what the mailer has not acked when it stops waits in its queue again.
        let mailer = crew.mailer.stop().await?;
        let waiting = self.bus.facts(Role::Mailer).await?.depth.unwrap_or(0);
        let (sent, repeats) = (mailer.sent, mailer.repeats);
        let now = MailerState { received: sent + repeats, waiting, sent, repeats };
        let archived_at_the_end = crew.archiver.stop().await?.events;
        self.step(
            "7 proof",
            &[
                &knows(&after),
                &format!("            before the disaster: digest {}", short(&before.digest)),
                &format!(
                    "`mailer` has sent {} mails, {} of them twice; {} wait",
                    number(now.sent),
                    now.repeats,
                    now.waiting
                ),
                &format!(
                    "the archive has {} events; before the replay: {}",
                    number(archived_at_the_end),
                    number(archive.events)
                ),
            ],
        );
        Ok(Figures {
            name: self.folder.name.clone(),
            folder: self.folder.to_string(),
            bus: self.bus.place(),
            by_type,
            archive,
            archived_at_the_end,
            orders: [before, lost, after],
            mailer: [then, now],
            commands: self.folder.commands(&example, receipt.id.as_str()),
            receipt,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Tells a step of the story in some lines.
    fn step(&self, name: &str, lines: &[&str]) {
        for (at, line) in lines.iter().enumerate() {
            let name = if at == 0 { name } else { "" };
            self.output.talk(&format!("{name:<12} {line}"));
        }
    }
}
