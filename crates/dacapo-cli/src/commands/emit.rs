//! `dacapo emit`: new events, as an operator triggers what services do; each is confirmed.

mod emission;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use bytes::Bytes;
use dacapo_amqp::{AmqpConnect, AmqpTarget};
use dacapo_archiver::import::{FieldMap, LINE_BYTES_MAX, message_of};
use dacapo_bus::Connect;
use dacapo_event::{
    DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr, Timestamp, marking, ndjson,
};
use dacapo_filter::BodyEncoder;
use serde_json::json;
use tokio::sync::mpsc;
use uuid::Uuid;

use self::emission::{Emission, Numbered, Progress};
use super::import::{field_map, is_stdin};
use crate::args::{EmitArgs, read_bounded, read_descriptor_set};
use crate::exit::{Exit, Failure};
use crate::format;
use crate::output::Output;
use crate::progress::Steps;
use crate::settings::Settings;
use crate::signals::Signals;

/// Events that are read ahead: each may be as large as any.
const AHEAD: usize = 2;

/// What some editors and tools put at the start of a file.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The media type of bodies that are JSON.
const JSON: &str = "application/json";

/// Bytes of one body: RabbitMQ takes 16 MiB by default, and more where it is told to.
const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;

pub async fn run(args: &EmitArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let encoder = match &args.descriptor_set {
        Some(path) => Some(BodyEncoder::new(&read_descriptor_set(path)?, args.message.as_deref())?),
        None => None,
    };
    let shape = Shape {
        exchange: args.exchange.as_deref().map(|name| short("--exchange", name)).transpose()?,
        routing_key: args
            .routing_key
            .as_deref()
            .map(|key| short("--routing-key", key))
            .transpose()?,
        encoder,
    };
    let (events, numbered) = mpsc::channel(AHEAD);
    match &args.file {
        None => {
            let mut message = shape.complete(one(args, settings.now())?).map_err(Failure::usage)?;
            if let Some(given) = &args.content_type {
                message.properties.content_type = Some(short("--content-type", given)?);
            }
            events.try_send(Ok((1, message))).expect("the channel is empty");
            drop(events);
        }
        Some(path) => {
            let input = open(path)?;
            let (name, fields, skip) =
                (path.display().to_string(), field_map(&args.fields)?, args.skip);
            // Not one of the runtime's, which it would wait for: an input may have no end.
            std::thread::spawn(move || {
                let lines = Lines { input, name, line: 0 };
                read(lines, &fields, skip, &shape, &events);
            });
        }
    }
    match args.dry_run {
        true => show(numbered, output).await,
        false => publish(numbered, args, settings, output).await,
    }
}

/// What the flags say of every event.
struct Shape {
    exchange: Option<ShortStr>,
    routing_key: Option<ShortStr>,
    encoder: Option<BodyEncoder>,
}

impl Shape {
    /// Returns the message as it is published.
    fn complete(&self, mut message: Message) -> Result<Message, String> {
        if marking::is_replayed(&message) {
            let problem = "it is marked as the replay of an event that is archived already, so that \
                           its archiver would pass it over; play that again with `dacapo replay --id`";
            return Err(problem.to_owned());
        }
        if let Some(exchange) = &self.exchange {
            message.exchange = exchange.clone();
        }
        if let Some(routing_key) = &self.routing_key {
            message.routing_key = routing_key.clone();
        }
        let properties = &mut message.properties;
        if let Some(encoder) = &self.encoder {
            message.body = encoder.encode(&message.body)?;
            // What a line says of the JSON in it.
            if properties.content_type.as_ref().is_none_or(|kind| kind.as_str() == Some(JSON)) {
                properties.content_type = Some(ShortStr::from_static("application/x-protobuf"));
            }
        }
        properties.message_id.get_or_insert_with(|| {
            ShortStr::try_from(&*Uuid::now_v7().to_string()).expect("36 characters fit")
        });
        properties.delivery_mode.get_or_insert(DeliveryMode::Persistent);
        Ok(message)
    }
}

/// Returns the one event that the flags describe.
fn one(args: &EmitArgs, now: Timestamp) -> anyhow::Result<Message> {
    let body = args.body.as_deref().unwrap_or_default();
    let body: Bytes = match body.strip_prefix('@') {
        Some(path) => read_bounded(Path::new(path), BODY_BYTES_MAX)?.into(),
        None => Bytes::copy_from_slice(body.as_bytes()),
    };
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
    let mut headers = FieldTable::new();
    for header in &args.headers {
        let (name, value) = header
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Failure::usage(format!("--header `{header}` is not NAME=VALUE")))?;
        headers.insert(short("--header", name)?, FieldValue::text(value));
    }
    let optional = |flag, text: Option<&str>| text.map(|text| short(flag, text)).transpose();
    Ok(Message {
        body,
        properties: Properties {
            content_type: is_json.then(|| ShortStr::from_static(JSON)),
            headers: (!headers.is_empty()).then_some(headers),
            message_id: optional("--id", args.id.as_deref())?,
            kind: optional("--type", args.kind.as_deref())?,
            timestamp: u64::try_from(now.as_micros() / 1_000_000).ok(),
            ..Properties::default()
        },
        ..Message::default()
    })
}

fn short(flag: &str, text: &str) -> Result<ShortStr, Failure> {
    ShortStr::try_from(text).map_err(|error| Failure::usage(format!("{flag}: {error}")))
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead + Send>> {
    if is_stdin(path) {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = File::open(path).map_err(|error| Failure::file("read", path, &error))?;
    Ok(Box::new(BufReader::new(file)))
}

/// The lines of an input.
struct Lines {
    input: Box<dyn BufRead + Send>,
    name: String,
    line: u64,
}

impl Lines {
    /// Returns the next line that is not blank, without its end.
    fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            let mut line = Vec::new();
            let most = LINE_BYTES_MAX as u64 + 1;
            let read = self.input.by_ref().take(most).read_until(b'\n', &mut line);
            read.map_err(|error| Failure::file("read", Path::new(&self.name), &error))?;
            if line.is_empty() {
                return Ok(None);
            }
            self.line += 1;
            if self.line == 1 && line.starts_with(BOM) {
                line.drain(..BOM.len());
            }
            if line.len() > LINE_BYTES_MAX {
                return Err(self.problem("it is longer than any event may be").into());
            }
            let text = line.trim_ascii();
            if !text.is_empty() {
                return Ok(Some(text.to_vec()));
            }
        }
    }

    fn problem(&self, problem: &str) -> Failure {
        Failure::input(format!("line {} of `{}` is no event: {problem}", self.line, self.name))
    }
}

/// Reads events until there are no more, one is none, or nobody wants them any longer.
fn read(
    mut lines: Lines,
    fields: &FieldMap,
    skip: u64,
    shape: &Shape,
    events: &mpsc::Sender<Numbered>,
) {
    let mut number = 0;
    loop {
        let next = match lines.next() {
            Ok(Some(line)) => {
                number += 1;
                if number <= skip {
                    continue;
                }
                let message = message_of(&line, fields).and_then(|message| shape.complete(message));
                message
                    .map(|message| (number, message))
                    .map_err(|problem| lines.problem(&problem).into())
            }
            Ok(None) if number < skip => {
                let problem = format!("--skip {skip}, but `{}` has {number} events", lines.name);
                Err(Failure::usage(problem).into())
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = next.is_err();
        if events.blocking_send(next).is_err() || is_last {
            return;
        }
    }
}

/// Prints what would be published.
async fn show(mut events: mpsc::Receiver<Numbered>, output: &Output) -> anyhow::Result<Exit> {
    while let Some(event) = events.recv().await {
        let (_, message) = event?;
        output.data(format!("{}\n", ndjson::message_to_json(&message)).as_bytes())?;
    }
    Ok(Exit::Success)
}

async fn publish(
    events: mpsc::Receiver<Numbered>,
    args: &EmitArgs,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let broker = settings.broker("dacapo emit")?;
    let sink = AmqpConnect { broker, target: AmqpTarget::Original }.open().await?;
    let mut signals = Signals::take()?;
    let mut emission = Emission::new(sink, settings.memory.window());
    let mut steps = Steps::new(output, "publishing");
    let show = |progress: Progress| {
        let remark = if progress.blocked { "the broker blocks publishers" } else { "" };
        steps.show(progress.confirmed, progress.sent, remark);
    };
    let ended = tokio::select! {
        ended = emission.run(events, show) => Some(ended),
        () = signals.next() => None,
    };
    if !matches!(ended, Some(Ok(()))) {
        tokio::select! {
            () = emission.drain() => {}
            () = signals.next() => {}
        }
    }
    steps.finish();
    let confirmed = emission.confirmed();
    let goes_on = || {
        let done = args.skip + confirmed;
        match args.file {
            Some(_) => {
                format!("{done} events of it are confirmed; `--skip {done}` goes on after them")
            }
            None if confirmed == 0 => {
                "the event is not confirmed, and may have been published".to_owned()
            }
            None => "the event is confirmed".to_owned(),
        }
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) if confirmed == 0 => return Err(error),
        Some(Err(error)) => return Err(error.context(goes_on())),
        None => {
            output.talk(&format!("interrupted; {}", goes_on()));
            return Ok(Exit::Resumable);
        }
    }
    emission.sink.close().await?;
    let json = json!({ "confirmed": confirmed, "skipped": args.skip });
    output.result(&json, || {
        let events = if confirmed == 1 { "event" } else { "events" };
        format!("{} {events} published and confirmed\n", format::number(confirmed))
    })?;
    Ok(Exit::Success)
}
