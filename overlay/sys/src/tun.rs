//! Opening TUN queues and asking the kernel for their virtio header (`linux/if_tun.h`).

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_short};

/// Size of the `virtio_net_hdr_v1` in front of every packet, as set by `TUNSETVNETHDRSZ`.
pub const VNET_HDR_LEN: usize = 12;

/// Opens one queue of the TUN device `name`, non-blocking, with a virtio header of
/// [`VNET_HDR_LEN`] bytes. Creates the device if there is none.
///
/// # Errors
/// What `/dev/net/tun` or the ioctl said: `EBUSY` if another process holds the queue of a
/// single-queue device, `EINVAL` if `name` belongs to a device that is no multi-queue TUN,
/// `EPERM` without `CAP_NET_ADMIN`, `E2BIG` beyond the kernel's 256 queues.
pub fn open_queue(name: &str) -> io::Result<OwnedFd> {
    open(name, libc::IFF_TUN, VNET_HDR_LEN)
}

/// Size of the `virtio_net_hdr_v1_hash_tunnel` in front of every frame of a TAP for whole tunnel packets.
pub const TUNNEL_VNET_HDR_LEN: usize = 24;

/// Opens one queue of the TAP device `name`, non-blocking, which takes frames that hold a TCP super-packet in
/// a UDP tunnel, behind a virtio header of [`TUNNEL_VNET_HDR_LEN`] bytes. Creates the device if there is none,
/// and it goes with its last queue.
///
/// # Errors
/// As [`open_queue`]; `EINVAL` also before Linux 6.17.
pub fn open_tunnel_tap(name: &str) -> io::Result<OwnedFd> {
    let fd = open(name, libc::IFF_TAP, TUNNEL_VNET_HDR_LEN)?;
    let bits = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM;
    // SAFETY: TUNSETOFFLOAD takes its bits by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })?;
    Ok(fd)
}

fn open(name: &str, kind: c_int, header_len: usize) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let fd = OwnedFd::from(file);

    let mut request = request(name)?;
    let flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;

    let size = header_len as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `size` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    Ok(fd)
}

/// Brings the device `name` up as one that sends nothing by itself: without ARP, and with an MTU too small for
/// IPv6, which so is not there (`addrconf_notify`, net/ipv6/addrconf.c). Returns its index and MAC address.
///
/// # Errors
/// `ENODEV` if there is no such device, `EPERM`.
pub fn bring_up_mute(name: &str) -> io::Result<(u32, [u8; 6])> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let ask = |call: libc::Ioctl, request: &mut libc::ifreq| {
        // SAFETY: each of the calls below reads and writes one `ifreq`, which `request` is.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), call, std::ptr::from_mut(request)) })
    };
    let mut mtu = request(name)?;
    mtu.ifr_ifru.ifru_mtu = 68;
    ask(libc::SIOCSIFMTU, &mut mtu)?;
    let mut flags = request(name)?;
    flags.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as c_short;
    ask(libc::SIOCSIFFLAGS, &mut flags)?;
    let (mut index, mut address) = (request(name)?, request(name)?);
    ask(libc::SIOCGIFINDEX, &mut index)?;
    ask(libc::SIOCGIFHWADDR, &mut address)?;
    // SAFETY: these calls have set the index and the address; any bits are a valid value of them.
    let (index, address) = unsafe { (index.ifr_ifru.ifru_ifindex, address.ifr_ifru.ifru_hwaddr.sa_data) };
    Ok((index.cast_unsigned(), std::array::from_fn(|i| address[i].to_ne_bytes()[0])))
}

/// The device that `fd` is a queue of; `None` if it is none such as [`open_queue`] opens, or its
/// device has been deleted.
#[must_use]
pub fn device_of(fd: BorrowedFd<'_>) -> Option<String> {
    of_kind(fd, libc::IFF_TUN, VNET_HDR_LEN)
}

/// The same for one such as [`open_tunnel_tap`] opens.
#[must_use]
pub fn tunnel_tap_of(fd: BorrowedFd<'_>) -> Option<String> {
    of_kind(fd, libc::IFF_TAP, TUNNEL_VNET_HDR_LEN)
}

fn of_kind(fd: BorrowedFd<'_>, kind: c_int, header_len: usize) -> Option<String> {
    let request = interface_of(fd).ok()?;
    let mut size: c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int, which `size` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETVNETHDRSZ, &raw mut size) }).ok()?;
    // SAFETY: TUNGETIFF has set the flags; any bits are a valid value of them.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    if flags & KIND != wanted || size != header_len as c_int {
        return None;
    }
    let name: Vec<u8> =
        request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).ok()
}

/// Whether `fd` was a queue of a device that has been deleted.
#[must_use]
pub fn has_lost_its_device(fd: BorrowedFd<'_>) -> bool {
    interface_of(fd).is_err_and(|error| error.raw_os_error() == Some(libc::EBADFD))
}

fn interface_of(fd: BorrowedFd<'_>) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is. Other descriptors refuse it, or know
    // the number as a request that writes no more: it carries direction and size.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    Ok(request)
}

/// Has the device stay when no queue is open any more.
///
/// # Errors
/// `EBADFD` once the device has been deleted.
pub fn set_persistent(queue: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its value by value.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST, 1) })
}

/// Sets how many packets each queue of the device `name` holds (`txqueuelen`).
///
/// # Errors
/// `ENODEV` if there is no such device, `ENOMEM`.
pub fn set_queue_len(name: &str, packets: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = request(name)?;
    // The kernel reads the length as the int at the place of `ifr_qlen`; all members of the union
    // begin there.
    request.ifr_ifru.ifru_metric = c_int::from(packets);
    // SAFETY: SIOCSIFTXQLEN reads one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &raw const request) })
}

/// Sets what the device hands over unfinished: with neither, only finished packets; with `tso` TCP
/// super-packets and unfilled checksums, with `uso` UDP super-packets too. It holds for all queues.
///
/// # Errors
/// `EINVAL` where the kernel does not know it: `uso` before Linux 6.2.
pub fn set_offloads(queue: BorrowedFd<'_>, tso: bool, uso: bool) -> io::Result<()> {
    let mut bits = 0;
    if tso || uso {
        bits |= TUN_F_CSUM;
    }
    if tso {
        bits |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    }
    if uso {
        // The kernel takes these two only together.
        bits |= TUN_F_USO4 | TUN_F_USO6;
    }
    // SAFETY: TUNSETOFFLOAD takes its bits by value.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })
}

/// A request about the device `name`.
pub(crate) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a device name has 1 to {} bytes", request.ifr_name.len() - 1),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

// linux/if_tun.h
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNGETVNETHDRSZ: libc::Ioctl = 0x8004_54d7;
/// The flags that make a queue what it is; the kernel sets others besides, as for persistence.
const KIND: c_int = libc::IFF_TUN
    | libc::IFF_TAP
    | libc::IFF_NO_PI
    | libc::IFF_VNET_HDR
    | libc::IFF_MULTI_QUEUE
    | libc::IFF_NAPI
    | libc::IFF_NAPI_FRAGS;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x80;
const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;

pub(crate) fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
