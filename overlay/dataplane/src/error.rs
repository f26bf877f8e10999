//! What can go wrong while the data plane is set up. Afterwards packets fail, not the forwarder.

use std::io;

/// A step of the set-up failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {call} {object}: {source} ({remedy})")]
pub struct SetupError {
    /// What was tried, with its system call in plain words.
    pub call: &'static str,
    /// On what: a device, an address.
    pub object: String,
    /// What an operator can do about it.
    pub remedy: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}
