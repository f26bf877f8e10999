//! The VTEP MAC of a node whose lease names none yet.

use std::net::Ipv4Addr;

use overlay_wire::MacAddr;

/// The VTEP MAC of a node that has none yet. It follows from what makes the node, so that it is the
/// same after every restart without being kept anywhere: unicast and locally administered (IEEE
/// 802, bit 1 of the first byte), the rest a hash (FNV-1a) of public address and VNI.
#[must_use]
pub fn derive_vtep_mac(public_ip: Ipv4Addr, vni: u32) -> MacAddr {
    let input = public_ip.octets().into_iter().chain(vni.to_be_bytes());
    let hash = input.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    MacAddr([a & 0xfc | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_mac_is_stable_local_and_differs_by_node_and_network() {
        let mac = |last, vni| derive_vtep_mac(Ipv4Addr::new(192, 168, 1, last), vni);
        // Fixed for ever: a node must not change its address with an upgrade.
        assert_eq!(mac(12, 1).to_string(), "8e:ea:23:ac:43:63");
        assert_ne!(mac(12, 1), mac(13, 1));
        assert_ne!(mac(12, 1), mac(12, 2));
        for last in 0..=255 {
            assert!(mac(last, 1).is_unicast());
            assert_eq!(mac(last, 1).0[0] & 2, 2);
        }
    }
}
