//! What a network device can do by itself (`linux/ethtool.h`).

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use crate::tun::{check, request};

/// Whether all of these features of the device are on, by the names that `ethtool -k` has for them. One that
/// the kernel does not know is off.
///
/// # Errors
/// `ENODEV` if there is no such device, `EOPNOTSUPP`.
pub fn has_features(device: &str, wanted: &[&str]) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let ask = |data: *mut libc::c_char| {
        let mut request = request(device)?;
        request.ifr_ifru.ifru_data = data;
        // SAFETY: the call reads the `ifreq` and reads and writes what its data points to: one of the three
        // below, as long as the counts in it say.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })
    };
    let mut set = SetInfo { command: ETHTOOL_GSSET_INFO, reserved: 0, mask: 1 << ETH_SS_FEATURES, count: 0 };
    ask((&raw mut set).cast())?;
    let count = set.count as usize;

    // struct ethtool_gstrings: command, set, count, the strings.
    let mut names = vec![0_u32; 3 + count * STRING_LEN / size_of::<u32>()];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ask(names.as_mut_ptr().cast())?;
    // struct ethtool_gfeatures: command, count, and for each 32 features four words, the third of which says
    // what is active.
    let blocks = count.div_ceil(32);
    let mut features = vec![0_u32; 2 + blocks * 4];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ask(features.as_mut_ptr().cast())?;

    let names: Vec<u8> = names[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = |bytes: &[u8]| bytes.iter().take_while(|byte| **byte != 0).copied().collect::<Vec<u8>>();
    let is_on = |wanted: &&str| {
        let found = names.chunks_exact(STRING_LEN).position(|bytes| name(bytes) == wanted.as_bytes());
        found.is_some_and(|index| features[2 + index / 32 * 4 + 2] & (1 << (index % 32)) != 0)
    };
    Ok(wanted.iter().all(is_on))
}

/// The receive queues in use of the device.
///
/// # Errors
/// `EOPNOTSUPP` if its driver does not tell, as drivers of one queue; `ENODEV` if there is no such device.
pub fn receive_queues(device: &str) -> io::Result<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // struct ethtool_channels: command, four maxima, then receive, send, other and combined ones.
    let mut channels = [ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut request = request(device)?;
    request.ifr_ifru.ifru_data = channels.as_mut_ptr().cast();
    // SAFETY: the call reads the `ifreq` and writes the nine words that its data points to.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(channels[5] + channels[8])
}

/// `struct ethtool_sset_info` for one set.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const STRING_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_asked() {
        assert!(has_features("lo", &["tx-scatter-gather", "loopback"]).unwrap());
        assert!(!has_features("lo", &["tx-scatter-gather", "no-such-feature"]).unwrap());
        assert!(!has_features("lo", &["tx-vlan-hw-insert"]).unwrap());
        assert_eq!(has_features("no-such-device", &[]).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
