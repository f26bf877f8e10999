//! Why the daemon ends.

use overlay_flags::ConnectError;
use overlay_host::HostError;
use overlay_host::iface::IfaceError;
use overlay_leases::membership::MembershipError;
use overlay_leases::store::StoreError;

/// Why the daemon cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No interface to the other nodes.
    #[error(transparent)]
    Iface(#[from] IfaceError),
    /// The store cannot be used at all.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Nor can it with the certificates that there are.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no network that this host could run, and none that it runs.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The host cannot be watched.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// A worker has given up.
    #[error("{0}")]
    Worker(String),
}
