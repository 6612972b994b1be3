//! What expressions mean, what is said of wrong ones, and that no text does harm.

use bytes::Bytes;
use dacapo_event::{FieldTable, FieldValue, Message, Properties, ShortStr, Timestamp};
use proptest::prelude::*;

use super::*;

fn stream() -> StreamName {
    "shop".parse().unwrap()
}

fn with_body(body: impl Into<Bytes>) -> Event {
    let short = ShortStr::from_static;
    let nested: FieldTable = [(short("deep"), FieldValue::Boolean(true))].into_iter().collect();
    let headers: FieldTable = [
        (short("tenant"), FieldValue::text("acme")),
        (short("retries"), FieldValue::LongUInt(3)),
        (short("ratio"), FieldValue::Decimal { scale: 2, value: 150 }),
        (short("raw"), FieldValue::ByteArray(Bytes::from_static(b"\xff\x00"))),
        (short("sent"), FieldValue::Timestamp(1_700_000_000)),
        (short("list"), FieldValue::Array(vec![FieldValue::ShortInt(1), FieldValue::Void])),
        (short("nested"), FieldValue::Table(nested)),
    ]
    .into_iter()
    .collect();
    Event {
        sequence: 42,
        archived_at: Timestamp::from_secs(1_800_000_000),
        time: "2026-11-23T08:00:00.5Z".parse().unwrap(),
        id: "m-1".to_owned(),
        kind: "order.placed".to_owned(),
        key: Some("order-17".to_owned()),
        message: Message {
            exchange: short("shop"),
            routing_key: short("orders.placed"),
            properties: Properties {
                content_type: Some(short("application/json")),
                headers: Some(headers),
                priority: Some(4),
                timestamp: Some(1_700_000_000),
                ..Properties::default()
            },
            body: body.into(),
        },
    }
}

fn event() -> Event {
    with_body(
        r#"{"total": 99.5, "items": [{"sku": "a", "n": 2}], "n": 7, "big": 18446744073709551615, "é": null}"#,
    )
}

fn compiled(source: &str) -> Where {
    Where::compile(source, BodyDecoder::Json).unwrap_or_else(|error| panic!("{source}: {error}"))
}

#[track_caller]
fn check_on(event: &Event, source: &str, expected: Result<bool, &str>) {
    let result = compiled(source).on(&stream(), event).map_err(|error| error.message);
    assert_eq!(result, expected.map_err(str::to_owned), "{source}");
}

#[track_caller]
fn check(source: &str, expected: bool) {
    check_on(&event(), source, Ok(expected));
}

#[track_caller]
fn check_refused(source: &str, expected: &str) {
    let error = Where::compile(source, BodyDecoder::Json).unwrap_err();
    assert_eq!(error.to_string(), expected, "{source}");
}

#[test]
fn attributes() {
    check(r#"id == "m-1" && type == "order.placed" && key == "order-17""#, true);
    check(r#"exchange == "shop" && routing_key.startsWith("orders.")"#, true);
    check(r#"stream == "shop" && sequence == 42 && content_type == "application/json""#, true);
    check(r#"time >= timestamp("2026-11-23T08:00:00Z") && time.getFullYear() == 2026"#, true);
    check(r#"time - timestamp("2026-11-23T08:00:00Z") < duration("1s")"#, true);
    check("key == null", false);
    check(".type == 'order.placed'", true);
}

#[test]
fn absent_attributes_are_null() {
    let mut event = event();
    event.key = None;
    event.message.properties = Properties::default();
    check_on(&event, "key == null && content_type == null", Ok(true));
    check_on(&event, "key == 'order-17'", Ok(false));
    check_on(&event, "has(headers.tenant) || size(properties) > 0", Ok(false));
}

#[test]
fn headers_and_properties_keep_their_types() {
    check("headers.tenant == 'acme' && headers.retries + 1 == 4 && headers.ratio == 1.5", true);
    check(r#"headers.raw == b"\xff\x00" && headers["nested"].deep"#, true);
    check("headers.sent == timestamp(1700000000) && properties.timestamp == headers.sent", true);
    check("headers.list[0] == 1 && headers.list[1] == null", true);
    check("properties.priority == 4 && !has(properties.reply_to)", true);
}

#[test]
fn bodies() {
    check("body.total > 99 && body.n == 7 && body.n * 2 == 14", true);
    check("body.items.exists(i, i.sku == 'a' && i.n >= 2)", true);
    check("body.items.all(i, i.n > 2)", false);
    check("body.big > 9223372036854775807 && body['é'] == null", true);
    check("body.?customer.?country.orValue('?') == '?'", true);
    check_on(&with_body("plain text"), "body.contains('text')", Ok(true));
    check_on(&with_body(""), "body == ''", Ok(true));
    check_on(&with_body(&b"\xff"[..]), r#"body == b"\xff""#, Ok(true));
    check_on(&with_body("[1, 2]"), "size(body) == 2", Ok(true));
}

#[test]
fn regular_expressions() {
    check(r#"type.matches("^order\\.") && matches(key, "[0-9]+$")"#, true);
    check(r#"type.matches("^" + "mail")"#, false);
    check_on(
        &event(),
        "sequence.matches('4')",
        Err("found no matching overload for 'matches' applied to 'int.(string)'"),
    );
    check_on(&event(), "type.matches('(' + key)", Err("`matches`: unclosed group"));
    check_on(
        &event(),
        r"type.matches('\\w{90}{90}' + key)",
        Err("`matches`: it takes more than 4194304 bytes once compiled; repeat less"),
    );
    check_refused(
        "type.matches('a(')",
        "where expression, line 1, column 14: not a regular expression: unclosed group\n\
         type.matches('a(')\n             ^",
    );
}

#[test]
fn failures_say_why() {
    let missing = "there is no field `customer`; ask with `has(…)` first";
    check_on(&event(), "body.customer.name == 'x'", Err(missing));
    check_on(&event(), "body.total", Err("it gave a double, not true or false"));
    check_on(&event(), "key", Err("it gave a string, not true or false"));
    check_on(
        &event(),
        "type > 7",
        Err("found no matching overload for '_>_' applied to '(string, int)'"),
    );
    let error = compiled("body.x == 1").on(&stream(), &event()).unwrap_err();
    assert!(error.to_string().starts_with("where expression failed on event `m-1`: "), "{error}");
}

#[test]
fn a_long_value_is_not_quoted_whole() {
    let event = with_body(format!("[\"{}\"]", "x".repeat(10_000)));
    let error = compiled("body + 1 == 2").on(&stream(), &event).unwrap_err();
    assert!(error.message.chars().count() <= MESSAGE_CHARS_MAX + 1, "{error}");
}

#[test]
fn mistakes_are_shown_where_they_are() {
    check_refused(
        "type = 'x'",
        "where expression, line 1, column 6: `=` is no operator; compare with `==`\ntype = 'x'\n     ^",
    );
    check_refused(
        "type == 'é' &&\n\tamount > 3",
        "where expression, line 2, column 2: there is no variable `amount`; there are `id`, \
         `time`, `type`, `key`, `exchange`, `routing_key`, `content_type`, `stream`, `sequence`, \
         `headers`, `properties`, `body`\n amount > 3\n ^",
    );
    check_refused(
        "'éé' == key)",
        "where expression, line 1, column 12: extraneous input ')' expecting <EOF>\n'éé' == key)\n           ^",
    );
    check_refused(
        "'é' == key && lower(key) == 'x'",
        "where expression, line 1, column 20: there is no function `lower`\n\
         'é' == key && lower(key) == 'x'\n                   ^",
    );
    for source in ["", " ", "type ==", "(", "body.", "has(body)", "a b", "'", "1 ? 2", "\u{0}"] {
        let error = Where::compile(source, BodyDecoder::Json).unwrap_err();
        assert!(matches!(error, FilterError::Where { .. }), "{source:?}: {error}");
    }
    for source in ["Order{}", "Order{total: 1}.total == 1", "x.y.z == 1", "body.all(i, j == i)"] {
        let error = Where::compile(source, BodyDecoder::Json).unwrap_err().to_string();
        assert!(error.contains("there is no"), "{source:?}: {error}");
    }
}

#[test]
fn what_needs_no_body_is_decided_without_it() {
    #[track_caller]
    fn check(source: &str, needs_body: bool, before: Result<bool, ()>) {
        let compiled = compiled(source);
        assert_eq!(compiled.needs_body(), needs_body, "{source}");
        let bodiless = with_body("");
        assert_eq!(compiled.before_body(&stream(), &bodiless).map_err(drop), before, "{source}");
    }
    check("type == 'x'", false, Ok(false));
    check("headers.missing == 1", false, Err(()));
    check("body.n == 7", true, Ok(true));
    check("type == 'x' && body.n == 7", true, Ok(false));
    check("body.n == 7 && (key == 'k' && body.m == 1)", true, Ok(false));
    check("type == 'x' || body.n == 7", true, Ok(true));
    check("headers.missing == 1 && body.n == 7", true, Ok(true));
    check("[1].exists(body, body == 1)", false, Ok(true));
    check("[body].exists(b, b == 1) && key == 'k'", true, Ok(false));
    let needs = compiled("type == 'x' && body.a == time && stream == 's'");
    assert!(needs.needs_before_body("type") && needs.needs_before_body("stream"));
    assert!(!needs.needs_before_body("time"));
}

#[test]
fn every_function_of_the_list_is_there() {
    let context = Context::with_env(Arc::new(environment()));
    for name in tree::FUNCTIONS {
        let known = [format!("{name}(1, 2, 3)"), format!("'a'.{name}(1, 2, 3)")];
        let known = known.iter().any(|source| {
            let expression = Env::stdlib().parser().parse(source).unwrap();
            !matches!(
                Value::resolve(&expression, &context),
                Err(ExecutionError::UndeclaredReference(_))
            )
        });
        assert!(known, "{name}");
    }
}

#[test]
fn pathological_expressions_are_refused() {
    let refused = |source: &str| Where::compile(source, BodyDecoder::Json).unwrap_err().to_string();
    let deep = format!("it nests deeper than {NESTING_MAX} levels");
    for source in [
        format!("{}true{}", "(".repeat(4_000), ")".repeat(4_000)),
        format!("{}1{}", "[".repeat(4_000), "]".repeat(4_000)),
        format!("body{} == 1", ".a".repeat(4_000)),
        format!("body{} == 1", "[0]".repeat(2_600)),
        format!("0{} == 1", "+1".repeat(4_000)),
        format!("{}true", "true?true:".repeat(800)),
        format!("{}true", "!(".repeat(4_000)),
        format!("{}1 == 1", "-(".repeat(4_000)),
        format!("size{}", "(size".repeat(1_600)),
        format!("{}1{}", "{1:".repeat(2_000), "}".repeat(2_000)),
    ] {
        let error = refused(&source);
        assert!(
            error.contains(&deep) || error.contains("line 1"),
            "{}…: {}",
            &source[..20],
            &error.chars().take(200).collect::<String>()
        );
    }
    assert!(refused(&"a".repeat(BYTES_MAX + 1)).contains("are allowed"));
    let loops = "[1].all(a, [1].all(b, [1].all(c, [1].all(d, true))))";
    assert!(refused(loops).contains("nest at most 3 deep"), "{}", refused(loops));
}

#[test]
fn the_deepest_expression_allowed_evaluates_on_an_ordinary_stack() {
    let chain = format!("0{} >= 1", "+1".repeat(NESTING_MAX - 2));
    check(&chain, true);
    let calls = NESTING_MAX - 3;
    check(
        &format!("{}true{} == true", "dyn(".repeat(calls.min(60)), ")".repeat(calls.min(60))),
        true,
    );
    let many = vec!["type == 'order.placed'"; 300].join(" && ");
    check(&many, true);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn no_text_panics(source in "\\PC{0,60}") {
        if let Ok(compiled) = Where::compile(&source, BodyDecoder::Json) {
            drop(compiled.on(&stream(), &event()));
        }
    }

    #[test]
    fn no_sequence_of_tokens_panics(tokens in prop::collection::vec(prop::sample::select(vec![
        "type", "body", "headers", "time", "key", "x", "i", "'a'", "\"b\"", "b'c'", "r'd'", "'''e'''",
        "1", "2u", "3.5", "1e400", "9223372036854775808", "0x1F", "null", "true", "(", ")", "[", "]",
        "{", "}", ".", ",", ":", "?", "==", "!=", "<", ">=", "&&", "||", "!", "-", "+", "*", "/", "%",
        " in ", "has(", ".all(i,", ".map(i,", ".exists(i,", "size(", "matches(", ".?", "[?", "\n", "//",
        "timestamp(", "duration(", "int(", "string(", "optional.of(", ".orValue(", "\\", "`", "@", "\u{1F600}",
    ]), 0..14)) {
        let source = tokens.concat();
        if let Ok(compiled) = Where::compile(&source, BodyDecoder::Json) {
            let before = compiled.before_body(&stream(), &event());
            let whole = compiled.on(&stream(), &event());
            // The first phase must not turn away what the whole expression wants.
            prop_assert!(!(whole == Ok(true) && before == Ok(false)), "{}", source);
        }
    }
}

/// An event whose body has a list of numbers.
fn with_list(length: usize) -> Event {
    let list: Vec<String> = (0..length).map(|n| n.to_string()).collect();
    with_body(format!(
        "{{\"list\": [{}], \"text\": \"{}\"}}",
        list.join(","),
        "x".repeat(10 * length)
    ))
}

#[track_caller]
fn check_too_long(length: usize, source: &str) {
    check_on(&with_list(length), source, Err(meter::too_many().as_str()));
}

#[test]
fn an_expression_that_takes_too_long_fails_whatever_swallows_its_errors() {
    let loops = |inner: &str| {
        format!("body.list.exists(a, body.list.exists(b, body.list.exists(c, {inner})))")
    };
    // What is left to do after the budget is spent ends as fast.
    let many = vec![loops("c.nothing == 1"); 40].join(" || ");
    check_too_long(1_000, &format!("{many} || true"));
    check_too_long(1_000, &loops("a + b + c < 0").replace("exists", "all").replace('<', ">="));
    check_too_long(1_000, "body.list.map(a, body.list.map(b, body.list.map(c, c))) == []");
    let filtered = "body.list.filter(b, body.list.exists_one(c, c < 0))";
    check_too_long(1_000, &format!("size(body.list.map(a, a > 0, {filtered})) == 1"));
}

#[test]
fn what_an_operation_looks_at_counts() {
    for source in [
        "body.list.exists(a, body.list == body.list.map(b, b + 1))",
        "body.list.exists(a, -1 - a in body.list)",
        "body.list.exists(a, body.text.contains(string(a) + 'y'))",
        "body.list.exists(a, body.text + 'y' < body.text)",
        "body.list.exists(a, body.list - a == 1)",
        "body.list.exists(a, size(body.text + string(a)) == 1)",
        "body.list.exists(a, body.text.matches('(x|\\\\w)+!'))",
    ] {
        check_too_long(20_000, source);
    }
}

#[test]
fn what_is_copied_counts_more_so_that_memory_is_bounded() {
    let bodies = vec!["body"; 1_000].join(",");
    check_too_long(20_000, &format!("size([{bodies}]) == 1"));
    check_too_long(20_000, "size(body.list.map(a, body)) == 1");
    check_too_long(20_000, "body.list.exists(a, optional.of(body).hasValue() && a < 0)");
    check_too_long(20_000, "body.list.exists(a, body.?list.hasValue() && a < 0)");
    check_too_long(20_000, "body.list.map(a, {'a': body.list}) == []");
    let doubled = format!("[{}]", vec!["x"; 30].join("+"));
    let nested = format!("[body.text].map(x, {doubled}.map(x, {doubled}.map(x, {doubled}))) == []");
    check_too_long(20_000, &nested);
}

#[test]
fn what_is_ordinary_is_within_the_budget() {
    let event = with_list(1_000);
    for source in [
        "body.list.exists(a, body.list.exists(b, a * b == 998001))",
        "body.list.map(a, a + 1).filter(a, a % 2 == 0).size() == 500",
        "body.list.all(a, a in body.list)",
        "body.list.all(a, body.list[a] == a)",
        "[1.5, 2.0].exists(a, body.?list[?a].orValue(0) == 2)",
        r"body.list.all(a, string(a).matches('^\\w{1,9}$'))",
        "body.text.matches('^x+$') && size(body.text) == 10000",
        "body.list + body.list != body.list && {'a': body}['a'] == body",
        "body.?list.optMap(l, size(l)).orValue(0) == 1000",
    ] {
        check_on(&event, source, Ok(true));
    }
    // One evaluation says nothing of the next.
    check_too_long(1_000, "body.list.exists(a, body.list.exists(b, body.list.exists(c, c < 0)))");
    check("body.n == 7", true);
}

#[test]
fn what_is_no_key_says_so() {
    check_on(
        &event(),
        "body.items[0.5] == 1",
        Err("`[…]`: a number with a fraction is no place in a list"),
    );
    check_on(
        &event(),
        "body.items[body.items] == 1",
        Err("`[…]`: a list is neither a place in a list nor a name"),
    );
    check("body.items[0.0] == body.items[0] && body.items[0u].sku == 'a'", true);
    check("{true: 1}[true] == 1 && {1: 2}[?3].orValue(4) == 4", true);
}

#[test]
fn a_body_of_too_many_values_is_not_decoded() {
    let many = |unit: &str, count: usize| with_body(format!("[{}1]", unit.repeat(count)));
    let expected = Err(
        "the body has more than 1048576 values; leave such events out with flags or --where-errors skip",
    );
    check_on(&many("1,", 1_048_576), "body == 1", expected);
    check_on(&many("1,", 1_048_574), "size(body) == 1048575", Ok(true));
    check_on(&many(r#"{"a":[]},"#, 300_000), "body == 1", expected);
    // What is not JSON is a text, however many commas it has; in a string they say nothing.
    check_on(&with_body("1,".repeat(1_100_000)), "size(body) == 2200000", Ok(true));
    let quoted = format!("[\"{}\"]", r#",\","#.repeat(400_000));
    check_on(&with_body(quoted), "size(body[0]) == 1200000", Ok(true));
}
