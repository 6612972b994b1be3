//! The table of limits names constants that are there.

use std::fs;

#[test]
fn every_limit_in_the_table_is_a_constant_in_the_code() {
    let table = super::read("docs/limits.md");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 10, "the table of docs/limits.md was not found");
    let mut wrong = Vec::new();
    for row in rows {
        let path = row[2].trim_matches('`');
        let code = fs::read_to_string(super::root().join(path)).unwrap_or_default();
        for name in row[0].split(", ").map(|name| name.trim_matches('`')) {
            if !code.contains(&format!("const {name}: ")) {
                wrong.push(format!("`{path}` has no constant `{name}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/limits.md:\n{}", wrong.join("\n"));
}
