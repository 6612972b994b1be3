//! Replays on disk: found, locked, and never half-written.
