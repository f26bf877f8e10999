//! What iptables-legacy has in the kernel, in the form in which one call tells whether it has changed
//! (`linux/netfilter_ipv4/ip_tables.h`). There is no event for it, and listing the rules would take a
//! program.

use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_uint, socklen_t};
use socket2::{Domain, Protocol, Socket, Type};

/// The size and the shape of a table: where each hook's rules begin and end, their number, their bytes.
/// It changes whenever a rule is added or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct TableInfo {
    name: [u8; NAME_LEN],
    valid_hooks: c_uint,
    hook_entry: [c_uint; HOOKS],
    underflow: [c_uint; HOOKS],
    num_entries: c_uint,
    size: c_uint,
}

/// Asks about the tables of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Tables(Socket);

impl Tables {
    /// Opens the raw socket that the kernel wants such questions on.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).map(Self)
    }

    /// The table of this name (`filter`, `nat`). Asking for one that is not loaded has the kernel load
    /// it: ask for those only that `/proc/thread-self/net/ip_tables_names` lists.
    ///
    /// # Errors
    /// `ENOENT` if there is no such table, `EPERM` without `CAP_NET_ADMIN`.
    pub fn info(&self, table: &str) -> io::Result<TableInfo> {
        let mut info = TableInfo {
            name: [0; NAME_LEN],
            valid_hooks: 0,
            hook_entry: [0; HOOKS],
            underflow: [0; HOOKS],
            num_entries: 0,
            size: 0,
        };
        // The last byte stays zero: the kernel reads a string.
        for (to, from) in info.name[..NAME_LEN - 1].iter_mut().zip(table.bytes()) {
            *to = from;
        }
        let mut length = size_of::<TableInfo>() as socklen_t;
        // SAFETY: the descriptor is open; the kernel reads and writes at most `length` bytes at `info`,
        // which is that long and plain data of which every value is valid.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_IP,
                IPT_SO_GET_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(info) }
    }
}

/// `XT_TABLE_MAXNAMELEN`
const NAME_LEN: usize = 32;
/// `NF_INET_NUMHOOKS`
const HOOKS: usize = 5;
/// `IPT_BASE_CTL`
const IPT_SO_GET_INFO: c_int = 64;
