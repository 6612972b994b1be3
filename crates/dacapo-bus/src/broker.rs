//! What a broker is like: plain data, whoever asked for it.

/// A node of a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub runs: bool,
    /// Free disk in bytes, where the node can tell.
    pub disk_free: Option<u64>,
    /// With no more than this free, in bytes, the node blocks publishers.
    pub disk_limit: Option<u64>,
    /// Whether it blocks publishers for want of disk.
    pub disk_alarm: bool,
    /// Whether it blocks publishers for want of memory.
    pub memory_alarm: bool,
}
