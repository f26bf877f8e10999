//! IPsec policies (`ip xfrm policy`) that would refuse or transform the tunnel's packets.

use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NetlinkBuffer, NlasIterator};
use rtnetlink::sys::{Socket, SocketAddr};

use super::firewall::ruleset::{Holds, within};

/// Packets that leave this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Their source.
    pub from: Ipv4Addr,
    /// Their destinations.
    pub to: Vec<Ipv4Net>,
    /// The destination port. They are UDP, from any port.
    pub port: u16,
    /// The index of the device that they leave by.
    pub device: u32,
}

/// The policy that refuses or transforms packets like these, or some of them, for people.
///
/// # Errors
/// The kernel does not tell.
pub fn acting_on(packets: &Outgoing) -> io::Result<Option<String>> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Ok(socket) => socket,
        // A kernel without IPsec.
        Err(error) if error.raw_os_error() == Some(EPROTONOSUPPORT) => return Ok(None),
        Err(error) => return Err(error),
    };
    socket.bind_auto()?;
    let mut policies = Vec::new();
    ask(&mut socket, GETPOLICY, NLM_F_DUMP, &[0; USERPOLICY_ID_LEN], |message| {
        policies.extend(Policy::read(message));
    })?;
    // The kernel takes the one with the smallest number.
    policies.sort_by_key(|policy| policy.priority);
    for policy in &policies {
        match policy.holds(packets) {
            Holds::Never => {}
            Holds::Always if !policy.acts => return Ok(None),
            _ if policy.acts => return Ok(Some(policy.describe())),
            _ => {}
        }
    }
    let mut blocks = false;
    // Kernels before 5.14 do not know it.
    let _ = ask(&mut socket, GETDEFAULT, 0, &[0; 4], |message| {
        blocks |= message.get(2) == Some(&DEFAULT_BLOCKS);
    });
    Ok(blocks.then(|| "the IPsec default policy, which blocks (ip xfrm policy getdefault)".to_owned()))
}

/// Sends a request, and hands over the payload of each message of the answer.
fn ask(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    payload: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut request = (HEADER_LEN + payload.len()).to_ne_bytes()[..4].to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.resize(HEADER_LEN, 0);
    request.extend(payload);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    loop {
        let mut answer = Vec::with_capacity(DATAGRAM);
        // The kernel answers within the calls that ask.
        socket.recv(&mut answer, MSG_DONTWAIT)?;
        let mut rest = answer.as_slice();
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let length = message.length() as usize;
            let payload = &rest[HEADER_LEN.min(length)..length];
            match message.message_type() {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let number = payload.get(..4).and_then(|number| number.try_into().ok());
                    return match number.map_or(EIO, i32::from_ne_bytes) {
                        0 => Ok(()),
                        number => Err(io::Error::from_raw_os_error(-number)),
                    };
                }
                _ => each(payload),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if flags == 0 {
            return Ok(());
        }
    }
}

/// A policy for what leaves this host, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy {
    source: Ipv4Net,
    destination: Ipv4Net,
    /// 0 for all.
    protocol: u8,
    source_port_mask: u16,
    port: (u16, u16),
    /// 0 for all.
    device: u32,
    priority: u32,
    /// Whether it refuses or transforms.
    acts: bool,
    blocks: bool,
}

impl Policy {
    /// Reads `struct xfrm_userpolicy_info` and what follows it; `None` for a policy that has no say about packets
    /// of IPv4 that leave.
    fn read(message: &[u8]) -> Option<Self> {
        let at = |at: usize, len: usize| message.get(at..at + len);
        let half = |at_: usize| at(at_, 2)?.try_into().ok().map(u16::from_be_bytes);
        let word = |at_: usize| at(at_, 4)?.try_into().ok().map(u32::from_ne_bytes);
        let address = |at_: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(at(at_, 4)?).ok()?));
        let byte = |at: usize| message.get(at).copied();
        let family = u16::from_ne_bytes(at(40, 2)?.try_into().ok()?);
        // One without addresses is for all.
        let all = family == 0 || byte(42)? == 0 && byte(43)? == 0 && family == AF_INET;
        if byte(160)? != POLICY_OUT || family != AF_INET && !all {
            return None;
        }
        let network = |address: Option<Ipv4Addr>, len: u8| Some(Ipv4Net::new(address?, len).ok()?.trunc());
        let (mut transforms, mut marked, mut of_device) = (false, false, false);
        for attribute in NlasIterator::new(message.get(POLICY_LEN..)?).filter_map(Result::ok) {
            let value = attribute.value();
            let first = value.get(..4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes);
            match attribute.kind() {
                XFRMA_TMPL => transforms = !value.is_empty(),
                // Our packets have mark zero.
                XFRMA_MARK => marked = first != 0,
                // Only what goes by an xfrm device.
                XFRMA_IF_ID => of_device = first != 0,
                _ => {}
            }
        }
        let blocks = byte(161)? == ACTION_BLOCK;
        (!marked && !of_device).then_some(Self {
            destination: network(address(0), byte(42)?)?,
            source: network(address(16), byte(43)?)?,
            port: (half(32)?, half(34)?),
            source_port_mask: half(38)?,
            protocol: byte(44)?,
            device: word(48)?,
            priority: word(152)?,
            acts: blocks || transforms,
            blocks,
        })
    }

    fn holds(&self, packets: &Outgoing) -> Holds {
        let inside = |network: &Ipv4Net, of: &[Ipv4Net]| {
            within(of, network.network().into(), network.broadcast().into())
        };
        let (port, mask) = self.port;
        Holds::of(matches!(self.protocol, 0 | UDP))
            .and(Holds::of(self.device == 0 || self.device == packets.device))
            .and(Holds::of(packets.port & mask == port & mask))
            .and(if self.source_port_mask == 0 { Holds::Always } else { Holds::Partly })
            .and(inside(&self.source, &[packets.from.into()]))
            .and(inside(&self.destination, &packets.to))
    }

    fn describe(&self) -> String {
        let action = if self.blocks { "block" } else { "transform" };
        format!(
            "the IPsec policy 'src {} dst {} dir out', which {action}s (ip xfrm policy)",
            self.source, self.destination
        )
    }
}

const HEADER_LEN: usize = 16;
const DATAGRAM: usize = 64 << 10;
const UDP: u8 = 17;
const AF_INET: u16 = 2;
const MSG_DONTWAIT: i32 = 0x40;
const EIO: i32 = -5;
const EPROTONOSUPPORT: i32 = 93;
// linux/netlink.h
const NETLINK_XFRM: isize = 6;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
// linux/xfrm.h
const GETPOLICY: u16 = 0x15;
const GETDEFAULT: u16 = 0x28;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
const POLICY_OUT: u8 = 1;
const ACTION_BLOCK: u8 = 1;
const DEFAULT_BLOCKS: u8 = 1;
/// `sizeof(struct xfrm_userpolicy_info)`
const POLICY_LEN: usize = 168;
/// `sizeof(struct xfrm_userpolicy_id)`
const USERPOLICY_ID_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel lists `ip xfrm policy add src … dst … proto udp dport … dir out action …`.
    fn message(destination: &str, port: u16, action: u8, dir: u8) -> Vec<u8> {
        let destination: Ipv4Net = destination.parse().unwrap();
        let mut message = vec![0; POLICY_LEN];
        message[..4].copy_from_slice(&destination.addr().octets());
        message[32..34].copy_from_slice(&port.to_be_bytes());
        message[34..36].copy_from_slice(&if port == 0 { 0 } else { u16::MAX }.to_be_bytes());
        message[40..42].copy_from_slice(&AF_INET.to_ne_bytes());
        message[42] = destination.prefix_len();
        message[44] = if port == 0 { 0 } else { UDP };
        (message[160], message[161]) = (dir, action);
        message
    }

    fn with(mut message: Vec<u8>, kind: u16, value: &[u8]) -> Vec<u8> {
        message.extend((4 + value.len() as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
        message
    }

    #[test]
    fn policies_count_that_refuse_or_transform_what_leaves_for_a_peer() {
        let packets = Outgoing {
            from: [192, 168, 1, 12].into(),
            to: vec!["192.168.199.238/32".parse().unwrap(), "192.168.199.7/32".parse().unwrap()],
            port: 8472,
            device: 2,
        };
        let plain = |destination: &str, port| message(destination, port, ACTION_BLOCK, POLICY_OUT);
        let template = [1; 64];
        for (what, message, holds, acts) in [
            ("block", plain("192.168.199.0/24", 8472), Some(Holds::Always), true),
            ("one peer of two", plain("192.168.199.7/32", 8472), Some(Holds::Partly), true),
            ("another port", plain("192.168.199.0/24", 4789), Some(Holds::Never), true),
            ("other hosts", plain("192.168.3.0/24", 0), Some(Holds::Never), true),
            ("inwards", message("0.0.0.0/0", 0, ACTION_BLOCK, 0), None, true),
            ("bypass", message("0.0.0.0/0", 0, 0, POLICY_OUT), Some(Holds::Always), false),
            (
                "ESP",
                with(message("0.0.0.0/0", 0, 0, POLICY_OUT), XFRMA_TMPL, &template),
                Some(Holds::Always),
                true,
            ),
            (
                "another mark",
                with(plain("0.0.0.0/0", 0), XFRMA_MARK, &[1, 0, 0, 0, 255, 0, 0, 0]),
                None,
                true,
            ),
            ("an xfrm device", with(plain("0.0.0.0/0", 0), XFRMA_IF_ID, &[1, 0, 0, 0]), None, true),
        ] {
            let policy = Policy::read(&message);
            assert_eq!(policy.as_ref().map(|policy| policy.holds(&packets)), holds, "{what}");
            assert!(policy.is_none_or(|policy| policy.acts == acts), "{what}");
            for end in 0..message.len().min(POLICY_LEN) {
                assert_eq!(Policy::read(&message[..end]), None, "{what}, cut off after {end}");
            }
        }
    }
}
