//! Virtual hosts that are made for a while, and what a queue has that is not acked.

use std::time::Duration;

use dacapo_event::percent::encode;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::ask::tags;
use crate::{Management, ManagementError};

/// What nobody has acked of a queue, by the plugin's statistics, which are some seconds old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unacked {
    /// Messages that wait.
    pub ready: u64,
    /// Messages that were delivered and are not acked.
    pub unacked: u64,
}

/// How often a virtual host that is there after it was deleted is deleted again: what was on its way to
/// it (a declaration, its own making) is over by then.
const DELETED_TIMES_MAX: u32 = 5;

const DELETED_AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Management {
    /// Makes a virtual host in which `user` may do everything; the account needs the tag
    /// `administrator`.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, a virtual host of that name there
    /// already, or no such user. Whoever gets one deletes the virtual host: it may have been made.
    pub async fn make_vhost(&self, vhost: &str, user: &str) -> Result<(), ManagementError> {
        let path = format!("vhosts/{}", encode(vhost));
        let about = json!({ "description": "made by dacapo drill, and deleted after it" });
        match self.change(Method::PUT, &path, &about).await? {
            StatusCode::CREATED => {}
            status => return Err(self.strange(&path, format!("it is there already ({status})"))),
        }
        let path = format!("permissions/{}/{}", encode(vhost), encode(user));
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        match self.change(Method::PUT, &path, &all).await? {
            StatusCode::NOT_FOUND => Err(self.strange(&path, "there is no such user")),
            _ => Ok(()),
        }
    }

    /// Deletes a virtual host with all that is in it, and makes sure that it is gone; one that is not
    /// there is no error.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, or it is there all the same.
    pub async fn delete_vhost(&self, vhost: &str) -> Result<(), ManagementError> {
        let path = format!("vhosts/{}", encode(vhost));
        for _ in 0..DELETED_TIMES_MAX {
            self.change(Method::DELETE, &path, &Value::Null).await?;
            if self.change(Method::GET, &path, &Value::Null).await? == StatusCode::NOT_FOUND {
                return Ok(());
            }
            tokio::time::sleep(DELETED_AGAIN_AFTER).await;
        }
        Err(self.strange(&path, "it was deleted, and is there all the same"))
    }

    /// Returns what a queue has that is not acked, or nothing while the plugin has no statistics of it;
    /// the user needs the tag `monitoring` and access to the virtual host.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, no such queue. Cancel-safe.
    pub async fn unacked(
        &self,
        vhost: &str,
        queue: &str,
    ) -> Result<Option<Unacked>, ManagementError> {
        let columns = "columns=messages_ready,messages_unacknowledged";
        let path = format!("queues/{}/{}?{columns}", encode(vhost), encode(queue));
        Ok(read(&self.get(&path, tags::MONITORING).await?))
    }

    /// Returns how many messages a queue has in all, dead letters that it hands on among them, or
    /// nothing while the plugin has no statistics of it; the user needs the tag `monitoring` and access
    /// to the virtual host.
    ///
    /// # Errors
    /// No connection or no answer in time, the account refused, no such queue. Cancel-safe.
    pub async fn messages(&self, vhost: &str, queue: &str) -> Result<Option<u64>, ManagementError> {
        let path = format!("queues/{}/{}?columns=messages", encode(vhost), encode(queue));
        Ok(self.get(&path, tags::MONITORING).await?["messages"].as_u64())
    }
}

fn read(answer: &Value) -> Option<Unacked> {
    Some(Unacked {
        ready: answer["messages_ready"].as_u64()?,
        unacked: answer["messages_unacknowledged"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_without_statistics_yet_is_not_an_empty_one() {
        let answer = json!({ "messages_ready": 2, "messages_unacknowledged": 1 });
        assert_eq!(read(&answer), Some(Unacked { ready: 2, unacked: 1 }));
        assert_eq!(read(&json!({})), None);
        assert_eq!(read(&json!({ "messages_ready": 0 })), None);
        assert_eq!(read(&json!([])), None);
    }
}
