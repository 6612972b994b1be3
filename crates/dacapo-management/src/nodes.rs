//! How the nodes are.

use dacapo_bus::broker::Node;
use serde_json::Value;

use crate::ask::tags;
use crate::{Management, ManagementError};

/// Only these columns, because a node has hundreds.
const PATH: &str = "nodes?columns=name,running,disk_free,disk_free_limit,disk_free_alarm,mem_alarm";

impl Management {
    /// Returns the broker's nodes; the user needs the tag `monitoring`.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, an answer of another form.
    /// Cancel-safe.
    pub async fn nodes(&self) -> Result<Vec<Node>, ManagementError> {
        let answer = self.get(PATH, tags::MONITORING).await?;
        read(&answer).ok_or_else(|| self.strange(PATH, "it is no list of nodes"))
    }
}

fn read(answer: &Value) -> Option<Vec<Node>> {
    let node = |node: &Value| {
        Some(Node {
            name: node["name"].as_str()?.to_owned(),
            runs: node["running"] == true,
            disk_free: node["disk_free"].as_u64(),
            disk_limit: node["disk_free_limit"].as_u64(),
            disk_alarm: node["disk_free_alarm"].as_bool(),
            memory_alarm: node["mem_alarm"].as_bool(),
        })
    };
    answer.as_array()?.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_is_down_or_cannot_tell_its_disk_is_read_as_such() {
        let answer = json!([
            { "name": "rabbit@a", "running": true, "disk_free": 900, "disk_free_limit": 50,
              "disk_free_alarm": false, "mem_alarm": true },
            { "name": "rabbit@b", "running": false },
            { "name": "rabbit@c", "running": true, "disk_free": "NaN", "disk_free_limit": 50,
              "mem_alarm": false },
        ]);
        let node = |name: &str, runs| Node { name: name.to_owned(), runs, ..Node::default() };
        let (disk_free, disk_limit) = (Some(900), Some(50));
        let expected = [
            Node {
                disk_free,
                disk_limit,
                disk_alarm: Some(false),
                memory_alarm: Some(true),
                ..node("rabbit@a", true)
            },
            node("rabbit@b", false),
            Node { disk_limit, memory_alarm: Some(false), ..node("rabbit@c", true) },
        ];
        assert_eq!(read(&answer).unwrap(), expected);
        assert_eq!(read(&json!({})), None);
        assert_eq!(read(&json!([{ "running": true }])), None);
    }
}
