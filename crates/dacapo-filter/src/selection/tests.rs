//! What each flag selects, alone and together, and which columns it takes to say so.

use bytes::Bytes;
use dacapo_event::{FieldTable, FieldValue, Message, Properties, ShortStr};
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};
use prost_reflect::{DescriptorPool, DynamicMessage, Value};

use super::*;

fn shop() -> StreamName {
    "shop".parse().unwrap()
}

fn event() -> Event {
    let short = ShortStr::from_static;
    let headers: FieldTable =
        [(short("tenant"), FieldValue::text("acme")), (short("retries"), FieldValue::LongInt(3))]
            .into_iter()
            .collect();
    Event {
        sequence: 42,
        archived_at: Timestamp::from_secs(1_800_000_000),
        time: at("2026-11-23T08:00:00Z"),
        id: "m-1".to_owned(),
        kind: "order.placed".to_owned(),
        key: Some("order-17".to_owned()),
        message: Message {
            exchange: short("shop"),
            routing_key: short("orders.placed.eu"),
            properties: Properties { headers: Some(headers), ..Properties::default() },
            body: Bytes::from_static(br#"{"total": 99.5}"#),
        },
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn compiled(spec: SelectionSpec) -> Selection {
    Selection::compile(spec).unwrap_or_else(|error| panic!("{error}"))
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[track_caller]
fn check(spec: SelectionSpec, expected: bool) {
    let selection = compiled(spec.clone());
    assert_eq!(selection.matches(&shop(), &event()), Ok(expected), "{spec:?}");
    assert_eq!(selection.matches_attributes(&shop(), &event()), Ok(expected), "{spec:?}");
}

#[test]
fn an_empty_selection_wants_everything() {
    check(SelectionSpec::default(), true);
    assert_eq!(compiled(SelectionSpec::default()).columns(), ColumnsNeeded::default());
}

#[test]
fn the_range_of_time_is_half_open() {
    let range = |from: Option<&str>, to: Option<&str>| SelectionSpec {
        from: from.map(at),
        to: to.map(at),
        ..SelectionSpec::default()
    };
    check(range(Some("2026-11-23T08:00:00Z"), None), true);
    check(range(Some("2026-11-23T08:00:00.000001Z"), None), false);
    check(range(None, Some("2026-11-23T08:00:00Z")), false);
    check(range(None, Some("2026-11-23T08:00:00.000001Z")), true);
    check(range(Some("2026-11-23T07:00:00Z"), Some("2026-11-23T09:00:00Z")), true);
}

#[test]
fn a_range_the_wrong_way_round_is_refused_with_both_ends() {
    let from = Some(at("2026-11-23T09:00:00Z"));
    for to in ["2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"] {
        let spec = SelectionSpec { from, to: Some(at(to)), ..SelectionSpec::default() };
        let error = Selection::compile(spec).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the time range is the wrong way round: from 2026-11-23T09:00:00Z is not before to {to}; swap them"
            )
        );
    }
}

#[test]
fn values_of_one_flag_are_alternatives_and_flags_must_all_hold() {
    let types =
        |values: &[&str]| SelectionSpec { types: texts(values), ..SelectionSpec::default() };
    check(types(&["mail.sent", "order.placed"]), true);
    check(types(&["order"]), false);
    check(SelectionSpec { keys: texts(&["order-17"]), ..types(&["order.placed"]) }, true);
    check(SelectionSpec { keys: texts(&["order-18"]), ..types(&["order.placed"]) }, false);
    check(SelectionSpec { exchanges: texts(&["shop", ""]), ..SelectionSpec::default() }, true);
    check(SelectionSpec { exchanges: texts(&[""]), ..SelectionSpec::default() }, false);
    let keys =
        |values: &[&str]| SelectionSpec { routing_keys: texts(values), ..SelectionSpec::default() };
    check(keys(&["mail.#", "orders.*.eu"]), true);
    check(keys(&["orders.*"]), false);
}

#[test]
fn headers_of_one_name_are_alternatives_and_names_must_all_hold() {
    let headers = |pairs: &[(&str, &str)]| SelectionSpec {
        headers: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..SelectionSpec::default()
    };
    check(headers(&[("tenant", "acme")]), true);
    check(headers(&[("tenant", "other"), ("tenant", "acme")]), true);
    check(headers(&[("tenant", "acme"), ("retries", "3")]), true);
    check(headers(&[("tenant", "acme"), ("retries", "4")]), false);
    check(headers(&[("missing", "")]), false);
}

#[test]
fn an_id_is_a_text_or_a_place_in_the_stream_it_names() {
    let ids = |values: &[&str]| SelectionSpec { ids: texts(values), ..SelectionSpec::default() };
    check(ids(&["m-2", "m-1"]), true);
    check(ids(&["shop:42"]), true);
    check(ids(&["shop:43"]), false);
    check(ids(&["shop:042"]), false);
    check(ids(&["other:42"]), false);

    let selection = compiled(ids(&["shop:42"]));
    let other: StreamName = "import".parse().unwrap();
    let made_up_elsewhere = Event { id: "shop:42".to_owned(), ..event() };
    assert_eq!(selection.matches(&other, &event()), Ok(false));
    assert_eq!(selection.matches(&other, &made_up_elsewhere), Ok(true));
    let impostor = Event { id: "shop:42".to_owned(), sequence: 7, ..event() };
    assert_eq!(selection.matches(&shop(), &impostor), Ok(false));
}

#[test]
fn an_event_without_a_key_has_none_of_the_keys() {
    let selection = compiled(SelectionSpec { keys: texts(&[""]), ..SelectionSpec::default() });
    assert_eq!(selection.matches(&shop(), &Event { key: None, ..event() }), Ok(false));
}

#[test]
fn bytes_that_are_not_text_match_only_wildcards() {
    let mut event = event();
    event.message.exchange = ShortStr::new(&b"\xff"[..]).unwrap();
    event.message.routing_key = ShortStr::new(&b"orders.\xff"[..]).unwrap();
    let matches = |spec| compiled(spec).matches(&shop(), &event);
    let keys =
        |value: &str| SelectionSpec { routing_keys: texts(&[value]), ..SelectionSpec::default() };
    assert_eq!(matches(keys("orders.*")), Ok(true));
    assert_eq!(matches(keys("orders.\u{FFFD}")), Ok(false));
    let lossy = SelectionSpec { exchanges: texts(&["\u{FFFD}"]), ..SelectionSpec::default() };
    assert_eq!(matches(lossy), Ok(false));
}

#[test]
fn a_pattern_that_is_none_is_refused() {
    let spec = SelectionSpec { routing_keys: vec!["a".repeat(256)], ..SelectionSpec::default() };
    let error = Selection::compile(spec).unwrap_err().to_string();
    assert!(error.starts_with("routing key pattern `aaa"), "{error}");
}

#[test]
fn columns_are_those_that_the_flags_and_the_bodiless_parts_look_at() {
    let spec = SelectionSpec {
        types: texts(&["order.placed"]),
        where_: Some("headers.tenant == 'acme' && body.total > 1 && body.at == time".to_owned()),
        ..SelectionSpec::default()
    };
    let selection = compiled(spec);
    assert!(selection.needs_body());
    assert_eq!(
        selection.columns(),
        ColumnsNeeded { id: true, kind: true, properties: true, ..ColumnsNeeded::default() }
    );
    let spec = SelectionSpec { ids: texts(&["shop:1"]), ..SelectionSpec::default() };
    assert_eq!(
        compiled(spec).columns(),
        ColumnsNeeded { sequence: true, id: true, ..ColumnsNeeded::default() }
    );
}

#[test]
fn a_failing_expression_is_only_asked_when_the_flags_pass() {
    let spec = |kind: &str| SelectionSpec {
        types: texts(&[kind]),
        where_: Some("headers.missing == 1".to_owned()),
        where_errors: WhereErrors::Skip,
        ..SelectionSpec::default()
    };
    assert_eq!(compiled(spec("other")).matches(&shop(), &event()), Ok(false));
    let selection = compiled(spec("order.placed"));
    assert_eq!(selection.where_errors(), WhereErrors::Skip);
    let error = selection.matches(&shop(), &event()).unwrap_err();
    assert_eq!(error.event, "m-1");
    assert_eq!(selection.matches_attributes(&shop(), &event()), Err(error));
}

fn descriptors(messages: &[&str]) -> Bytes {
    let field = |name: &str, number, kind: Type| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        ..FieldDescriptorProto::default()
    };
    let message = |name: &&str| DescriptorProto {
        name: Some((*name).to_owned()),
        field: vec![field("order_id", 1, Type::Int64), field("note", 2, Type::String)],
        ..DescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("shop.proto".to_owned()),
        package: Some("shop".to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: messages.iter().map(message).collect(),
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec().into()
}

#[test]
fn protobuf_bodies_are_decoded_with_a_descriptor_set() {
    let set = descriptors(&["Order"]);
    let pool = DescriptorPool::decode(set.as_ref()).unwrap();
    let mut order = DynamicMessage::new(pool.get_message_by_name("shop.Order").unwrap());
    order.set_field_by_name("order_id", Value::I64(1 << 60));
    let mut event = event();
    event.message.body = order.encode_to_vec().into();
    let spec = |where_: &str, message_type: Option<&str>| SelectionSpec {
        where_: Some(where_.to_owned()),
        descriptor_set: Some(set.clone()),
        message_type: message_type.map(str::to_owned),
        ..SelectionSpec::default()
    };
    let matches = |spec, event: &Event| compiled(spec).matches(&shop(), event);
    let wanted = "body.order_id == 1152921504606846976 && body.note == ''";
    assert_eq!(matches(spec(wanted, None), &event), Ok(true));
    assert_eq!(matches(spec(wanted, Some("shop.Order")), &event), Ok(true));
    event.message.body = Bytes::from_static(b"\xff");
    let error = matches(spec(wanted, None), &event).unwrap_err();
    assert!(error.message.starts_with("the body is not a `shop.Order`: "), "{error}");
}

#[test]
fn a_descriptor_set_that_does_not_fit_is_refused() {
    #[track_caller]
    fn check(set: Option<Bytes>, message_type: Option<&str>, expected: &str) {
        let spec = SelectionSpec {
            descriptor_set: set,
            message_type: message_type.map(str::to_owned),
            ..SelectionSpec::default()
        };
        let error = Selection::compile(spec).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    check(None, Some("a.B"), "descriptor set: message `a.B` is asked for, but no set is given");
    check(Some(Bytes::from_static(b"no")), None, "descriptor set: not readable: ");
    check(
        Some(descriptors(&["Order", "Mail"])),
        None,
        "descriptor set: it does not say which message bodies are; name one of `shop.Order`, `shop.Mail`",
    );
    check(
        Some(descriptors(&["Order"])),
        Some("shop.Mail"),
        "descriptor set: `shop.Mail` is not a message of the set; it has `shop.Order`",
    );
}
