//! Whole replays on the bus in memory: completed, stopped, killed, refused.
