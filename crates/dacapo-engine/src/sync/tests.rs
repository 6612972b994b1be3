//! The index follows the archive, and says what it could not read.
