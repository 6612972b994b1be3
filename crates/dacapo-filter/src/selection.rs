//! A compiled selection, and its answer for one event.
//!
//! Matching has two phases, so that bodies are fetched only for events that pass all
//! that needs no body.

use std::collections::{BTreeMap, HashSet};

use dacapo_event::{Event, Sequence, StreamName, Timestamp};

use crate::expression::Where;
use crate::expression::body::BodyDecoder;
use crate::runs::{Bindings, Ranges};
use crate::{FilterError, SelectionSpec, TopicPattern, WhereError, WhereErrors};

/// Which events are wanted; made of a [`SelectionSpec`].
#[derive(Debug, Clone)]
pub struct Selection {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) types: Option<HashSet<String>>,
    pub(crate) routing_keys: Vec<TopicPattern>,
    pub(crate) exchanges: Option<HashSet<String>>,
    pub(crate) keys: Option<HashSet<String>>,
    pub(crate) ids: Option<Ids>,
    pub(crate) places: Option<Places>,
    pub(crate) ranges: Option<Ranges>,
    pub(crate) bindings: Option<Bindings>,
    pub(crate) headers: Vec<HeaderValues>,
    pub(crate) where_: Option<Where>,
    where_errors: WhereErrors,
}

/// The sequences asked for, in order, by stream.
pub(crate) type Places = BTreeMap<StreamName, Vec<Sequence>>;

/// The ids asked for, by what they mean in a given stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ids {
    /// All of them, as text.
    pub(crate) texts: HashSet<String>,
    /// Those of the form `stream:sequence`, the sequences in order.
    pub(crate) places: BTreeMap<String, Vec<Sequence>>,
}

/// A header asked for, and the values that will do.
#[derive(Debug, Clone)]
pub(crate) struct HeaderValues {
    name: String,
    values: Vec<String>,
}

/// The columns that [`Selection::matches_attributes`] looks at; the others may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ColumnsNeeded {
    /// `sequence`
    pub sequence: bool,
    /// `time`
    pub time: bool,
    /// `id`
    pub id: bool,
    /// `type`
    pub kind: bool,
    /// `key`
    pub key: bool,
    /// `exchange`
    pub exchange: bool,
    /// `routing_key`
    pub routing_key: bool,
    /// `properties`, which has the headers with their types.
    pub properties: bool,
    /// `content_type`
    pub content_type: bool,
}

impl Selection {
    /// Checks and compiles what was asked for.
    ///
    /// # Errors
    /// The range of time is empty, a topic pattern or the expression is not one, or the
    /// descriptor set does not fit; each says where.
    pub fn compile(spec: SelectionSpec) -> Result<Self, FilterError> {
        if let (Some(from), Some(to)) = (spec.from, spec.to)
            && from >= to
        {
            return Err(FilterError::TimeRange { from, to });
        }
        let routing_keys = spec.routing_keys.iter().map(|text| text.parse());
        let routing_keys =
            routing_keys.collect::<Result<_, _>>().map_err(FilterError::RoutingKey)?;
        let decoder = BodyDecoder::new(spec.descriptor_set.as_ref(), spec.message_type.as_deref())?;
        let where_ = spec.where_.map(|source| Where::compile(&source, decoder)).transpose()?;
        Ok(Selection {
            from: spec.from,
            to: spec.to,
            types: asked(spec.types),
            routing_keys,
            exchanges: asked(spec.exchanges),
            keys: asked(spec.keys),
            ids: asked(spec.ids).map(Ids::new),
            places: places(spec.places),
            ranges: Ranges::new(spec.ranges),
            bindings: Bindings::new(spec.bindings)?,
            headers: headers(spec.headers),
            where_,
            where_errors: spec.where_errors,
        })
    }

    /// Returns what to do about an event for which [`Self::matches`] is an error.
    pub fn where_errors(&self) -> WhereErrors {
        self.where_errors
    }

    /// Returns whether the where expression looks at the body: then only [`Self::matches`] with
    /// the whole event decides.
    pub fn needs_body(&self) -> bool {
        self.where_.as_ref().is_some_and(Where::needs_body)
    }

    /// Returns whether events from this exchange may be selected, as far as exchanges are asked for.
    pub fn wants_exchange(&self, name: &str) -> bool {
        self.exchanges.as_ref().is_none_or(|names| names.contains(name))
            && self.bindings.as_ref().is_none_or(|bindings| bindings.want_exchange(name))
    }

    /// Returns the columns that [`Self::matches_attributes`] looks at.
    pub fn columns(&self) -> ColumnsNeeded {
        let variable =
            |name: &str| self.where_.as_ref().is_some_and(|where_| where_.needs_before_body(name));
        ColumnsNeeded {
            sequence: variable("sequence")
                || self.places.is_some()
                || self.ranges.is_some()
                || self.ids.as_ref().is_some_and(|ids| !ids.places.is_empty()),
            time: self.from.is_some() || self.to.is_some() || variable("time"),
            // A failing expression names the event.
            id: self.ids.is_some() || self.where_.is_some(),
            kind: self.types.is_some() || variable("type"),
            key: self.keys.is_some() || variable("key"),
            exchange: self.exchanges.is_some() || self.bindings.is_some() || variable("exchange"),
            routing_key: !self.routing_keys.is_empty()
                || self.bindings.as_ref().is_some_and(Bindings::ask_routing_keys)
                || variable("routing_key"),
            properties: !self.headers.is_empty() || variable("headers") || variable("properties"),
            content_type: variable("content_type"),
        }
    }

    /// Returns whether the event may be wanted, judging by [`Self::columns`] alone: false is
    /// final, true is final unless [`Self::needs_body`], or the exchange or routing key is not
    /// UTF-8 and only its lossy text was at hand.
    ///
    /// # Errors
    /// The expression needs no body and fails on this event.
    pub fn matches_attributes(
        &self,
        stream: &StreamName,
        event: &Event,
    ) -> Result<bool, WhereError> {
        Ok(self.passes_flags(stream, event)
            && self.where_.as_ref().map_or(Ok(true), |where_| where_.before_body(stream, event))?)
    }

    /// Returns whether the whole event, body included, is wanted.
    ///
    /// # Errors
    /// The expression fails on this event; [`Self::where_errors`] says what to do then.
    pub fn matches(&self, stream: &StreamName, event: &Event) -> Result<bool, WhereError> {
        Ok(self.passes_flags(stream, event)
            && self.where_.as_ref().map_or(Ok(true), |where_| where_.on(stream, event))?)
    }

    /// The flags are asked in order of what an answer costs.
    fn passes_flags(&self, stream: &StreamName, event: &Event) -> bool {
        let message = &event.message;
        let one_of = |asked: &Option<HashSet<String>>, value: Option<&str>| {
            asked.as_ref().is_none_or(|asked| value.is_some_and(|value| asked.contains(value)))
        };
        let at_a_place = |places: &Places| {
            places.get(stream).is_some_and(|here| here.binary_search(&event.sequence).is_ok())
        };
        self.places.as_ref().is_none_or(at_a_place)
            && self.ranges.as_ref().is_none_or(|ranges| ranges.contain(stream, event.sequence))
            && self.from.is_none_or(|from| event.time >= from)
            && self.to.is_none_or(|to| event.time < to)
            && one_of(&self.types, Some(&event.kind))
            && one_of(&self.exchanges, message.exchange.as_str())
            && one_of(&self.keys, event.key.as_deref())
            && self.ids.as_ref().is_none_or(|ids| ids.contain(stream, event))
            && (self.routing_keys.is_empty()
                || self
                    .routing_keys
                    .iter()
                    .any(|pattern| pattern.matches(message.routing_key.as_bytes())))
            && self.bindings.as_ref().is_none_or(|bindings| bindings.route(message))
            && self.headers.iter().all(|header| header.matches(event))
    }
}

fn asked(values: Vec<String>) -> Option<HashSet<String>> {
    (!values.is_empty()).then(|| values.into_iter().collect())
}

fn places(asked: Vec<(StreamName, Sequence)>) -> Option<Places> {
    if asked.is_empty() {
        return None;
    }
    let mut places = Places::new();
    for (stream, sequence) in asked {
        places.entry(stream).or_default().push(sequence);
    }
    for sequences in places.values_mut() {
        sequences.sort_unstable();
        sequences.dedup();
    }
    Some(places)
}

fn headers(pairs: Vec<(String, String)>) -> Vec<HeaderValues> {
    let mut headers: Vec<HeaderValues> = Vec::new();
    for (name, value) in pairs {
        match headers.iter_mut().find(|header| header.name == name) {
            Some(header) => header.values.push(value),
            None => headers.push(HeaderValues { name, values: vec![value] }),
        }
    }
    headers
}

impl HeaderValues {
    fn matches(&self, event: &Event) -> bool {
        event.message.properties.header(&self.name).is_some_and(|value| {
            let text = value.to_text_lossy();
            self.values.contains(&text)
        })
    }
}

impl Ids {
    fn new(texts: HashSet<String>) -> Self {
        let mut places: BTreeMap<String, Vec<Sequence>> = BTreeMap::new();
        for (stream, sequence) in texts.iter().filter_map(|text| place(text)) {
            places.entry(stream.to_owned()).or_default().push(sequence);
        }
        places.values_mut().for_each(|sequences| sequences.sort_unstable());
        Ids { texts, places }
    }

    /// In the stream it names, `stream:sequence` is the place alone: an event elsewhere in it
    /// that was given this id by its publisher is not meant.
    fn contain(&self, stream: &StreamName, event: &Event) -> bool {
        let here = self.places.get(stream.as_str());
        here.is_some_and(|sequences| sequences.binary_search(&event.sequence).is_ok())
            || (self.texts.contains(&event.id) && !is_place_in(&event.id, stream))
    }
}

/// Returns whether the id means a place in this stream.
pub(crate) fn is_place_in(id: &str, stream: &StreamName) -> bool {
    place(id).is_some_and(|(name, _)| name == stream.as_str())
}

/// Returns the place that an id of the form `stream:sequence` means.
fn place(id: &str) -> Option<(&str, Sequence)> {
    let (stream, digits) = id.rsplit_once(':')?;
    let canonical = digits.starts_with(|c: char| ('1'..='9').contains(&c))
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !canonical || stream.parse::<StreamName>().is_err() {
        return None;
    }
    Some((stream, digits.parse().ok()?))
}

#[cfg(test)]
mod tests;
