//! Which policies apply to a queue or an exchange, and what they set.

use dacapo_bus::broker::Setting;
use regex::Regex;
use serde_json::Value;

/// The policies of one virtual host.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    users: Vec<Policy>,
    operators: Vec<Policy>,
}

#[derive(Debug)]
struct Policy {
    name: String,
    /// Absent: the pattern is not one of ours (Erlang's has look-ahead, for example), so that it may
    /// match and may not.
    pattern: Option<Regex>,
    applies_to: String,
    priority: i64,
    definition: Value,
}

/// What a policy may apply to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    /// A queue of this type.
    Queue(&'a str),
    /// An exchange.
    Exchange,
}

/// Whether a policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    No,
    Maybe,
    Yes,
}

/// What may apply to one thing; of each kind of policy one of these does, or none.
#[derive(Debug)]
pub(crate) struct Applied<'a> {
    users: Candidates<'a>,
    operators: Candidates<'a>,
}

/// The policies of one kind of which one applies: the one of the highest priority that matches, and
/// those of no lower one that may match. `None` stands for none of them.
type Candidates<'a> = Vec<Option<&'a Policy>>;

impl Policies {
    /// Reads the lists of the plugin; nothing if one of them has a policy of an unknown form.
    pub(crate) fn read(users: &[Value], operators: &[Value]) -> Option<Self> {
        let read = |list: &[Value]| list.iter().map(Policy::read).collect::<Option<Vec<_>>>();
        Some(Policies { users: read(users)?, operators: read(operators)? })
    }

    pub(crate) fn of_queue(&self, name: &str, queue_type: &str) -> Applied<'_> {
        self.of(name, Kind::Queue(queue_type))
    }

    pub(crate) fn of(&self, name: &str, kind: Kind<'_>) -> Applied<'_> {
        Applied {
            users: candidates(&self.users, name, kind),
            operators: candidates(&self.operators, name, kind),
        }
    }
}

fn candidates<'a>(policies: &'a [Policy], name: &str, kind: Kind<'_>) -> Candidates<'a> {
    let that = |wanted| {
        policies.iter().filter(move |policy: &&Policy| policy.applies(name, kind) == wanted)
    };
    let sure = that(Applies::Yes).max_by_key(|policy| policy.priority);
    let before = |policy: &&Policy| sure.is_none_or(|sure| policy.priority >= sure.priority);
    that(Applies::Maybe).filter(before).map(Some).chain([sure]).collect()
}

impl Policy {
    fn read(json: &Value) -> Option<Self> {
        Some(Policy {
            name: json["name"].as_str()?.to_owned(),
            pattern: Regex::new(json["pattern"].as_str()?).ok(),
            applies_to: json["apply-to"].as_str().unwrap_or("all").to_owned(),
            priority: json["priority"].as_i64().unwrap_or(0),
            definition: json["definition"].clone(),
        })
    }

    fn applies(&self, name: &str, kind: Kind<'_>) -> Applies {
        let of_kind = match (self.applies_to.as_str(), kind) {
            ("all", _) | ("queues", Kind::Queue(_)) | ("exchanges", Kind::Exchange) => true,
            // RabbitMQ 3.12 and newer: `classic_queues`, `quorum_queues`, `streams`.
            (word, Kind::Queue(queue_type)) => {
                word.trim_end_matches("_queues") == queue_type
                    || (word == "streams" && queue_type == "stream")
            }
            (_, Kind::Exchange) => false,
        };
        match &self.pattern {
            _ if !of_kind => Applies::No,
            None => Applies::Maybe,
            Some(pattern) if pattern.is_match(name) => Applies::Yes,
            Some(_) => Applies::No,
        }
    }

    /// Returns what it sets, and how it is named where that is told.
    fn setting(&self, kind: &str, word: &str) -> Option<(&Value, String)> {
        let value = self.definition.get(word)?;
        let name = &self.name;
        Some(match self.pattern {
            Some(_) => (value, format!("{kind} `{name}`")),
            None => (value, format!("{kind} `{name}`, whose pattern may match")),
        })
    }
}

const USERS: &str = "policy";
const OPERATORS: &str = "operator policy";

/// Where more than one policy may apply, the worst of what they set is returned.
impl Applied<'_> {
    /// Returns the lowest number that the argument and the policies set.
    pub(crate) fn lowest(&self, argument: &Value, word: &str) -> Option<Setting<u64>> {
        let own = argument.as_u64().map(|value| Setting { value, by: argument_name(word) });
        let set = |candidates: &Candidates<'_>, kind| -> Vec<Setting<u64>> {
            let set = candidates.iter().flatten().filter_map(|policy| policy.setting(kind, word));
            set.filter_map(|(value, by)| Some(Setting { value: value.as_u64()?, by })).collect()
        };
        let policies = [set(&self.users, USERS), set(&self.operators, OPERATORS)];
        own.into_iter().chain(policies.into_iter().flatten()).min_by_key(|set| set.value)
    }

    /// Returns a text that the argument sets, else a policy, if one may do so.
    pub(crate) fn text(&self, argument: &Value, word: &str) -> Option<Setting<String>> {
        self.texts(argument, word).into_iter().flatten().next()
    }

    /// Returns the texts of which one is set: by the argument, else by a policy, else by nothing.
    pub(crate) fn texts(&self, argument: &Value, word: &str) -> Vec<Option<Setting<String>>> {
        if let Some(value) = argument.as_str() {
            return vec![Some(Setting { value: value.to_owned(), by: argument_name(word) })];
        }
        let set = |policy: Option<&Policy>, kind| {
            let (value, by) = policy?.setting(kind, word)?;
            Some(Setting { value: value.as_str()?.to_owned(), by })
        };
        let users = || self.users.iter().map(|policy| set(*policy, USERS));
        let with = |operator: &Option<&Policy>| match set(*operator, OPERATORS) {
            Some(setting) => vec![Some(setting)],
            None => users().collect(),
        };
        self.operators.iter().flat_map(with).collect()
    }
}

fn argument_name(word: &str) -> String {
    format!("argument `x-{word}`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(name: &str, pattern: &str, applies_to: &str, priority: i64) -> Value {
        json!({ "name": name, "pattern": pattern, "apply-to": applies_to, "priority": priority,
                "definition": {} })
    }

    /// Checks which may apply; an empty name stands for none.
    #[track_caller]
    fn check(name: &str, kind: Kind<'_>, expected: &[&str]) {
        let policies = Policies::read(
            &[
                policy("low", "^orders", "all", 1),
                policy("high", r"^orders\.v1$", "queues", 5),
                policy("quorum", "^quorum", "quorum_queues", 0),
                policy("exotic", "^(?!orders)", "exchanges", 1),
                policy("lowest", "^(?!orders)", "exchanges", 0),
            ],
            &[],
        );
        let policies = policies.unwrap();
        let applied: Vec<&str> = policies
            .of(name, kind)
            .users
            .into_iter()
            .map(|policy| policy.map_or("", |policy| policy.name.as_str()))
            .collect();
        assert_eq!(applied, expected, "{name} {kind:?}");
    }

    #[test]
    fn of_the_policies_that_match_the_one_of_the_highest_priority_applies() {
        check("orders.v1", Kind::Queue("classic"), &["high"]);
        check("orders.v12", Kind::Queue("classic"), &["low"]);
        check("invoices", Kind::Queue("classic"), &[""]);
        check("quorum.v1", Kind::Queue("quorum"), &["quorum"]);
        check("quorum.v1", Kind::Queue("classic"), &[""]);
    }

    #[test]
    fn a_pattern_that_only_erlang_knows_may_match_and_may_not() {
        check("anything", Kind::Exchange, &["exotic", "lowest", ""]);
        check("orders.v1", Kind::Exchange, &["exotic", "low"]);
    }

    /// Taken to match, it hid what the policy below it sets, which is the one that applies.
    #[test]
    fn what_may_match_does_not_hide_what_does() {
        let with = |mut policy: Value, definition: Value| {
            policy["definition"] = definition;
            policy
        };
        let ha = with(
            policy("ha", r"^(?!orders\.)", "queues", 10),
            json!({ "max-length": 9, "overflow": "reject-publish" }),
        );
        let short = with(
            policy("short", r"^orders\.", "queues", 0),
            json!({ "message-ttl": 60_000, "max-length": 10, "dead-letter-exchange": "dead" }),
        );
        let policies = Policies::read(&[ha, short], &[]).unwrap();
        let applied = policies.of_queue("orders.v1", "classic");
        let lowest = |word| applied.lowest(&Value::Null, word).map(|set| (set.value, set.by));
        let by_short = || "policy `short`".to_owned();
        assert_eq!(lowest("message-ttl"), Some((60_000, by_short())));
        let by_ha = "policy `ha`, whose pattern may match".to_owned();
        assert_eq!(lowest("max-length"), Some((9, by_ha)));
        let dead = applied.text(&Value::Null, "dead-letter-exchange").unwrap();
        assert_eq!((dead.value, dead.by), ("dead".to_owned(), by_short()));
        let overflows: Vec<_> = applied.texts(&Value::Null, "overflow");
        let overflows: Vec<_> = overflows.into_iter().map(|set| set.map(|it| it.value)).collect();
        assert_eq!(overflows, [Some("reject-publish".to_owned()), None]);
    }

    #[test]
    fn a_list_with_what_is_no_policy_is_not_read() {
        assert!(Policies::read(&[json!({ "name": "p" })], &[]).is_none());
        assert!(Policies::read(&[], &[json!([])]).is_none());
    }
}
