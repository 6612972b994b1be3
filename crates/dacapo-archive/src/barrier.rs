//! What archivers answered to a barrier (docs/decisions/0006-barriers.md): one small write-once
//! object for each stream, which is no part of the stream.

use bytes::Bytes;
use dacapo_event::barrier::BarrierId;
use dacapo_event::{Sequence, StreamName, Timestamp};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::store::{ObjectKey, Put, Store};
use crate::{ArchiveError, chain, layout};

/// Up to where a stream holds everything that came before a barrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The stream.
    pub stream: StreamName,
    /// The sequence of the last event before the barrier; 0 if there is none.
    pub sequence: Sequence,
    /// When the archiver answered.
    pub answered_at: Timestamp,
}

#[derive(Clone, Serialize, Deserialize)]
struct ReachedJson {
    format: u32,
    barrier: String,
    stream: String,
    last_sequence: u64,
    answered_at: String,
}

/// Puts the answer of a stream; one that is there already is left, for it says the same or less,
/// and what it says is durable.
///
/// # Errors
/// The store fails.
pub async fn answer(
    store: &dyn Store,
    barrier: &BarrierId,
    reached: &Reached,
) -> Result<(), ArchiveError> {
    let json = ReachedJson {
        format: chain::JSON_FORMAT,
        barrier: barrier.to_string(),
        stream: reached.stream.to_string(),
        last_sequence: reached.sequence,
        answered_at: reached.answered_at.to_string(),
    };
    let key = layout::barrier(barrier, &reached.stream);
    match store.put_new(&key, chain::to_json(&json)).await? {
        Put::Created | Put::Exists => Ok(()),
    }
}

/// Returns the answers to a barrier that are there, by stream; each is there whole or not at all.
///
/// # Errors
/// The store fails, or an answer is not readable, or that of another barrier or stream.
pub async fn reached(store: &dyn Store, barrier: &BarrierId) -> Result<Vec<Reached>, ArchiveError> {
    let listed = chain::list(store, layout::barriers_of(barrier), None);
    let named = listed.try_filter_map(|object| async move {
        Ok(layout::parse_barrier(&object.key).map(|(_, stream)| (object.key, stream)))
    });
    let answers = named.and_then(|(key, stream)| async move {
        let bytes = chain::record(store, &key).await?;
        from_bytes(&key, &bytes, barrier, stream)
    });
    answers.try_collect().await
}

fn from_bytes(
    key: &ObjectKey,
    bytes: &Bytes,
    barrier: &BarrierId,
    stream: StreamName,
) -> Result<Reached, ArchiveError> {
    let json: ReachedJson = chain::from_json(key, bytes)?;
    chain::check_format(key, json.format)?;
    if json.barrier != barrier.as_str() || json.stream != stream.as_str() {
        let problem = format!("it is the answer of `{}` to `{}`", json.stream, json.barrier);
        return Err(ArchiveError::damaged(key, problem));
    }
    let unreadable =
        |what: &str| ArchiveError::damaged(key, format!("its `{what}` is not readable"));
    Ok(Reached {
        stream,
        sequence: chain::sequence(json.last_sequence).ok_or_else(|| unreadable("last_sequence"))?,
        answered_at: json.answered_at.parse().map_err(|_| unreadable("answered_at"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn id(text: &str) -> BarrierId {
        text.parse().unwrap()
    }

    fn at(stream: &str, sequence: Sequence) -> Reached {
        Reached {
            stream: stream.parse().unwrap(),
            sequence,
            answered_at: Timestamp::from_secs(1_764_150_000),
        }
    }

    #[tokio::test]
    async fn the_answers_of_one_barrier_are_found_and_the_first_of_a_stream_stays() {
        let store = MemoryStore::new();
        for (barrier, reached) in [("b", at("y", 7)), ("b", at("x", 0)), ("b.2", at("x", 9))] {
            answer(&store, &id(barrier), &reached).await.unwrap();
        }
        answer(&store, &id("b"), &at("y", 8)).await.unwrap();
        assert_eq!(reached(&store, &id("b")).await.unwrap(), [at("x", 0), at("y", 7)]);
        assert_eq!(reached(&store, &id("none")).await.unwrap(), []);
    }

    #[track_caller]
    fn check_refused(json: &str, problem: &str) {
        let key = layout::barrier(&id("b"), &"x".parse().unwrap());
        let bytes = Bytes::copy_from_slice(json.as_bytes());
        let refused = from_bytes(&key, &bytes, &id("b"), "x".parse().unwrap()).unwrap_err();
        assert!(refused.to_string().contains(problem), "{refused}");
    }

    #[test]
    fn an_answer_that_is_not_one_is_named() {
        let whole = r#"{"format": 1, "barrier": "b", "stream": "x", "last_sequence": 3,
            "answered_at": "2026-11-26T10:00:00Z"}"#;
        check_refused("{", "barriers/b/x.json");
        check_refused(&whole.replace("\"b\"", "\"c\""), "the answer of `x` to `c`");
        check_refused(&whole.replace("\"x\"", "\"y\""), "the answer of `y` to `b`");
        check_refused(&whole.replace(": 3", ": 18446744073709551615"), "last_sequence");
        check_refused(&whole.replace("2026-11-26T", ""), "answered_at");
        check_refused(&whole.replace("\"format\": 1", "\"format\": 2"), "2");
    }
}
