//! An archive is read by DuckDB and pandas with no help from us: sensible names, sensible types,
//! and the values that went in.

use std::path::Path;

use serde_json::{Value, json};

use super::dacapo::Dacapo;
use super::witness;

/// What DuckDB calls the type of each column.
const DUCKDB_COLUMNS: [(&str, &str); 12] = [
    ("sequence", "BIGINT"),
    ("archived_at", "TIMESTAMP WITH TIME ZONE"),
    ("time", "TIMESTAMP WITH TIME ZONE"),
    ("id", "VARCHAR"),
    ("type", "VARCHAR"),
    ("key", "VARCHAR"),
    ("exchange", "VARCHAR"),
    ("routing_key", "VARCHAR"),
    ("content_type", "VARCHAR"),
    ("headers", "MAP(VARCHAR, VARCHAR)"),
    ("properties", "BLOB"),
    ("body", "BLOB"),
];

/// What pandas calls those that it has types of its own for.
const PANDAS_COLUMNS: [(&str, &str); 4] = [
    ("sequence", "int64"),
    ("archived_at", "datetime64[us, UTC]"),
    ("time", "datetime64[us, UTC]"),
    ("id", "str"),
];

/// Two streams, three events: one with everything, one with nothing but a body, one whose body is
/// not text.
fn archive() -> Dacapo {
    let dacapo = Dacapo::new();
    let shop = [
        json!({
            "id": "e-1",
            "time": "2026-03-01T10:00:00.000001Z",
            "type": "order.placed",
            "key": "order-17",
            "exchange": "shop",
            "routing_key": "orders.naïve",
            "headers": { "tenant": "acme", "attempt": 3 },
            "properties": { "content_type": "application/json" },
            "body": { "total": 12.50 },
        }),
        json!({ "body": "plain", "time": "2026-03-01T11:00:00Z" }),
    ];
    let shop: String = shop.iter().map(|event| format!("{event}\n")).collect();
    let other = format!(
        "{}\n",
        json!({ "id": "b-1", "time": "2026-03-02T00:00:00Z", "body_base64": "AP8=" })
    );
    for (name, lines) in [("shop", shop), ("other", other)] {
        let file = dacapo.file(&format!("{name}.ndjson"), lines);
        let file = file.to_str().expect("a UTF-8 path");
        dacapo.json(["archive", "import", "--name", name, "--json", file]);
    }
    dacapo
}

#[track_caller]
fn check_types(seen: &Value, expected: &[(&str, &str)]) {
    for (column, kind) in expected {
        assert_eq!(seen["columns"][column], *kind, "{column} of {}", seen["columns"]);
    }
}

/// Returns the row of the event that has this body.
#[track_caller]
fn row_with_body<'v>(seen: &'v Value, body: &[u8]) -> &'v Value {
    let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
    let rows = seen["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["body"] == json!({ "hex": hex }));
    row.unwrap_or_else(|| panic!("no row with body {hex} in {rows:#?}"))
}

#[test]
fn duckdb_and_pandas_read_a_segment() {
    let dacapo = archive();
    let shop = dacapo.segments().into_iter().find(|path| is_of(path, "shop")).expect("a segment");
    let seen = witness::read_segment(&shop).unwrap();
    check_types(&seen["duckdb"], &DUCKDB_COLUMNS);
    check_types(&seen["pandas"], &PANDAS_COLUMNS);
    for reader in ["duckdb", "pandas"] {
        let row = row_with_body(&seen[reader], br#"{"total":12.5}"#);
        for (column, value) in [
            ("sequence", json!(1)),
            ("time", json!("2026-03-01T10:00:00.000001Z")),
            ("id", json!("e-1")),
            ("type", json!("order.placed")),
            ("key", json!("order-17")),
            ("exchange", json!("shop")),
            ("routing_key", json!("orders.naïve")),
            ("content_type", json!("application/json")),
            ("headers", json!({ "attempt": "3", "tenant": "acme" })),
        ] {
            assert_eq!(row[column], value, "{column} by {reader}");
        }
        let bare = row_with_body(&seen[reader], b"plain");
        assert_eq!(bare["key"], Value::Null, "{reader}");
    }
}

#[test]
fn an_archive_is_one_table_with_its_folders_as_columns() {
    let dacapo = archive();
    let seen = witness::read_segment(&Path::new(dacapo.archive()).join("segments")).unwrap();
    for reader in ["duckdb", "pandas"] {
        assert_eq!(seen[reader]["rows"].as_array().map(Vec::len), Some(3), "{reader}");
        let row = row_with_body(&seen[reader], &[0x00, 0xff]);
        assert_eq!(row["stream"], "other", "{reader}");
        assert_eq!(row["date"].as_str(), Some("2026-03-02"), "{reader}");
    }
}

fn is_of(segment: &Path, stream: &str) -> bool {
    let partition = format!("stream={stream}");
    segment.components().any(|part| part.as_os_str() == partition.as_str())
}
