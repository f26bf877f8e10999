//! Tables of iptables' nft variant, by netlink: `nft` takes what is in a table along with it, and here nothing that
//! somebody else has put there may go.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// Whether there is a table `name` in the calling thread's network namespace; `None` if the kernel does not say.
pub(super) fn exists(name: &str) -> Option<bool> {
    let answers = ask(&message(GETTABLE, REQUEST | ACK, INET, 0, &[(TABLE_NAME, name)])).ok()?;
    match answers.first()? {
        Answer::Other => Some(true),
        Answer::Error(libc::ENOENT) => Some(false),
        Answer::Error(_) => None,
    }
}

/// Removes the table `name` with those `chains`, all or nothing.
///
/// # Errors
/// `EBUSY` if something is in one of the chains or beside them in the table.
pub(super) fn remove(name: &str, chains: &[String]) -> io::Result<()> {
    let mut batch = message(BATCH_BEGIN, REQUEST, 0, NFTABLES, &[]);
    for chain in chains {
        let attributes = [(CHAIN_TABLE, name), (CHAIN_NAME, chain)];
        batch.extend(message(DELCHAIN, REQUEST | NONREC, INET, 0, &attributes));
    }
    batch.extend(message(DELTABLE, REQUEST | ACK | NONREC, INET, 0, &[(TABLE_NAME, name)]));
    batch.extend(message(BATCH_END, REQUEST, 0, NFTABLES, &[]));
    for answer in ask(&batch)? {
        match answer {
            Answer::Error(0) | Answer::Other => {}
            Answer::Error(error) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
    Ok(())
}

/// What the kernel says to a message.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// `NLMSG_ERROR`: the error, or 0 if all is well.
    Error(i32),
    Other,
}

/// What the kernel answers, which it does within the call that asks.
fn ask(request: &[u8]) -> io::Result<Vec<Answer>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let mut datagram = Vec::with_capacity(LONGEST_ANSWER);
        match socket.recv(&mut datagram, libc::MSG_DONTWAIT) {
            Ok(_) => answers.extend(read(&datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !answers.is_empty() => {
                return Ok(answers);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The messages of a datagram.
fn read(mut datagram: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((length, rest)) = datagram.split_first_chunk::<4>() {
        let Some((kind, _)) = rest.split_first_chunk::<2>() else { break };
        let error = datagram.get(HEADER..HEADER + 4).and_then(|error| error.try_into().ok());
        answers.push(match (u16::from_ne_bytes(*kind), error) {
            (ERROR, Some(error)) => Answer::Error(i32::from_ne_bytes(error).saturating_neg()),
            _ => Answer::Other,
        });
        let length = (u32::from_ne_bytes(*length) as usize).max(HEADER).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    answers
}

/// `nlmsghdr`, `nfgenmsg` and attributes that are texts (linux/netlink.h, linux/netfilter/nfnetlink.h).
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(resource.to_be_bytes());
    for (name, value) in attributes {
        let length = u16::try_from(4 + value.len() + 1).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(name.to_ne_bytes());
        body.extend(value.bytes().chain([0]));
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Neither a number nor a port of the sender's.
    message.extend([0; 8]);
    message.extend(body);
    message
}

const HEADER: usize = 16;
/// More than the description of a table takes.
const LONGEST_ANSWER: usize = 8192;

// linux/netlink.h
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// Deletes nothing that holds something (`NLM_F_NONREC`).
const NONREC: u16 = 0x100;

const INET: u8 = libc::AF_INET as u8;

// linux/netfilter/nfnetlink.h
const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

// linux/netfilter/nf_tables.h
const GETTABLE: u16 = NFTABLES << 8 | 1;
const DELTABLE: u16 = NFTABLES << 8 | 2;
const DELCHAIN: u16 = NFTABLES << 8 | 5;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_table_goes_only_if_nothing_is_left_in_it() {
        let in_a_namespace = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (this test needs root)");
            let sh = |line: &str| {
                let done = Command::new("sh").args(["-ec", line]).output().expect("sh");
                assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
            };
            let forward = ["FORWARD".to_owned()];
            assert_eq!(exists("filter"), Some(false));
            sh("iptables-nft -A FORWARD -s 192.0.2.1 -j DROP");
            assert_eq!(exists("filter"), Some(true));
            let busy = |chains: &[String]| remove("filter", chains).map_err(|error| error.raw_os_error());
            assert_eq!(busy(&forward), Err(Some(libc::EBUSY)), "a rule");
            sh("iptables-nft -F FORWARD; iptables-nft -N another");
            assert_eq!(busy(&forward), Err(Some(libc::EBUSY)), "another chain");
            sh("iptables-nft -nL another; iptables-nft -X another; nft list chain ip filter FORWARD");
            assert_eq!(busy(&forward), Ok(()));
            assert_eq!(exists("filter"), Some(false));
        };
        thread::spawn(in_a_namespace).join().unwrap();
    }
}
