//! A program of ours in the kernel: it sends what is written to a TAP on to the next hop, as the host itself
//! would, past the rules for what a host forwards for others (netfilter's FORWARD, `rp_filter`).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::bpf::{self, ADD_REG, EXIT, Instruction, JNE_IMM, Kind, LSH_IMM, MOV_IMM, MOV_REG, op};
use crate::link::{Hook, Link};

/// Where the Ethernet header says what the program must know of a packet: in the source address, which nobody else
/// reads, since the next hop's headers replace it.
const SOURCE_MAC: usize = 6;
/// The length of the longest outer packet that it may be cut into, 16 bits in the machine's byte order.
const PACKET_LEN: usize = SOURCE_MAC;
/// Who writes it, a byte.
const WRITER: usize = SOURCE_MAC + 2;

/// The Ethernet source address of a frame for the program: `packet_len` is that of the longest outer packet that the
/// frame may be cut into, `writer` whoever writes it.
#[inline]
#[must_use]
pub fn source_mac(packet_len: u16, writer: u8) -> [u8; 6] {
    let mut address = [0; 6];
    address[PACKET_LEN - SOURCE_MAC..][..2].copy_from_slice(&packet_len.to_ne_bytes());
    address[WRITER - SOURCE_MAC] = writer;
    address
}

/// A counter for each writer that a byte can name.
const COUNTERS_LEN: usize = 256 * size_of::<u64>();

// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const STORE_WORD: u8 = 0x63;
const STORE_HALF: u8 = 0x6b;
const STORE_IMM_WORD: u8 = 0x62;
const STORE_IMM_BYTE: u8 = 0x72;
const STORE_IMM_DOUBLE: u8 = 0x7a;
const LOAD_IMM_DOUBLE: u8 = 0x18;
const ADD_IMM: u8 = 0x07;
const ATOMIC_DOUBLE: u8 = 0xdb;
const ATOMIC_ADD: i32 = 0;
const JGT_REG: u8 = 0x2d;
const CALL: u8 = 0x85;

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const PSEUDO_MAP_VALUE: u8 = 2;
const FIB_LOOKUP: i32 = 69;
const REDIRECT_NEIGH: i32 = 152;
const BPF_FIB_LOOKUP_SKIP_NEIGH: i32 = 1 << 2;
const TC_ACT_SHOT: i32 = 2;
const SKB_DATA: i16 = 76;
const SKB_DATA_END: i16 = 80;

/// `LOOPBACK_IFINDEX` (net/flow.h): a look-up that comes from there is the host's own.
const LOOPBACK_IFINDEX: i32 = 1;

// Where things stand in a frame: Ethernet, IPv4 without options, UDP.
const SOURCE: i16 = 26;
const DESTINATION: i16 = 30;
const SOURCE_PORT: i16 = 34;
const DESTINATION_PORT: i16 = 36;
const HEADERS_LEN: i32 = 42;

/// Where `struct bpf_fib_lookup` lies on the stack, and below it `struct bpf_redir_neigh`.
const LOOKUP: i16 = -64;
const LOOKUP_LEN: i32 = 64;
const NEXT_HOP: i16 = -88;
const NEXT_HOP_LEN: i32 = 20;

/// The program. R6 holds the packet's context, R8 its writer, R10 the stack's end.
const PROGRAM: &[Instruction] = &[
    op(MOV_REG, 6, 1, 0, 0),
    op(LOAD_WORD, 2, 6, SKB_DATA, 0),
    op(LOAD_WORD, 3, 6, SKB_DATA_END, 0),
    op(MOV_REG, 4, 2, 0, 0),
    op(ADD_IMM, 4, 0, 0, HEADERS_LEN),
    op(JGT_REG, 4, 3, 52, 0),
    op(LOAD_BYTE, 8, 2, WRITER as i16, 0),
    // Which way would the host's own packet go from here to there, and does one of that length fit?
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 8, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 16, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 24, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 32, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 40, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 48, 0),
    op(STORE_IMM_DOUBLE, 10, 0, LOOKUP + 56, 0),
    op(STORE_IMM_BYTE, 10, 0, LOOKUP, libc::AF_INET),
    op(STORE_IMM_BYTE, 10, 0, LOOKUP + 1, libc::IPPROTO_UDP),
    op(LOAD_HALF, 4, 2, SOURCE_PORT, 0),
    op(STORE_HALF, 10, 4, LOOKUP + 2, 0),
    op(LOAD_HALF, 4, 2, DESTINATION_PORT, 0),
    op(STORE_HALF, 10, 4, LOOKUP + 4, 0),
    op(LOAD_HALF, 4, 2, PACKET_LEN as i16, 0),
    op(STORE_HALF, 10, 4, LOOKUP + 6, 0),
    op(STORE_IMM_WORD, 10, 0, LOOKUP + 8, LOOPBACK_IFINDEX),
    op(LOAD_WORD, 4, 2, SOURCE, 0),
    op(STORE_WORD, 10, 4, LOOKUP + 16, 0),
    op(LOAD_WORD, 4, 2, DESTINATION, 0),
    op(STORE_WORD, 10, 4, LOOKUP + 32, 0),
    op(MOV_REG, 1, 6, 0, 0),
    op(MOV_REG, 2, 10, 0, 0),
    op(ADD_IMM, 2, 0, 0, LOOKUP as i32),
    op(MOV_IMM, 3, 0, 0, LOOKUP_LEN),
    op(MOV_IMM, 4, 0, 0, BPF_FIB_LOOKUP_SKIP_NEIGH),
    op(CALL, 0, 0, 0, FIB_LOOKUP),
    op(JNE_IMM, 0, 0, 17, 0),
    // A next hop with an IPv6 address (RFC 8950) is not for us.
    op(LOAD_BYTE, 4, 10, LOOKUP, 0),
    op(JNE_IMM, 4, 0, 15, libc::AF_INET),
    // Nor is another device: what rules for it say, nobody has asked.
    op(LOAD_WORD, 4, 10, LOOKUP + 8, 0),
    op(JNE_IMM, 4, 0, 13, 0),
    // There, behind the headers of its link; if its address on the link is still to be found, the kernel waits.
    op(LOAD_WORD, 4, 10, LOOKUP + 32, 0),
    op(STORE_IMM_DOUBLE, 10, 0, NEXT_HOP, 0),
    op(STORE_IMM_DOUBLE, 10, 0, NEXT_HOP + 8, 0),
    op(STORE_IMM_WORD, 10, 0, NEXT_HOP + 16, 0),
    op(STORE_IMM_WORD, 10, 0, NEXT_HOP, libc::AF_INET),
    op(STORE_WORD, 10, 4, NEXT_HOP + 4, 0),
    op(LOAD_WORD, 1, 10, LOOKUP + 8, 0),
    op(MOV_REG, 2, 10, 0, 0),
    op(ADD_IMM, 2, 0, 0, NEXT_HOP as i32),
    op(MOV_IMM, 3, 0, 0, NEXT_HOP_LEN),
    op(MOV_IMM, 4, 0, 0, 0),
    op(CALL, 0, 0, 0, REDIRECT_NEIGH),
    op(EXIT, 0, 0, 0, 0),
    // Otherwise it is refused, which its writer reads in its counter, and ends here.
    op(LSH_IMM, 8, 0, 0, 3),
    op(LOAD_IMM_DOUBLE, 1, PSEUDO_MAP_VALUE, 0, 0),
    op(0, 0, 0, 0, 0),
    op(ADD_REG, 1, 8, 0, 0),
    op(MOV_IMM, 2, 0, 0, 1),
    op(ATOMIC_DOUBLE, 1, 2, 0, ATOMIC_ADD),
    op(MOV_IMM, 0, 0, 0, TC_ACT_SHOT),
    op(EXIT, 0, 0, 0, 0),
];

/// Which instruction is to name the device that packets may leave by.
const NAMES_DEVICE: usize = 38;
/// Which instruction is to name the map.
const NAMES_MAP: usize = 53;

/// `bpf_fib_lookup` is for programs under the GPL only. This one, the instructions of [`PROGRAM`], is offered
/// under the GPL, version 2, too.
const LICENSE: &CStr = c"GPL";

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_len: u32,
    value_len: u32,
    entries: u32,
    flags: u32,
}

/// The program at work on a device, until the last descriptor of its [`Link`] is closed.
#[derive(Debug)]
pub struct Redirect {
    link: Link,
    refused: *const AtomicU64,
}

// SAFETY: the pointer is to memory that stays mapped as long as this lives, and is only read atomically.
unsafe impl Send for Redirect {}
// SAFETY: as above.
unsafe impl Sync for Redirect {}

impl Redirect {
    /// Has what comes in by the device with this index sent on, if its way leads out by `underlay`. The program takes the place of the one at `earlier`, a
    /// link of the same device, if there is one.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`, `EINVAL` before Linux 6.6 (TCX).
    pub fn attach(device: u32, underlay: u32, earlier: Option<Link>) -> io::Result<Self> {
        let attributes = MapAttributes {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_len: size_of::<u32>() as u32,
            value_len: COUNTERS_LEN as u32,
            entries: 1,
            flags: BPF_F_MMAPABLE,
        };
        // SAFETY: these are the fields of that command, and point to nothing.
        let counters = unsafe { bpf::call(BPF_MAP_CREATE, &attributes) }?;
        let mut program = PROGRAM.to_vec();
        program[NAMES_DEVICE] = op(JNE_IMM, 4, 0, 13, underlay as i32);
        program[NAMES_MAP] = op(LOAD_IMM_DOUBLE, 1, PSEUDO_MAP_VALUE, 0, counters.as_raw_fd());
        let program = bpf::load(Kind::SchedCls, &program, LICENSE)?;
        let link = match earlier.filter(|link| link.replace(program.as_fd()).is_ok()) {
            Some(link) => link,
            None => Link::create(Hook::Ingress, device, program.as_fd(), 0)?,
        };
        // SAFETY: a new mapping of the map's memory, which covers no other, and which stays beyond the
        // descriptor.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                COUNTERS_LEN,
                libc::PROT_READ,
                libc::MAP_SHARED,
                counters.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { link, refused: mapped.cast_const().cast() })
    }

    /// What the program hangs on.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// How many frames of this writer there was no way for: no route by that device, or one that they do not fit.
    #[inline]
    #[must_use]
    pub fn refused(&self, writer: u8) -> u64 {
        // SAFETY: the mapping holds a counter for each possible writer, aligned as pages are.
        unsafe { &*self.refused.add(usize::from(writer)) }.load(Relaxed)
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        // SAFETY: the mapping is of that length, and nothing refers to it any more.
        unsafe { libc::munmap(self.refused.cast_mut().cast(), COUNTERS_LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_finds_what_the_source_address_says() {
        let frame = [&[2, 0, 0, 0, 0, 7][..], &source_mac(1490, 9), &[8, 0]].concat();
        assert_eq!(u16::from_ne_bytes([frame[PACKET_LEN], frame[PACKET_LEN + 1]]), 1490);
        assert_eq!(frame[WRITER], 9);
    }

    #[test]
    fn the_kernels_verifier_accepts_the_program() {
        // The loopback device would do, but is everybody's.
        let tap = crate::tun::open_tunnel_tap("overlay-test0").expect("a TAP (this test needs root)");
        let (index, _) = crate::tun::bring_up_mute("overlay-test0").unwrap();
        let redirect = Redirect::attach(index, 1, None).expect("loads and attaches");
        assert_eq!((redirect.refused(0), redirect.refused(255)), (0, 0));
        drop(tap);
    }
}
