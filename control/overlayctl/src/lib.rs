//! The operator's tool: asks the daemon of this host, looks at what it stands on, and cleans up.

pub mod arguments;
pub mod ask;
pub mod carries;
pub mod cleanup;
pub mod diagnose;
