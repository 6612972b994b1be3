//! Whoever removes a stream as the documents say removes all of it.

/// Returns the constants of the layout that are prefixes, and their values.
fn prefixes(layout: &str) -> Vec<(&str, &str)> {
    let constants = layout.lines().filter_map(|line| line.strip_prefix("pub const "));
    constants
        .filter_map(|line| line.split_once(": &str = \""))
        .filter_map(|(name, rest)| Some((name, rest.strip_suffix("\";")?)))
        .filter(|(_, value)| value.ends_with('/'))
        .collect()
}

#[test]
fn the_recipe_for_removing_a_stream_names_every_prefix_that_has_some_of_it_in_one_order() {
    let layout = super::read("crates/dacapo-archive/src/layout.rs");
    let list = layout.lines().find(|line| line.contains("OF_STREAMS: [")).expect("a constant");
    let of_streams: Vec<&str> =
        list.rsplit_once('[').expect("a list").1.trim_end_matches("];").split(", ").collect();
    let all = prefixes(&layout);
    let others = ["BARRIERS", "DEFINITIONS", "DAMAGED"];
    for (name, _) in &all {
        let known = of_streams.contains(name) || others.contains(name);
        assert!(known, "`{name}` is not in `OF_STREAMS`; does it hold something of a stream?");
    }
    let value = |name: &&str| all.iter().find(|(other, _)| other == name).expect("a prefix").1;
    let recipes = [
        ("docs/operations.md", "- **If it must end**"),
        ("docs/decisions/0004-retention-and-erasure.md", "- **Or end whole streams.**"),
    ];
    for (path, begin) in recipes {
        let document = super::read(path);
        let recipe = document.lines().find(|line| line.starts_with(begin)).expect("a recipe");
        let mut rest = recipe;
        for prefix in of_streams.iter().map(value) {
            let at = rest.find(&format!("`{prefix}"));
            let at = at.unwrap_or_else(|| panic!("{path}: `{prefix}` is not named in order"));
            rest = &rest[at..];
        }
    }
}
