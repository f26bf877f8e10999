//! Explicit congestion notification across the tunnel, as the kernel's own tunnels have it (RFC 6040;
//! `INET_ECN_encapsulate` and `INET_ECN_decapsulate`, `net/inet_ecn.h`).

use crate::drops::DropReason;

/// The lowest two bits of an IPv4 header's type of service or an IPv6 header's traffic class (RFC 3168).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Ecn {
    /// The sender learns of congestion by losses only.
    #[default]
    NotEct = 0,
    /// The sender takes marks, and has set the codepoint 1.
    Ect1 = 1,
    /// The sender takes marks, and has set the codepoint 0.
    Ect0 = 2,
    /// A router has marked the packet.
    Ce = 3,
}

impl Ecn {
    /// That of a type of service or traffic class.
    #[inline]
    #[must_use]
    pub const fn of_tos(tos: u8) -> Self {
        match tos & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// That of the packet that `bytes` begin with; `NotEct` if it is none.
    #[inline]
    #[must_use]
    pub fn of_packet(bytes: &[u8]) -> Self {
        match bytes {
            [first, second, ..] if first >> 4 == 4 => Self::of_tos(*second),
            [first, second, ..] if first >> 4 == 6 => Self::of_tos(second >> 4),
            _ => Self::NotEct,
        }
    }

    /// What stands outside a packet that has this inside. A mark stays inside: one outside is to tell of the tunnel.
    #[inline]
    #[must_use]
    pub const fn outside(self) -> Self {
        match self {
            Self::Ce => Self::Ect0,
            other => other,
        }
    }

    /// What a packet has from now on that had this inside the tunnel, and `outer` outside.
    ///
    /// # Errors
    /// [`DropReason::Congestion`] for a mark whose sender would not understand it: to it, the loss is the mark.
    #[inline]
    pub const fn received(self, outer: Self) -> Result<Self, DropReason> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => Err(DropReason::Congestion),
            (Self::Ect0 | Self::Ect1 | Self::Ce, Self::Ce) => Ok(Self::Ce),
            (Self::Ect0, Self::Ect1) => Ok(Self::Ect1),
            (inner, _) => Ok(inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ecn::{Ce, Ect0, Ect1, NotEct};
    use super::*;

    #[test]
    fn what_comes_out_is_that_of_rfc_6040() {
        // Figure 4 there: by inner codepoint, what comes out for an outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce); 4]),
        ];
        for (inner, expected) in table {
            for (outer, expected) in [NotEct, Ect0, Ect1, Ce].into_iter().zip(expected) {
                assert_eq!(inner.received(outer).ok(), expected, "{inner:?} in {outer:?}");
            }
        }
    }

    #[test]
    fn what_goes_out_is_what_the_kernels_vxlan_sends() {
        assert_eq!([NotEct, Ect0, Ect1, Ce].map(Ecn::outside), [NotEct, Ect0, Ect1, Ect0]);
    }

    #[test]
    fn both_versions_have_it() {
        for (tos, ecn) in (0..4).zip([NotEct, Ect1, Ect0, Ce]) {
            assert_eq!(Ecn::of_tos(0xb8 | tos), ecn);
            assert_eq!(Ecn::of_packet(&[0x45, 0xb8 | tos]), ecn);
            assert_eq!(Ecn::of_packet(&[0x6b, 0x8f | tos << 4]), ecn);
            assert_eq!(ecn as u8, tos);
        }
        assert_eq!(Ecn::of_packet(&[0x45]), NotEct);
        assert_eq!(Ecn::of_packet(&[0, 3]), NotEct);
    }
}
