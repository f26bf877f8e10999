//! The kinds of backend.

use std::fmt;

/// The kinds of backend that this daemon has. Only nodes of one kind understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Bare IP packets in UDP.
    Udp,
    /// VXLAN, RFC 7348.
    Vxlan,
    /// Plain routes between nodes on one link.
    HostGw,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        })
    }
}

/// The largest VNI: it has 24 bits (RFC 7348, section 5).
pub const MAX_VNI: u32 = 0xff_ffff;
/// flannel's VNI where nothing is said.
pub const DEFAULT_VNI: u32 = 1;
