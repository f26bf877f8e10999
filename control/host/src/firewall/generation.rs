//! The number of nftables' ruleset: as long as it stands, nobody has changed a rule, be it by `nft` or by the
//! nft variant of iptables. Asking for it costs a few system calls, listing the rules a process.

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// The generation of the ruleset in the calling thread's network namespace; `None` where the kernel has no
/// nftables, or does not say.
pub(crate) fn current() -> Option<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER).ok()?;
    socket.bind_auto().ok()?;
    socket.send_to(&REQUEST, &SocketAddr::new(0, 0), 0).ok()?;
    // The kernel answers within the call that asks; should it not have, nobody waits.
    let mut answer = Vec::with_capacity(128);
    socket.recv(&mut answer, MSG_DONTWAIT).ok()?;
    read(&answer)
}

/// The attribute `NFTA_GEN_ID` of a message `NFT_MSG_NEWGEN`.
fn read(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let mut attributes = answer.get(HEADERS..)?;
    while kind == NEWGEN && attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes(attributes[..2].try_into().ok()?));
        let name = u16::from_ne_bytes(attributes[2..4].try_into().ok()?);
        let value = attributes.get(4..length)?;
        if name == GEN_ID {
            return value.try_into().ok().map(u32::from_be_bytes);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// `nlmsghdr` and `nfgenmsg` (linux/netlink.h, linux/netfilter/nfnetlink.h): `NFT_MSG_GETGEN`, with
/// `NLM_F_REQUEST` and without attributes.
const REQUEST: [u8; HEADERS] = {
    let length = (HEADERS as u32).to_ne_bytes();
    let kind = GETGEN.to_ne_bytes();
    let flags = 1u16.to_ne_bytes();
    let mut request = [0; HEADERS];
    (request[0], request[1], request[2], request[3]) = (length[0], length[1], length[2], length[3]);
    (request[4], request[5], request[6], request[7]) = (kind[0], kind[1], flags[0], flags[1]);
    request
};

const HEADERS: usize = 20;

// `NFNL_SUBSYS_NFTABLES` is 10; the rest is linux/netfilter/nf_tables.h.
const NEWGEN: u16 = 10 << 8 | 15;
const GETGEN: u16 = 10 << 8 | 16;
const GEN_ID: u16 = 1;

const MSG_DONTWAIT: i32 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_found_among_other_attributes() {
        let mut answer = vec![0; HEADERS];
        answer[4..6].copy_from_slice(&NEWGEN.to_ne_bytes());
        for (name, value) in [(3u16, &b"nft\0\0"[..]), (GEN_ID, &[0, 0, 1, 2])] {
            let length = u16::try_from(4 + value.len()).unwrap();
            answer.extend(length.to_ne_bytes());
            answer.extend(name.to_ne_bytes());
            answer.extend(value);
            answer.resize(answer.len().next_multiple_of(4), 0);
        }
        assert_eq!(read(&answer), Some(258));
        for length in 0..answer.len() {
            assert_eq!(read(&answer[..length]), None, "cut off after {length}");
        }
        answer[4] = 0;
        assert_eq!(read(&answer), None, "an error message");
    }
}
