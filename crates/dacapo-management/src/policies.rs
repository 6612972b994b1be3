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
    /// Absent: the pattern is not one of ours (Erlang's has more), and so taken to match.
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

/// What applies to one thing: of each kind of policy the one of the highest priority.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied<'a> {
    user: Option<&'a Policy>,
    operator: Option<&'a Policy>,
}

impl Policies {
    pub(crate) fn read(users: &[Value], operators: &[Value]) -> Self {
        let read = |list: &[Value]| list.iter().filter_map(Policy::read).collect();
        Policies { users: read(users), operators: read(operators) }
    }

    pub(crate) fn of_queue(&self, name: &str, queue_type: &str) -> Applied<'_> {
        self.of(name, Kind::Queue(queue_type))
    }

    pub(crate) fn of(&self, name: &str, kind: Kind<'_>) -> Applied<'_> {
        Applied {
            user: highest(&self.users, name, kind),
            operator: highest(&self.operators, name, kind),
        }
    }
}

fn highest<'a>(policies: &'a [Policy], name: &str, kind: Kind<'_>) -> Option<&'a Policy> {
    let matching = policies.iter().filter(|policy| policy.applies(name, kind));
    matching.max_by_key(|policy| policy.priority)
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

    fn applies(&self, name: &str, kind: Kind<'_>) -> bool {
        let of_kind = match (self.applies_to.as_str(), kind) {
            ("all", _) | ("queues", Kind::Queue(_)) | ("exchanges", Kind::Exchange) => true,
            // RabbitMQ 3.12 and newer: `classic_queues`, `quorum_queues`, `streams`.
            (word, Kind::Queue(queue_type)) => {
                word.trim_end_matches("_queues") == queue_type
                    || (word == "streams" && queue_type == "stream")
            }
            (_, Kind::Exchange) => false,
        };
        of_kind && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(name))
    }
}

impl Applied<'_> {
    /// Returns the lowest number that the argument and the policies set.
    pub(crate) fn lowest(&self, argument: &Value, word: &str) -> Option<Setting<u64>> {
        let own = argument.as_u64().map(|value| Setting { value, by: argument_name(word) });
        let set = |policy: Option<&Policy>, kind: &str| {
            let policy = policy?;
            let by = format!("{kind} `{}`", policy.name);
            policy.definition[word].as_u64().map(|value| Setting { value, by })
        };
        let all = [own, set(self.user, "policy"), set(self.operator, "operator policy")];
        all.into_iter().flatten().min_by_key(|set| set.value)
    }

    /// Returns the text that the argument sets, else a policy.
    pub(crate) fn text(&self, argument: &Value, word: &str) -> Option<Setting<String>> {
        let set =
            |value: &Value, by: String| Some(Setting { value: value.as_str()?.to_owned(), by });
        let by = |policy: Option<&Policy>, kind: &str| {
            policy.and_then(|policy| {
                set(&policy.definition[word], format!("{kind} `{}`", policy.name))
            })
        };
        set(argument, argument_name(word))
            .or_else(|| by(self.operator, "operator policy"))
            .or_else(|| by(self.user, "policy"))
    }
}

fn argument_name(word: &str) -> String {
    format!("argument `x-{word}`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(name: &str, kind: Kind<'_>, expected: Option<&str>) {
        let policy = |name: &str, pattern: &str, applies_to: &str, priority: i64| {
            json!({ "name": name, "pattern": pattern, "apply-to": applies_to,
                    "priority": priority, "definition": {} })
        };
        let policies = Policies::read(
            &[
                policy("low", "^orders", "all", 1),
                policy("high", r"^orders\.v1$", "queues", 5),
                policy("quorum", "^quorum", "quorum_queues", 0),
                policy("exotic", "^orders(?!x)-only$", "exchanges", -1),
            ],
            &[],
        );
        let applied = policies.of(name, kind).user.map(|policy| policy.name.as_str());
        assert_eq!(applied, expected, "{name} {kind:?}");
    }

    #[test]
    fn of_the_policies_that_match_the_one_of_the_highest_priority_applies() {
        check("orders.v1", Kind::Queue("classic"), Some("high"));
        check("orders.v12", Kind::Queue("classic"), Some("low"));
        check("invoices", Kind::Queue("classic"), None);
        check("orders.v1", Kind::Exchange, Some("low"));
        check("quorum.v1", Kind::Queue("quorum"), Some("quorum"));
        check("quorum.v1", Kind::Queue("classic"), None);
    }

    #[test]
    fn a_pattern_that_only_erlang_knows_is_taken_to_match() {
        check("anything", Kind::Exchange, Some("exotic"));
    }
}
