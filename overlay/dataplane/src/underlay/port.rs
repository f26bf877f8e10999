//! Our own end of the underlay's interface: a program that picks out what is the overlay's, and an `AF_XDP` socket
//! for each receive queue.
//!
//! Everything is made ready before the program is attached, and goes with the [`Port`]: the interface is then as
//! it was.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use overlay_sys::ethtool;
pub use overlay_sys::link::Link;
pub use overlay_sys::xdp_prog::Attach;
use overlay_sys::xdp_prog::{self, Attached, SocketMap};
pub use overlay_sys::xsk::Dropped;
use overlay_sys::xsk::{self, Binding, HEADROOM, Sizes, Socket};
use overlay_wire::MacAddr;

use super::ledger::{Frames, Ledger, Shown};
use super::rings::{RingCounts, RxQueue, TxQueue};
use crate::error::SetupError;

/// Frames for receiving of one queue: with 64-byte packets under flood some 25 ms, for which a worker may have to
/// wait for its processor.
const RECEIVE: u32 = 4096;
/// Frames for sending: a batch is 64, a super-packet of 64 KiB some 45.
const SEND: u32 = 2048;
/// Beside the packet, a VLAN tag.
const LINK_HEADER: u32 = 18;

/// The interface to the other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name, for people.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its address: what frames to us carry, and frames from us.
    pub mac: MacAddr,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its receive queues; at least one.
    pub queues: u32,
}

/// What the port is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Where the program is to be.
    pub attach: Attach,
    /// Whether it is worth nothing unless the card itself reads and writes the frames.
    pub zero_copy_only: bool,
}

impl Wanted {
    fn binding(self) -> Binding {
        match self {
            Self { attach: Attach::Generic, .. } => Binding::Copy,
            Self { zero_copy_only: true, .. } => Binding::ZeroCopy,
            _ => Binding::Best,
        }
    }
}

/// An interface whose packets for us come by rings.
pub struct Port {
    pub(crate) mtu: u32,
    pub(crate) mac: MacAddr,
    /// By receive queue. The sending ends are shared by workers, where there are more of these.
    pub(crate) rx: Vec<RxQueue>,
    pub(crate) tx: Vec<Arc<Mutex<TxQueue>>>,
    pub(crate) attached: Attached,
    pub(crate) counts: Arc<RingCounts>,
    state: Arc<PortState>,
}

/// What there is to tell of a port.
#[derive(Debug)]
pub struct PortState {
    /// The interface.
    pub interface: Interface,
    /// Where the program is.
    pub attach: Attach,
    /// Whether the card itself reads and writes the frames.
    pub zero_copy: bool,
    /// What has gone by the rings.
    pub counts: Arc<RingCounts>,
    sockets: Vec<OwnedFd>,
    /// By queue.
    receiving: Vec<Arc<Shown>>,
    sending: Vec<Arc<Shown>>,
}

/// How many receive queues the interface `name` has.
#[must_use]
pub fn receive_queues(name: &str) -> u32 {
    // A driver that does not tell has one.
    ethtool::receive_queues(name).unwrap_or(1).max(1)
}

/// Whether nobody has any of the interface's queues: each takes an XDP socket, which is closed again. The kernel may take
/// a moment for that.
#[must_use]
pub fn are_queues_free(interface: &Interface, wanted: Wanted) -> bool {
    let Ok(frame) = frame_len(interface) else { return false };
    let sizes = Sizes { frame, receive: 8, send: 8 };
    let opens = |queue| Socket::open(interface.index, queue, sizes, wanted.binding()).is_ok();
    (0..interface.queues).all(opens)
}

/// Whether `error` of [`Port::open`] is that somebody has a queue, who may give it up.
#[must_use]
pub fn is_taken(error: &SetupError) -> bool {
    error.call == OPEN_SOCKET && error.source.kind() == io::ErrorKind::ResourceBusy
}

const OPEN_SOCKET: &str = "open an XDP socket on";

impl PortState {
    /// Where the frames for receiving are, of all queues, and how many there are. With nothing on its way all of
    /// them are lent.
    #[must_use]
    pub fn receiving(&self) -> (Frames, usize) {
        sum(&self.receiving, RECEIVE)
    }

    /// The same of those for sending. With nothing on its way nearly all are free: what was sent last is noted
    /// with what comes next.
    #[must_use]
    pub fn sending(&self) -> (Frames, usize) {
        sum(&self.sending, SEND)
    }

    /// What the kernel has lost, over all queues.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.sockets.iter().filter_map(|socket| xsk::dropped(socket.as_fd()).ok()).fold(
            Dropped::default(),
            |sum, one| Dropped {
                no_frame: sum.no_frame + one.no_frame,
                ring_full: sum.ring_full + one.ring_full,
                other: sum.other + one.other,
                invalid: sum.invalid + one.invalid,
            },
        )
    }
}

fn sum(queues: &[Arc<Shown>], of_each: u32) -> (Frames, usize) {
    let all = queues
        .iter()
        .map(|queue| queue.frames())
        .fold(Frames::default(), |sum, one| Frames { lent: sum.lent + one.lent, free: sum.free + one.free });
    (all, queues.len() * of_each as usize)
}

impl Port {
    /// Takes over what comes to `listen` by `interface`, whose program takes the place of an `earlier` process's.
    ///
    /// # Errors
    /// What failed, and how to mend it; the interface is as it was then. Above all: it has a program already,
    /// its driver can do no XDP, its MTU is too large for that, or `listen` is of IPv6, for which there are no rings.
    pub fn open(
        interface: Interface,
        listen: SocketAddr,
        wanted: Wanted,
        earlier: &mut Option<Link>,
    ) -> Result<Self, SetupError> {
        let Interface { index, mac, mtu, queues, .. } = interface;
        let sizes = Sizes { frame: frame_len(&interface)?, receive: RECEIVE, send: SEND };
        let failed = |call, source: io::Error| SetupError {
            call,
            object: interface.name.clone(),
            remedy: remedy(&source),
            source,
        };
        let SocketAddr::V4(listen) = listen else {
            return Err(SetupError {
                call: "receive IPv6 by the rings of",
                object: interface.name.clone(),
                remedy: "rings carry an underlay of IPv4: use --io=udp",
                source: io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
            });
        };
        let map = SocketMap::new(queues).map_err(|e| failed("make a map of XDP sockets for", e))?;
        let binding = wanted.binding();
        let counts = Arc::<RingCounts>::default();
        let (mut rx, mut tx, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut receiving, mut sending) = (Vec::new(), Vec::new());
        let mut zero_copy = true;
        for queue in 0..queues {
            let open = || {
                let socket = Socket::open(index, queue, sizes, binding)?;
                map.put(queue, socket.rx.socket())?;
                Ok((socket.rx.socket().try_clone_to_owned()?, socket))
            };
            let (descriptor, socket) = open().map_err(|e| failed(OPEN_SOCKET, e))?;
            zero_copy &= socket.zero_copy;
            sockets.push(descriptor);
            let ledger =
                |first, count| Ledger::new(u64::from(first) * u64::from(sizes.frame), sizes.frame, count);
            let (below, above) = (ledger(0, sizes.receive), ledger(sizes.receive, sizes.send));
            receiving.push(below.shown());
            sending.push(above.shown());
            rx.push(RxQueue::new(socket.rx, below, listen, Arc::clone(&counts)));
            let queue = TxQueue::new(socket.tx, above, sizes.frame, Arc::clone(&counts));
            tx.push(Arc::new(Mutex::new(queue)));
        }
        let (longest, how) = (sizes.frame - HEADROOM, wanted.attach);
        let attached = xdp_prog::attach(index, mac.0, listen, longest, map, how, earlier.take())
            .map_err(|e| failed("attach an XDP program to", e))?;
        let state = PortState {
            attach: wanted.attach,
            zero_copy,
            counts: Arc::clone(&counts),
            sockets,
            receiving,
            sending,
            interface: interface.clone(),
        };
        Ok(Self { mtu, mac, rx, tx, attached, counts, state: Arc::new(state) })
    }

    /// What there is to tell of it, for as long as anybody wants to know. (It keeps no program attached.)
    #[must_use]
    pub fn state(&self) -> Arc<PortState> {
        Arc::clone(&self.state)
    }
}

/// The frames that hold a packet of the interface whole. In one piece there may be a page.
fn frame_len(interface: &Interface) -> Result<u32, SetupError> {
    let needed = HEADROOM + LINK_HEADER + interface.mtu;
    [2048, 4096].into_iter().find(|frame| needed <= *frame).ok_or_else(|| SetupError {
        call: "receive whole frames by",
        object: format!("{}, whose MTU is {}", interface.name, interface.mtu),
        remedy: "XDP needs an MTU of at most 3822; sockets have no such limit",
        source: io::Error::from_raw_os_error(libc::EMSGSIZE),
    })
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            "it has an XDP program or XDP sockets already, see 'ip link show' and 'bpftool net': remove them, or use --io=udp"
        }
        Some(libc::EOPNOTSUPP) => {
            "its driver cannot do that: use --io=udp, or --io=xdp-generic to try it out"
        }
        Some(libc::EAFNOSUPPORT) => {
            "who starts it has to allow sockets of that family (RestrictAddressFamilies=AF_XDP), and the kernel to have them"
        }
        Some(libc::EPERM) => "CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF are needed",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "12 MiB of memory are locked for each queue: raise the limit (LimitMEMLOCK=infinity)"
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "an MTU, an offload (LRO) or a queue setting of the interface, or an old kernel, is in the way: see the kernel log, or use --io=udp"
        }
        _ => "see the kernel log, or use --io=udp",
    }
}
