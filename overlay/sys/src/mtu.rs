//! What a socket does about packets that may be larger than the path to their destination takes (`ip(7)`, `ipv6(7)`).

use std::io;
use std::os::fd::BorrowedFd;

use crate::sockopt::OfFamily;

/// When packets say that they must not be cut on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DontFragment {
    /// Never: what is larger than the path takes is cut, by us if we know and else on the way. (No router cuts IPv6.)
    Never,
    /// Always, and up to the interface's MTU, whatever is known of the path (Linux 2.6.22).
    Always,
}

/// Decides about the packets of `socket`.
///
/// # Errors
/// None on Linux, for a socket of IP.
pub fn set_dont_fragment(socket: BorrowedFd<'_>, when: DontFragment) -> io::Result<()> {
    let value = match when {
        DontFragment::Never => libc::IP_PMTUDISC_DONT,
        DontFragment::Always => libc::IP_PMTUDISC_PROBE,
    };
    OfFamily { v4: libc::IP_MTU_DISCOVER, v6: libc::IPV6_MTU_DISCOVER }.set(socket, value)
}

// One value means the same in both families.
const _: () = assert!(
    libc::IP_PMTUDISC_DONT == libc::IPV6_PMTUDISC_DONT
        && libc::IP_PMTUDISC_PROBE == libc::IPV6_PMTUDISC_PROBE
);

/// The largest packet, in bytes, that the kernel takes the path of a connected socket for.
///
/// # Errors
/// `ENOTCONN`.
pub fn path_mtu(socket: BorrowedFd<'_>) -> io::Result<u32> {
    OfFamily { v4: libc::IP_MTU, v6: libc::IPV6_MTU }.get(socket).map(libc::c_int::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_of_both_families_know_their_path_and_may_be_held_to_it() {
        let families = [(IpAddr::V4(Ipv4Addr::LOCALHOST), 65_535), (IpAddr::V6(Ipv6Addr::LOCALHOST), 65_536)];
        for (address, mtu) in families {
            let receiver = UdpSocket::bind((address, 0)).unwrap();
            let sender = UdpSocket::bind((address, 0)).unwrap();
            sender.connect(receiver.local_addr().unwrap()).unwrap();
            assert_eq!(path_mtu(sender.as_fd()).unwrap(), mtu, "{address}");
            // With the headers of IPv6 it is longer than that.
            let payload = vec![0; 65_507];
            for (when, passes) in [(DontFragment::Never, true), (DontFragment::Always, address.is_ipv4())] {
                set_dont_fragment(sender.as_fd(), when).unwrap();
                assert_eq!(sender.send(&payload).is_ok(), passes, "{address}, {when:?}");
            }
        }
    }
}
