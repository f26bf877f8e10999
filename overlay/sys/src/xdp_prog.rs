//! The program on the underlay's interface: what is the overlay's goes to the `AF_XDP` socket of its queue,
//! all else goes on as if there were no program.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::bpf::{AND_IMM, EXIT, Instruction, JNE_IMM, Kind, MOV_IMM, MOV_REG, ask, call, load, op};
use crate::link::{Hook, Link};

/// A program on an interface that hands packets over for as long as this lives. Then they pass; and with the last
/// descriptor of its [`Link`] the kernel takes it away, also when the process dies.
#[derive(Debug)]
pub struct Attached {
    link: Link,
    sockets: SocketMap,
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// In the driver, before there is an `sk_buff`.
    Native,
    /// In the kernel's stack: with every driver, and slower than sockets are.
    Generic,
}

/// The sockets of an interface, by receive queue (`BPF_MAP_TYPE_XSKMAP`). A socket that is closed leaves it.
#[derive(Debug)]
pub struct SocketMap {
    map: OwnedFd,
    queues: u32,
}

impl SocketMap {
    /// A map for the queues below `queues`.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`, `EINVAL` before Linux 4.18.
    pub fn new(queues: u32) -> io::Result<Self> {
        let attributes =
            MapAttributes { map_type: BPF_MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, entries: queues };
        // SAFETY: the attributes of BPF_MAP_CREATE, which point to nothing.
        unsafe { call(BPF_MAP_CREATE, &attributes) }.map(|map| Self { map, queues })
    }

    /// Puts the socket of `queue` in. From then on packets of that queue are its own.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if it is no `AF_XDP` socket, `E2BIG` if there is no such queue.
    pub fn put(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd();
        let attributes = ElementAttributes {
            map: self.map.as_raw_fd(),
            padding: 0,
            key: &raw const queue as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: the attributes of BPF_MAP_UPDATE_ELEM; key and value have four bytes each, as the map
        // was made with, and outlive the call, which reads them.
        unsafe { ask(BPF_MAP_UPDATE_ELEM, &attributes) }.map(drop)
    }

    /// Takes all sockets out.
    fn clear(&self) {
        for queue in 0..self.queues {
            let attributes = ElementAttributes {
                map: self.map.as_raw_fd(),
                padding: 0,
                key: &raw const queue as u64,
                value: 0,
                flags: 0,
            };
            // SAFETY: the attributes of BPF_MAP_DELETE_ELEM; the key has four bytes, as the map was made with, and
            // outlives the call, which reads it. That there is none to take out (ENOENT) is as well.
            let _ = unsafe { ask(BPF_MAP_DELETE_ELEM, &attributes) };
        }
    }
}

impl Attached {
    /// What it hangs on.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Somebody else may keep the program where it is.
        self.sockets.clear();
    }
}

/// Has the interface of this index hand over to `sockets` what comes to `mac` and `address`, in frames of at most
/// `longest` bytes: a super-packet, as generic mode can see it, is for the kernel to take apart.
///
/// The program takes the place of the one at `earlier`, a link of the same interface, if there is one.
///
/// # Errors
/// As [`Link::create`].
pub fn attach(
    interface: u32,
    mac: [u8; 6],
    address: SocketAddrV4,
    longest: u32,
    sockets: SocketMap,
    how: Attach,
    earlier: Option<Link>,
) -> io::Result<Attached> {
    let program = load(Kind::Xdp, &instructions(mac, address, longest, &sockets), c"Apache-2.0")?;
    if let Some(link) = earlier.filter(|link| link.replace(program.as_fd()).is_ok()) {
        return Ok(Attached { link, sockets });
    }
    let flags = match how {
        Attach::Native => XDP_FLAGS_DRV_MODE,
        Attach::Generic => XDP_FLAGS_SKB_MODE,
    };
    let link = Link::create(Hook::Xdp, interface, program.as_fd(), flags)?;
    Ok(Attached { link, sockets })
}

/// The program: R1 is the context (`struct xdp_md`), R2 points to the packet, R3 behind it. Every test that
/// fails jumps to the end, where the packet passes. So does one of a queue without a socket, since that is what
/// the lower bits of `bpf_redirect_map`'s flags say (Linux 5.3).
fn instructions(mac: [u8; 6], address: SocketAddrV4, longest: u32, sockets: &SocketMap) -> Vec<Instruction> {
    // Fields are compared as they lie in memory.
    let half = |bytes: [u8; 2]| i32::from(u16::from_ne_bytes(bytes));
    let word = i32::from_ne_bytes;
    let [m0, m1, m2, m3, m4, m5] = mac;
    let tests = [
        (LOAD_WORD, 0, JNE32_IMM, word([m0, m1, m2, m3])),
        (LOAD_HALF, 4, JNE_IMM, half([m4, m5])),
        // IPv4, without options.
        (LOAD_HALF, 12, JNE_IMM, half([0x08, 0x00])),
        (LOAD_BYTE, 14, JNE_IMM, 0x45),
        // UDP.
        (LOAD_BYTE, 23, JNE_IMM, 17),
        (LOAD_WORD, 30, JNE32_IMM, word(address.ip().octets())),
        (LOAD_HALF, 36, JNE_IMM, half(address.port().to_be_bytes())),
    ];
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(LOAD_WORD, 3, 1, 4, 0),
        op(MOV_REG, 4, 2, 0, 0),
        op(ADD_IMM, 4, 0, 0, HEADERS_LEN),
        op(JGT_REG, 4, 3, PASS, 0),
        op(MOV_REG, 4, 2, 0, 0),
        op(ADD_IMM, 4, 0, 0, longest.cast_signed()),
        op(JGT_REG, 3, 4, PASS, 0),
        // More fragments, or an offset.
        op(LOAD_HALF, 4, 2, 20, 0),
        op(AND_IMM, 4, 0, 0, half([0x3f, 0xff])),
        op(JNE_IMM, 4, 0, PASS, 0),
    ];
    for (load, at, differs, value) in tests {
        program.push(op(load, 4, 2, at, 0));
        program.push(op(differs, 4, 0, PASS, value));
    }
    program.extend([
        // The queue: `rx_queue_index`.
        op(LOAD_WORD, 2, 1, 16, 0),
        op(LOAD_MAP, 1, PSEUDO_MAP_FD, 0, sockets.map.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        op(MOV_IMM, 3, 0, 0, XDP_PASS),
        op(CALL, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
        op(EXIT, 0, 0, 0, 0),
    ]);
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        instruction.resolve(PASS, (end - at - 1) as i16);
    }
    program.extend([op(MOV_IMM, 0, 0, 0, XDP_PASS), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// Ethernet, IPv4, UDP.
const HEADERS_LEN: i32 = 14 + 20 + 8;
/// Stands for the jump to the end until that is known.
const PASS: i16 = i16::MAX;

// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const LOAD_MAP: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const ADD_IMM: u8 = 0x07;
const JGT_REG: u8 = 0x2d;
const JNE32_IMM: u8 = 0x56;
const CALL: u8 = 0x85;

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const XDP_PASS: i32 = 2;
// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The first fields of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct ElementAttributes {
    map: i32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_kernels_verifier_accepts_the_program() {
        let sockets = SocketMap::new(4).expect("a map (this test needs root)");
        let address = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 12), 8472);
        let program = instructions([2, 0xff, 0xff, 0xff, 0xff, 0xff], address, 1792, &sockets);
        load(Kind::Xdp, &program, c"Apache-2.0").expect("loads");
    }
}
