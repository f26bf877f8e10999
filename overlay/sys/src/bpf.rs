//! Programs of our own in the kernel: here, which queue of the overlay device a packet goes to; and what
//! `redirect.rs` needs to bring another one in.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One eBPF instruction (`struct bpf_insn`, `linux/bpf.h`).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

pub(crate) const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: src << 4 | dst, offset, immediate }
}

impl Instruction {
    /// Has a jump whose distance was left open as `mark` go `distance` instructions further than the next.
    pub(crate) fn resolve(&mut self, mark: i16, distance: i16) {
        if self.offset == mark {
            self.offset = distance;
        }
    }
}

// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_ABS_WORD: u8 = 0x20;
const LOAD_ABS_HALF: u8 = 0x28;
const LOAD_ABS_BYTE: u8 = 0x30;
const LOAD_IND_WORD: u8 = 0x40;
pub(crate) const MOV_REG: u8 = 0xbf;
pub(crate) const MOV_IMM: u8 = 0xb7;
pub(crate) const ADD_REG: u8 = 0x0f;
const XOR_REG: u8 = 0xaf;
pub(crate) const AND_IMM: u8 = 0x57;
pub(crate) const LSH_IMM: u8 = 0x67;
const RSH_IMM: u8 = 0x77;
const MUL32_IMM: u8 = 0x24;
const JUMP: u8 = 0x05;
const JEQ_IMM: u8 = 0x15;
pub(crate) const JNE_IMM: u8 = 0x55;
const JSET_IMM: u8 = 0x45;
pub(crate) const EXIT: u8 = 0x95;

/// A hash of addresses and, for TCP and UDP outside fragments, ports. Fragments of one datagram
/// all go by addresses alone, as does IPv6 with any extension header: they stay together. R6 holds the packet, R7 the hash, R8 what was
/// read; loads put their result into R0 and take R6 for granted.
const STEER: &[Instruction] = &[
    op(MOV_REG, 6, 1, 0, 0),
    // Anything but IP: queue 0.
    op(LOAD_ABS_BYTE, 0, 0, 0, 0),
    op(MOV_REG, 8, 0, 0, 0),
    op(RSH_IMM, 0, 0, 0, 4),
    op(JEQ_IMM, 0, 0, 24, 4),
    op(JEQ_IMM, 0, 0, 2, 6),
    op(MOV_IMM, 0, 0, 0, 0),
    op(EXIT, 0, 0, 0, 0),
    // IPv6: addresses.
    op(LOAD_ABS_WORD, 0, 0, 0, 8),
    op(MOV_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 12),
    op(ADD_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 16),
    op(ADD_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 20),
    op(ADD_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 24),
    op(ADD_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 28),
    op(ADD_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 32),
    op(ADD_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 36),
    op(ADD_REG, 7, 0, 0, 0),
    // Ports, if they follow at once.
    op(MOV_IMM, 8, 0, 0, 40),
    op(LOAD_ABS_BYTE, 0, 0, 0, 6),
    op(JEQ_IMM, 0, 0, 13, 6),
    op(JEQ_IMM, 0, 0, 12, 17),
    op(JUMP, 0, 0, 13, 0),
    // IPv4: addresses.
    op(LOAD_ABS_WORD, 0, 0, 0, 12),
    op(MOV_REG, 7, 0, 0, 0),
    op(LOAD_ABS_WORD, 0, 0, 0, 16),
    op(ADD_REG, 7, 0, 0, 0),
    // More fragments, or an offset: no ports.
    op(LOAD_ABS_HALF, 0, 0, 0, 6),
    op(JSET_IMM, 0, 0, 7, 0x3fff),
    op(LOAD_ABS_BYTE, 0, 0, 0, 9),
    op(JEQ_IMM, 0, 0, 1, 6),
    op(JNE_IMM, 0, 0, 4, 17),
    // Ports, behind a header of R8 & 15 words.
    op(AND_IMM, 8, 0, 0, 15),
    op(LSH_IMM, 8, 0, 0, 2),
    op(LOAD_IND_WORD, 0, 8, 0, 0),
    op(XOR_REG, 7, 0, 0, 0),
    // Each bit has to count in the result's lowest ones, which choose the queue, and a product's bits depend on
    // lower ones only. (The source ports of one client, which are the upper bits, are mostly all odd or all even.)
    op(MOV_REG, 0, 7, 0, 0),
    op(RSH_IMM, 7, 0, 0, 16),
    op(XOR_REG, 7, 0, 0, 0),
    op(MUL32_IMM, 7, 0, 0, 0x9e37_79b1_u32.cast_signed()),
    op(MOV_REG, 0, 7, 0, 0),
    op(RSH_IMM, 7, 0, 0, 15),
    op(XOR_REG, 7, 0, 0, 0),
    op(MUL32_IMM, 7, 0, 0, 0x85eb_ca6b_u32.cast_signed()),
    op(MOV_REG, 0, 7, 0, 0),
    op(RSH_IMM, 0, 0, 0, 16),
    op(EXIT, 0, 0, 0, 0),
];

const BPF_PROG_LOAD: libc::c_long = 5;
/// Kinds of programs (`enum bpf_prog_type`).
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Kind {
    SocketFilter = 1,
    SchedCls = 3,
    Xdp = 6,
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// Loads the program that chooses a queue by flow.
///
/// # Errors
/// `EPERM` without `CAP_BPF` or `CAP_SYS_ADMIN` where unprivileged BPF is off, `ENOSYS` without BPF.
pub fn load_steering() -> io::Result<OwnedFd> {
    load(Kind::SocketFilter, STEER, c"Apache-2.0")
}

/// Loads a program.
///
/// # Errors
/// As [`load_steering`]; `EINVAL` or `EACCES` if the kernel does not accept it.
pub(crate) fn load(kind: Kind, program: &[Instruction], license: &CStr) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: kind as u32,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: the attributes, the instructions and the licence they point to outlive the call.
    unsafe { call(BPF_PROG_LOAD, &attributes) }
}

/// The system call, for those of its commands that return a new descriptor.
///
/// # Safety
/// `attributes` are the first fields of what `command` reads; what they point to is valid for it.
pub(crate) unsafe fn call<A>(command: libc::c_long, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes.
    let fd = unsafe { ask(command, attributes) }?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The system call.
///
/// # Safety
/// As for [`call`].
pub(crate) unsafe fn ask<A>(command: libc::c_long, attributes: &A) -> io::Result<libc::c_int> {
    // SAFETY: the caller vouches for the attributes, which are only read; the size is theirs.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>() as libc::c_long)
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel ask `program` for the queue of each packet that goes out by the TUN device.
///
/// # Errors
/// `EINVAL` before Linux 4.16.
pub fn steer(queue: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int, a descriptor, which `program` is.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `_IOR('T', 224, int)`, `linux/if_tun.h`.
const TUNSETSTEERINGEBPF: libc::c_ulong = 0x8004_54e0;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::os::fd::AsFd;

    use etherparse::PacketBuilder;

    use super::*;

    /// What the device gets when the kernel runs the program on a packet.
    fn hash(program: BorrowedFd<'_>, packet: &[u8]) -> u16 {
        const PROG_TEST_RUN: libc::c_long = 10;
        /// The first fields of `union bpf_attr` for it.
        #[repr(C)]
        struct Run {
            program: libc::c_int,
            result: u32,
            len_in: u32,
            len_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        // The kernel takes the frame's header off first.
        let frame = [&[0; 12], &[8, 0][..], packet].concat();
        let mut run = Run {
            program: program.as_raw_fd(),
            result: 0,
            len_in: frame.len() as u32,
            len_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: the attributes, which the kernel writes the result into, and the frame outlive the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut run, size_of::<Run>()) };
        assert_eq!(done, 0, "{} (this test needs root)", io::Error::last_os_error());
        // The device keeps the lower half of what the program returns.
        run.result as u16
    }

    #[test]
    fn flows_spread_evenly_over_the_queues() {
        const FLOWS: u16 = 256;
        let tcp = |src: &str, dst: &str, (from, to)| {
            let mut packet = Vec::new();
            let ip = match (src.parse().unwrap(), dst.parse().unwrap()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => PacketBuilder::ipv4(src.octets(), dst.octets(), 64),
                (IpAddr::V6(src), IpAddr::V6(dst)) => PacketBuilder::ipv6(src.octets(), dst.octets(), 64),
                mixed => panic!("{mixed:?}"),
            };
            ip.tcp(from, to, 1, 1).write(&mut packet, b"x").unwrap();
            packet
        };
        // The kernel gives one program's connections every other port, and pods have addresses that follow each other.
        type Flow<'a> = &'a dyn Fn(u16) -> Vec<u8>;
        let kinds: [(&str, Flow<'_>); 4] = [
            ("one client", &|i| tcp("10.1.9.3", "10.1.63.2", (40_000 + 2 * i, 5201))),
            ("one server", &|i| tcp("10.1.63.2", "10.1.9.3", (5201, 40_000 + 2 * i))),
            ("pods", &|i| tcp(&format!("10.1.9.{i}"), "10.1.63.2", (40_000, 80))),
            ("pods with IPv6", &|i| tcp(&format!("fd00::9:{i:x}"), "fd00::63:2", (40_000, 80))),
        ];
        let program = load_steering().expect("loads (this test needs root)");
        for ((kind, packet), queues) in kinds.iter().flat_map(|kind| [2, 3, 4, 8].map(|n| (kind, n))) {
            let mut flows = vec![0; queues];
            for i in 0..FLOWS {
                flows[hash(program.as_fd(), &packet(i)) as usize % queues] += 1;
            }
            let fair = usize::from(FLOWS) / queues;
            assert!(flows.iter().all(|n| (fair / 2..=fair * 2).contains(n)), "{kind}: {flows:?}");
        }
    }
}
