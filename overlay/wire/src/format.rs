//! The two encapsulations.

use crate::ip::Version;
use crate::mac::MacAddr;
use crate::vxlan;

/// How inner packets stand in the underlay's UDP datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// flannel's `udp` backend: the bare IP packet is the payload. Each end counts as a hop.
    FlannelUdp,
    /// VXLAN (RFC 7348): the payload is a VXLAN header and an Ethernet frame from VTEP to VTEP.
    Vxlan {
        /// The network, 24 bits.
        vni: u32,
        /// The address this node's end of the tunnel answers to.
        vtep_mac: MacAddr,
    },
}

impl Format {
    /// Bytes in front of the inner packet in a datagram.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        match self {
            Self::FlannelUdp => 0,
            Self::Vxlan { .. } => vxlan::HEADER_LEN,
        }
    }

    /// Bytes of the underlay's MTU that the encapsulation takes, with an outer header of that version.
    #[inline]
    #[must_use]
    pub const fn overhead(&self, outer: Version) -> u32 {
        (outer.header_len() + 8 + self.header_len()) as u32
    }
}
