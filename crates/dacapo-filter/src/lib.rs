//! Selections: which events are wanted, decided for one event, and bounded for many
//! events that nobody has read yet.
//!
//! Pure: no I/O, no clock, no async. The only user of CEL (`cel`) and of protobuf
//! descriptors (`prost-reflect`).
//!
//! Invariant: pruning errs on the side of reading. What [`Selection::prune`] calls
//! [`Verdict::None`] holds no selected event, and a [`Count`] that says it is exact is.

mod bounds;
mod error;
mod expression;
mod prune;
mod runs;
mod selection;
mod spec;
mod topic;
mod when;

pub use bounds::{Bounds, Place, TextBounds, TextFacts};
pub use error::{FilterError, WhereError};
pub use expression::{BodyEncoder, VARIABLES};
pub use prune::{Count, Verdict};
pub use selection::{ColumnsNeeded, Selection};
pub use spec::{Binding, SelectionSpec, SequenceRange, WhereErrors};
pub use topic::TopicPattern;
pub use when::parse_time;
