//! What the kernel does for us if it can: each offload is probed when the data plane starts, can be
//! left out by choice, and is switched off for good when the kernel says so later. It can be held for a time, too.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use overlay_wire::vnet::GsoKind;

/// One offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// The overlay device hands over and takes TCP super-packets, and leaves checksums to us.
    Tso,
    /// The overlay device hands over and takes UDP super-packets (Linux 6.2).
    Uso,
    /// UDP sockets take runs of datagrams and segment them late (`UDP_SEGMENT`, Linux 4.18).
    Gso,
    /// UDP sockets deliver runs of datagrams as one (`UDP_GRO`, Linux 5.0).
    Gro,
    /// TCP super-packets leave whole, as a kernel's VXLAN device sends them, to peers that do so (a TAP with
    /// tunnel GSO, Linux 6.17, on an underlay that passes them).
    TunnelGso,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tso, Self::Uso, Self::Gso, Self::Gro, Self::TunnelGso];

    /// The one by which the overlay device takes super-packets of that kind.
    #[must_use]
    pub const fn of(kind: GsoKind) -> Self {
        match kind {
            GsoKind::Udp => Self::Uso,
            GsoKind::Tcp4 | GsoKind::Tcp6 => Self::Tso,
        }
    }

    /// Its name on the command line and in `overlayctl`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Uso => "uso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::TunnelGso => "tunnel-gso",
        }
    }
}

/// Which offloads are on. Shared by the workers and whoever wants to know.
#[derive(Debug, Default)]
pub struct Offloads([AtomicU8; Offload::ALL.len()]);

const OFF: u8 = 0;
const ON: u8 = 1;
/// To be had, and not to be used now.
const HELD: u8 = 2;

impl Offloads {
    /// Those of `wanted`, as long as nobody switches one off.
    #[must_use]
    pub fn new(wanted: &[Offload]) -> Self {
        let offloads = Self::default();
        for offload in wanted {
            offloads.0[*offload as usize].store(ON, Relaxed);
        }
        offloads
    }

    /// Whether `offload` is on.
    #[must_use]
    pub fn is_on(&self, offload: Offload) -> bool {
        self.0[offload as usize].load(Relaxed) == ON
    }

    /// Whether `offload` is on, or would be if nobody held it.
    #[must_use]
    pub fn is_to_be_had(&self, offload: Offload) -> bool {
        self.0[offload as usize].load(Relaxed) != OFF
    }

    /// Switches `offload` off for good.
    pub fn switch_off(&self, offload: Offload) {
        self.0[offload as usize].store(OFF, Relaxed);
    }

    /// Has `offload` not used until it is released; one that is off stays off.
    pub fn hold(&self, offload: Offload) {
        let _ = self.0[offload as usize].compare_exchange(ON, HELD, Relaxed, Relaxed);
    }

    /// Has `offload` used again.
    pub fn release(&self, offload: Offload) {
        let _ = self.0[offload as usize].compare_exchange(HELD, ON, Relaxed, Relaxed);
    }
}

/// Whether `error`, from sending a run, says that runs cannot be sent by this socket at all:
/// `EIO` when the interface cannot fill checksums and the kernel cannot do it instead (before
/// Linux 6.11, `udp_send_skb` in `net/ipv4/udp.c`), `EINVAL` when a run is not understood (before
/// 4.18, or with checksums off). `EMSGSIZE` only says that this run's datagrams exceed the path's
/// MTU.
#[must_use]
pub fn is_gso_broken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// Whether `error`, from writing a super-packet to the TAP that sends it whole, says that this cannot be any
/// more: `EINVAL` for a header that is not understood, `EIO` from a device that is down, `EBADFD` from one
/// that has been deleted (`tun_get_user`, drivers/net/tun.c).
#[must_use]
pub fn is_tunnel_gso_broken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EBADFD))
}

/// Whether `error`, from writing a super-packet to the overlay device, says that the device does not
/// know that kind: `EINVAL` from `virtio_net_hdr_to_skb` (`linux/virtio_net.h`; UDP before 6.2).
#[must_use]
pub fn is_super_packet_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_go_off_one_by_one() {
        let offloads = Offloads::new(&[Offload::Gso, Offload::Tso]);
        let on = |offloads: &Offloads| Offload::ALL.map(|offload| offloads.is_on(offload));
        assert_eq!(on(&offloads), [true, false, true, false, false]);
        offloads.switch_off(Offload::Gso);
        assert_eq!(on(&offloads), [true, false, false, false, false]);
    }

    #[test]
    fn what_is_held_comes_back_and_what_is_off_does_not() {
        let offloads = Offloads::new(&[Offload::TunnelGso]);
        let is = || (offloads.is_on(Offload::TunnelGso), offloads.is_to_be_had(Offload::TunnelGso));
        offloads.hold(Offload::TunnelGso);
        assert_eq!(is(), (false, true));
        offloads.release(Offload::TunnelGso);
        assert_eq!(is(), (true, true));
        offloads.hold(Offload::TunnelGso);
        offloads.switch_off(Offload::TunnelGso);
        offloads.release(Offload::TunnelGso);
        assert_eq!(is(), (false, false));
    }
}
