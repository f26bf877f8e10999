//! VXLAN (RFC 7348): an 8-byte header and the inner Ethernet header, always built and checked
//! together, since the frames that flannel's nodes exchange are only ever IP from VTEP to VTEP.

use crate::drops::DropReason;
use crate::ip::Version;
use crate::mac::MacAddr;

/// Length of the VXLAN header and the inner Ethernet header.
pub const HEADER_LEN: usize = 8 + 14;

/// Flag bit I: the VNI is valid. Other bits are reserved and ignored on receipt.
const VNI_VALID: u8 = 0x08;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// The headers of every frame from one VTEP to another that holds a packet of that version.
#[must_use]
pub fn header(version: Version, vni: u32, src: MacAddr, dst: MacAddr) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = VNI_VALID;
    header[4..8].copy_from_slice(&(vni << 8).to_be_bytes());
    header[8..14].copy_from_slice(&dst.0);
    header[14..20].copy_from_slice(&src.0);
    header[20..22].copy_from_slice(match version {
        Version::V4 => &ETHERTYPE_IPV4,
        Version::V6 => &ETHERTYPE_IPV6,
    });
    header
}

/// Checks the headers of a received `frame`. What follows its first [`HEADER_LEN`] bytes is
/// announced as an IP packet of the version that it has, then.
///
/// # Errors
/// The first condition that does not hold: long enough, VNI valid, VNI and destination MAC as
/// given, payload IPv4 or IPv6 as its type says.
#[inline]
pub fn check(frame: &[u8], vni: u32, vtep_mac: MacAddr) -> Result<(), DropReason> {
    let Some(header) = frame.first_chunk::<HEADER_LEN>() else {
        return Err(DropReason::Truncated);
    };
    if header[0] & VNI_VALID == 0 {
        return Err(DropReason::BadVxlanHeader);
    }
    if u32::from_be_bytes([0, header[4], header[5], header[6]]) != vni {
        return Err(DropReason::WrongVni);
    }
    if header[8..14] != vtep_mac.0 {
        return Err(DropReason::WrongMac);
    }
    let announced = match [header[20], header[21]] {
        ETHERTYPE_IPV4 => 4,
        ETHERTYPE_IPV6 => 6,
        _ => return Err(DropReason::NotIp),
    };
    // What is not there is found missing with the packet.
    if frame.get(HEADER_LEN).is_some_and(|first| first >> 4 != announced) {
        return Err(DropReason::NotIp);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    #[test]
    fn the_bytes_are_those_of_rfc_7348() {
        let expected = [
            0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0, // flags, reserved, VNI, reserved
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, // destination, source, type
        ];
        assert_eq!(header(Version::V4, 0x12_3456, OURS, THEIRS), expected);
        let v6 = header(Version::V6, 0x12_3456, OURS, THEIRS);
        assert_eq!((&v6[..20], &v6[20..]), (&expected[..20], &[0x86, 0xdd][..]));
    }

    #[test]
    fn each_condition_is_checked() {
        let good = header(Version::V4, 1, THEIRS, OURS);
        assert_eq!(check(&good, 1, OURS), Ok(()));
        for len in 0..HEADER_LEN {
            assert_eq!(check(&good[..len], 1, OURS), Err(DropReason::Truncated));
        }
        assert_eq!(check(&good, 2, OURS), Err(DropReason::WrongVni));
        assert_eq!(check(&good, 1, THEIRS), Err(DropReason::WrongMac));
        let with = |at: usize, value: u8| {
            let mut frame = good;
            frame[at] = value;
            check(&frame, 1, OURS)
        };
        assert_eq!(with(0, 0), Err(DropReason::BadVxlanHeader));
        assert_eq!(with(21, 6), Err(DropReason::NotIp));
        assert_eq!(with(0, 0xff), Ok(()), "reserved flags are ignored");
        assert_eq!(with(7, 0xff), Ok(()), "the reserved byte is ignored");
        for (version, other, first) in [(Version::V4, 0x60, 0x45), (Version::V6, 0x45, 0x60)] {
            let frame = |first: u8| [&header(version, 1, THEIRS, OURS)[..], &[first]].concat();
            assert_eq!(check(&frame(first), 1, OURS), Ok(()));
            assert_eq!(check(&frame(other), 1, OURS), Err(DropReason::NotIp), "not as announced");
        }
        let mut policy = good;
        // draft-smith-vxlan-group-policy: flag G, and a group in the two bytes that are reserved otherwise.
        policy[0] |= 0x80;
        policy[2..4].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(check(&policy, 1, OURS), Ok(()), "a group policy is ignored");
    }
}
