//! Listings of servers that sort by key and of servers that sort by name, against a plain filter.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Order {
    /// As Amazon.
    OfKeys,
    /// As a walk of directories: `a/x` before `a-b`.
    OfNames,
}

/// Answers as a server that holds `keys` and gives `page` entries at once; a continuation is the
/// number of entries given.
fn serve(keys: &[String], order: Order, page: usize, ask: &Ask) -> Answer {
    let entry_of = |key: &String| match (ask.depth, key[ask.prefix.len()..].find('/')) {
        (Depth::Level, Some(slash)) => key[..=ask.prefix.len() + slash].to_owned(),
        _ => key.clone(),
    };
    let place = |entry: &str| -> Vec<String> {
        match order {
            Order::OfKeys => vec![entry.to_owned()],
            Order::OfNames => entry.trim_end_matches('/').split('/').map(str::to_owned).collect(),
        }
    };
    let start = ask.start_after.as_deref().map(place);
    let mut entries: Vec<String> = keys
        .iter()
        .filter(|key| key.starts_with(&ask.prefix))
        .map(entry_of)
        .filter(|entry| start.as_ref().is_none_or(|start| place(entry) > *start))
        .collect();
    entries.sort_by_key(|entry| place(entry));
    entries.dedup();

    let given = ask.continuation.as_deref().map_or(0, |token| token.parse().unwrap());
    let mut answer = Answer::default();
    for entry in entries.iter().skip(given).take(page) {
        if entry.ends_with('/') {
            answer.directories.push(entry.clone());
        } else {
            answer.objects.push(ObjectMeta { key: entry.parse().unwrap(), size: 1 });
        }
    }
    answer.continuation = (given + page < entries.len()).then(|| (given + page).to_string());
    answer
}

fn list(keys: &[String], order: Order, page: usize, prefix: &str, after: Option<&str>) -> ListPage {
    let after = after.map(|after| after.parse().unwrap());
    let mut walk = Walk::new(prefix, after.as_ref());
    // Each question brings an entry or closes a place.
    for _ in 0..10 * (keys.len() + 1) {
        match walk.step() {
            Step::Ask(ask) => walk.answer(serve(keys, order, page, &ask)),
            Step::Done(page) => return page,
        }
    }
    panic!("the listing does not end")
}

fn texts(page: &ListPage) -> Vec<&str> {
    page.objects.iter().map(|object| object.key.as_str()).collect()
}

proptest! {
    #[test]
    fn every_listing_is_what_a_filter_gives(
        keys in proptest::collection::btree_set("[ab./0-]{1,6}", 1..40),
        page in 1_usize..8,
        order in prop_oneof![Just(Order::OfKeys), Just(Order::OfNames)],
        prefix in "[ab./0-]{0,3}",
        after in proptest::option::of(any::<Index>()),
        elsewhere in "[ab./0-]{1,4}",
        is_elsewhere in any::<bool>(),
    ) {
        let is_key = |key: &String| key.parse::<ObjectKey>().is_ok();
        let keys: Vec<String> = keys.into_iter().filter(is_key).collect();
        // No key lies under another: such servers cannot hold both.
        let keys: Vec<String> =
            keys.iter().filter(|key| !keys.iter().any(|other| other.starts_with(&format!("{key}/")))).cloned().collect();
        prop_assume!(!keys.is_empty());
        let after = after.map(|index| index.get(&keys).clone());
        let after = if is_elsewhere && is_key(&elsewhere) { Some(elsewhere) } else { after };

        let expected: Vec<&str> = keys
            .iter()
            .filter(|key| key.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after))
            .map(String::as_str)
            .collect();
        let listed = list(&keys, order, page, &prefix, after.as_deref());
        prop_assert_eq!(texts(&listed), expected);
        prop_assert!(!listed.more);
    }
}

#[test]
fn pages_join() {
    let keys: Vec<String> =
        (0..2_500).map(|n| format!("s{}/{n:05}", ["", "-a", ".b"][n % 3])).collect();
    let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
    expected.sort_unstable();
    for order in [Order::OfKeys, Order::OfNames] {
        let (mut seen, mut after, mut sizes) = (Vec::<String>::new(), None, Vec::new());
        loop {
            let page = list(&keys, order, 100, "s", after.as_deref());
            seen.extend(texts(&page).into_iter().map(str::to_owned));
            sizes.push(page.objects.len());
            after = seen.last().cloned();
            if !page.more {
                break;
            }
        }
        assert!(seen == expected, "{order:?}");
        assert_eq!(sizes, [1_000, 1_000, 500], "{order:?}");
    }
}

#[test]
fn what_comes_in_one_answer_is_asked_for_once() {
    let keys: Vec<String> = ["a-b", "a/b"].map(str::to_owned).into();
    let mut walk = Walk::new("", None);
    let Step::Ask(ask) = walk.step() else { panic!("nothing was asked") };
    walk.answer(serve(&keys, Order::OfNames, 1_000, &ask));
    assert!(matches!(walk.step(), Step::Done(page) if texts(&page) == ["a-b", "a/b"]));
}

#[track_caller]
fn check_start(prefix: &str, after: &str, expected: Option<&str>) {
    assert_eq!(start_of_level(prefix, after).as_deref(), expected, "`{prefix}` after `{after}`");
}

#[test]
fn a_level_starts_close_to_where_the_listing_goes_on() {
    check_start("chain/s/", "chain/s/00017.json", Some("chain/s/0001"));
    check_start("chain/", "chain/orders-eu/00017.json", Some("chain/order"));
    check_start("d/", "d/2026", Some("d/202"));
    check_start("d/", "d/x", None);
    check_start("d/", "d/é-f", None);
    check_start("d/", "d/eé", Some("d/e"));
    check_start("d/", "c/x", None);
    check_start("", "abc", Some("ab"));
    check_start("d/n", "d/name", Some("d/nam"));
    check_start("d/", "", None);
}
