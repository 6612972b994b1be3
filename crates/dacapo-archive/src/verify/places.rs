//! Lists where there is something to be read of a stream: its chain and its outputs of compaction,
//! side by side in order of sequence.

use std::pin::Pin;
use std::sync::Arc;

use dacapo_event::{Sequence, StreamName};
use futures::stream::{Peekable, StreamExt, TryStreamExt};
use futures::{Stream, future, stream};

use super::Surveyed;
use crate::store::Store;
use crate::{ArchiveError, chain, layout};

/// A place in a stream where there is something to be read.
pub(super) enum Place {
    /// An output that begins there.
    Output(Sequence),
    /// A segment that begins there, and how far it goes if its entry cannot be read: to the next
    /// one, or to where the head says.
    Segment(Sequence, Option<Sequence>),
}

/// Lists the places of a stream by first sequence, that of an output before that of the first
/// segment that it was made of.
pub(super) fn places<'a>(
    store: &'a Arc<dyn Store>,
    name: &'a StreamName,
    surveyed: &'a Surveyed,
) -> impl Stream<Item = Result<Place, ArchiveError>> + Send + 'a {
    let last = surveyed.last_entry;
    let segments =
        chain::list_placed(&**store, layout::chain_of(name), None, layout::parse_chain_entry)
            .map_ok(|(_, first)| first)
            .try_take_while(move |first| future::ok(*first <= last))
            .peekable();
    let prefix = layout::compactions_of(name);
    let outputs = chain::list_placed(&**store, prefix, None, layout::parse_compaction_entry)
        .map_ok(|(_, first)| first)
        .peekable();
    let end = surveyed.head.as_ref().map(|head| head.last);
    let both = (Box::pin(segments), Box::pin(outputs));
    stream::unfold(both, move |(mut segments, mut outputs)| async move {
        let segment = first_of(segments.as_mut()).await;
        let output = first_of(outputs.as_mut()).await;
        let is_output = match (output, segment) {
            (Some(output), Some(segment)) => output <= segment,
            (output, _) => output.is_some(),
        };
        let place = match is_output {
            true => outputs.next().await?.map(Place::Output),
            false => match segments.next().await? {
                Ok(first) => {
                    let until = match segments.as_mut().peek().await {
                        Some(Ok(next)) => Some(next.saturating_sub(1)),
                        _ => end,
                    };
                    Ok(Place::Segment(first, until.filter(|until| *until >= first)))
                }
                Err(error) => Err(error),
            },
        };
        Some((place, (segments, outputs)))
    })
}

/// Returns the next first sequence; 0 for an error, so that it comes first.
async fn first_of<S>(listed: Pin<&mut Peekable<S>>) -> Option<Sequence>
where
    S: Stream<Item = Result<Sequence, ArchiveError>>,
{
    listed.peek().await.map(|first| *first.as_ref().unwrap_or(&0))
}
