//! What the headers of both IP versions say, as far as packets are forwarded, cut or joined by it.

use std::net::IpAddr;

/// The version of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// That of the packets from and to `address`.
    #[inline]
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The other one.
    #[inline]
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The length of its plain header.
    #[inline]
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// What stands in front of the payload, as far as it is needed to forward, cut or join packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) version: Version,
    /// Where the payload begins: behind options and extension headers.
    pub(crate) len: usize,
    /// What the payload is.
    pub(crate) protocol: u8,
    pub(crate) fragment: Fragment,
    /// Whether a routing header names further places to go to: the destination that checksums
    /// cover is not the one in the header then.
    pub(crate) routed: bool,
}

/// Which part of its packet a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// All of it.
    Whole,
    /// The first, which has the transport header.
    First,
    /// Any other.
    Later,
}

impl Fragment {
    /// What `offset` and the flag for `more` fragments mean.
    #[inline]
    pub(crate) fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}
