//! The record of the last verification that found an archive sound: one small mutable object, so
//! that whoever watches the archive can tell when it was last proven.
//!
//! Nobody relies on it but alarms: anyone who may write to the archive can write it.

use bytes::Bytes;
use dacapo_event::{Digest, Hasher, Timestamp};
use serde::{Deserialize, Serialize};

use crate::store::Store;
use crate::verify::Report;
use crate::{ArchiveError, chain, layout};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct VerifiedJson {
    format: u32,
    at: String,
    streams: u64,
    segments: u64,
    events: u64,
    heads: String,
}

/// Returns the digest of all heads, to be compared with that of another verification.
pub fn digest_of_heads(report: &Report) -> Digest {
    let mut hasher = Hasher::default();
    for head in &report.heads {
        hasher.update_framed(head.stream.as_str().as_bytes());
        hasher.update_framed(&head.last.to_le_bytes());
        hasher.update_framed(head.digest.to_string().as_bytes());
    }
    hasher.finish()
}

/// Records that the archive was found sound at this time; the caller sees to it that it was.
///
/// # Errors
/// The store fails, or does not allow it.
pub async fn record(store: &dyn Store, at: Timestamp, report: &Report) -> Result<(), ArchiveError> {
    let json = VerifiedJson {
        format: FORMAT,
        at: at.to_string(),
        streams: report.streams,
        segments: report.segments,
        events: report.events,
        heads: digest_of_heads(report).to_string(),
    };
    let bytes: Bytes =
        serde_json::to_vec_pretty(&json).expect("text and numbers become JSON").into();
    Ok(store.replace(&layout::verified(), bytes).await?)
}

/// Returns when the archive was last recorded as sound, or nothing if it never was.
///
/// # Errors
/// The store fails, or the record is not readable.
pub async fn last(store: &dyn Store) -> Result<Option<Timestamp>, ArchiveError> {
    let key = layout::verified();
    let Some(bytes) = chain::get_if_there(store, &key).await? else { return Ok(None) };
    let json: VerifiedJson =
        serde_json::from_slice(&bytes).map_err(|error| ArchiveError::damaged(&key, error))?;
    let at = json.at.parse().map_err(|_| ArchiveError::damaged(&key, "its `at` is no time"))?;
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ByteRange;
    use crate::testing::{clock, store_of, written};
    use crate::verify::verify;

    #[test]
    fn what_was_recorded_is_read_back_and_is_no_part_of_the_archive() {
        let objects = written(&[("shop", 2)], "word");
        crate::testing::block_on(async {
            let store = store_of(&objects).await;
            assert_eq!(last(&*store).await.unwrap(), None);
            for _ in 0..2 {
                let report = verify(store.clone(), &[], |_| {}).await.unwrap();
                assert_eq!((&report.problems, &report.notes), (&vec![], &vec![]));
                record(&*store, clock(), &report).await.unwrap();
                assert_eq!(last(&*store).await.unwrap(), Some(clock()));
            }
            let bytes = store.get(&layout::verified(), ByteRange::Full).await.unwrap();
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!((&json["segments"], &json["events"]), (&2.into(), &4.into()));
        });
    }
}
