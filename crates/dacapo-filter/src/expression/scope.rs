//! The variables of an expression, taken from one event when they are asked for.

use std::sync::OnceLock;

use cel::common::types::{CelInt, CelNull, CelString, CelUInt};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use dacapo_event::{Event, ShortStr, StreamName};

use super::values::{self, OwnedVal};

/// One event as an expression sees it. Texts are borrowed; maps are made at most once an event.
pub(super) struct Scope<'e> {
    stream: &'e StreamName,
    event: &'e Event,
    headers: OnceLock<OwnedVal>,
    properties: OnceLock<OwnedVal>,
    body: Option<OwnedVal>,
}

impl<'e> Scope<'e> {
    pub(super) fn new(stream: &'e StreamName, event: &'e Event, body: Option<OwnedVal>) -> Self {
        Scope { stream, event, headers: OnceLock::new(), properties: OnceLock::new(), body }
    }
}

impl VariableResolver for Scope<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let message = &self.event.message;
        let text = |text: &'b str| CowVal::owned(CelString::from(text));
        let short = |text: &'b ShortStr| CowVal::owned(CelString::from(text.to_str_lossy()));
        let optional = |text: Option<CowVal<'b, 'b>>| text.unwrap_or(CowVal::owned(CelNull));
        Some(match variable {
            "id" => text(&self.event.id),
            "time" => CowVal::owned(values::timestamp(self.event.time)),
            "type" => text(&self.event.kind),
            "key" => optional(self.event.key.as_deref().map(text)),
            "exchange" => short(&message.exchange),
            "routing_key" => short(&message.routing_key),
            "content_type" => optional(message.properties.content_type.as_ref().map(short)),
            "stream" => text(self.stream.as_str()),
            "sequence" => match i64::try_from(self.event.sequence) {
                Ok(int) => CowVal::owned(CelInt::from(int)),
                Err(_) => CowVal::owned(CelUInt::from(self.event.sequence)),
            },
            "headers" => borrowed(self.headers.get_or_init(|| {
                values::table(message.properties.headers.as_ref().unwrap_or(&NO_HEADERS))
            })),
            "properties" => {
                borrowed(self.properties.get_or_init(|| values::properties(&message.properties)))
            }
            "body" => borrowed(self.body.as_ref()?),
            _ => return None,
        })
    }
}

static NO_HEADERS: dacapo_event::FieldTable = dacapo_event::FieldTable::new();

fn borrowed(value: &OwnedVal) -> CowVal<'_, '_> {
    let value: &dyn Val = value.as_ref();
    CowVal::Borrowed(value)
}
