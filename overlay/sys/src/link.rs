//! What a program of ours hangs on at a device (`struct bpf_link`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::bpf::{ask, call};

/// What a program hangs on at its device: with the last descriptor of it the kernel takes the program away, also when
/// the process dies. Another program can take its place there without a moment in between, and without the device
/// being set up anew for having one.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// Where on the device (`enum bpf_link_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// What comes in, before there is an `sk_buff`.
    Xdp = 6,
    /// What comes in, behind that (TCX).
    Ingress = 11,
}

impl Link {
    /// Puts `program` at the device of this index.
    ///
    /// # Errors
    /// `EBUSY` or `EEXIST` if there is another where only one can be, `EOPNOTSUPP` if the driver takes none, `EINVAL`
    /// before Linux 5.9 (XDP) or 6.6 (TCX); `ERANGE` and others if an MTU or an offload of the device is in the way.
    pub(crate) fn create(hook: Hook, device: u32, program: BorrowedFd<'_>, flags: u32) -> io::Result<Self> {
        let attach_type = match hook {
            Hook::Xdp => BPF_XDP,
            Hook::Ingress => BPF_TCX_INGRESS,
        };
        let attributes = CreateAttributes { program: program.as_raw_fd(), device, attach_type, flags };
        // SAFETY: the attributes of BPF_LINK_CREATE, which point to nothing.
        unsafe { call(BPF_LINK_CREATE, &attributes) }.map(Self)
    }

    /// Puts `program` in the place of the one that is there.
    ///
    /// # Errors
    /// `ENOLINK` and others once the device is gone, `EINVAL` if the program is of another kind.
    pub(crate) fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let attributes = UpdateAttributes {
            link: self.0.as_raw_fd(),
            program: program.as_raw_fd(),
            flags: 0,
            expected: 0,
        };
        // SAFETY: the attributes of BPF_LINK_UPDATE, which point to nothing.
        unsafe { ask(BPF_LINK_UPDATE, &attributes) }.map(drop)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor from an earlier process as a link, with its place and the index of its device, zero if that is gone;
/// given back if it is none.
///
/// # Errors
/// The descriptor.
pub fn inherit(fd: OwnedFd) -> Result<(Hook, u32, Link), OwnedFd> {
    let mut info = LinkInfo::default();
    let attributes =
        InfoAttributes { fd: fd.as_raw_fd(), len: size_of::<LinkInfo>() as u32, info: &raw mut info as u64 };
    // SAFETY: the attributes of BPF_OBJ_GET_INFO_BY_FD; the kernel writes at most as many bytes as `info` has.
    let asked = unsafe { ask(BPF_OBJ_GET_INFO_BY_FD, &attributes) };
    let hook = [Hook::Xdp, Hook::Ingress].into_iter().find(|hook| *hook as u32 == info.link_type);
    match (asked, hook) {
        // (A program of the same kind would pass here, too, and fail when it is to be updated.)
        (Ok(_), Some(hook)) => Ok((hook, info.device, Link(fd))),
        _ => Err(fd),
    }
}

// linux/bpf.h
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;

/// The first fields of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct CreateAttributes {
    program: i32,
    device: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for `BPF_LINK_UPDATE`.
#[repr(C)]
struct UpdateAttributes {
    link: i32,
    program: i32,
    flags: u32,
    expected: u32,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttributes {
    fd: i32,
    len: u32,
    info: u64,
}

/// The first fields of `struct bpf_link_info`, of one of an XDP or a TCX program.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program: u32,
    padding: u32,
    device: u32,
}
