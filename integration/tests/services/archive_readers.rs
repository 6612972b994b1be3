//! An archive is read by DuckDB and pandas with no help from us: sensible names, sensible types,
//! and the values that went in.

use std::path::Path;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::environment;
use serde_json::{Value, json};

use super::fixtures::{import, ndjson};
use super::witness;

/// What DuckDB calls the type of each column.
const DUCKDB_COLUMNS: [(&str, &str); 13] = [
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
    ("checksum", "UINTEGER"),
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

/// What the document tells a stranger to type works as it is printed.
#[test]
fn the_documents_queries_run_as_printed() {
    let document = environment::root().join("docs/archive-format.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once("## Reading it with other tools").unwrap();
    let (_, sql) = section.split_once("```sql\n").unwrap();
    let (sql, after) = sql.split_once("```").unwrap();
    let queries: Vec<&str> = sql.split(';').map(str::trim).filter(|q| !q.is_empty()).collect();
    let python = after.split('`').find(|text| text.starts_with("pandas.")).unwrap();

    let dacapo = Dacapo::new();
    let placed = |n: u64, day: &str| {
        json!({
            "id": format!("e-{n}"),
            "time": format!("{day}T10:00:00Z"),
            "type": "order.placed",
            "body": { "order": format!("o-{n}") },
        })
    };
    let events = [placed(1, "2026-10-31"), placed(2, "2026-11-02"), json!({ "type": "other" })];
    // A stream each, so that each is in the folder of its own day.
    for (n, event) in events.into_iter().enumerate() {
        import(&dacapo, &format!("s{n}"), &ndjson([event]), &[]);
    }
    let input = json!({ "archive": dacapo.archive(), "queries": queries, "pandas": python });
    let told = witness::run("documented.py", &[], &input.to_string()).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["queries"].as_array().map(Vec::len), Some(2), "{told}");
    let counts = told["queries"][0].as_array().unwrap();
    let placed = counts.iter().find(|row| row[0] == "order.placed").unwrap();
    assert_eq!((counts.len(), &placed[1]), (2, &json!("2")), "{told}");
    // Only the one of November, by its folder, with a member of its body.
    assert_eq!(told["queries"][1].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(
        (&told["queries"][1][0][0], &told["queries"][1][0][2]),
        (&json!("e-2"), &json!("o-2"))
    );
    assert_eq!(told["pandas"], json!({ "rows": 3 }));
}

fn is_of(segment: &Path, stream: &str) -> bool {
    let partition = format!("stream={stream}");
    segment.components().any(|part| part.as_os_str() == partition.as_str())
}
