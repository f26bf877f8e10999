//! The underlay by UDP sockets: a lane's batch is one `sendmmsg`, an arrival one `recvmmsg`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use overlay_sys::mmsg::{self, Outgoing, Received, RecvBatch, SendArrays, Slice};
use overlay_sys::mtu::{self, DontFragment};
use overlay_sys::wake::{Patience, StopFlag};
use overlay_wire::ecn::Ecn;
use overlay_wire::outer::Outer;
use overlay_wire::tunnel::SuperPacket;
use socket2::{Domain, Protocol, Socket, Type};

use super::whole::{Cutter, TapQueue};
use super::{Arrival, Receiver, Transmitter, Unsent};
use crate::batch::{Batch, MAX_RUN, MAX_RUN_LEN, Run};
use crate::error::SetupError;
use crate::offload::{Offload, Offloads, is_gso_broken, is_tunnel_gso_broken};

/// Messages of one `sendmmsg`. More runs than this in a batch are sent by several calls.
const SEND_BATCH: usize = 64;
/// Messages of one `recvmmsg`: with each as large as it can be, 1 MiB, which stays in the
/// processor's cache until it is written to the overlay device.
const RECV_BATCH: usize = 16;
/// A virtual wire delivers datagrams as large as UDP allows, whatever its MTU says.
const DATAGRAM_LEN: usize = 65_535;
/// Receive buffers for bursts. The kernel counts what it allocates, not what arrives: 64 KiB of a virtual
/// wire cost up to twice that. With 4 MiB, four TCP streams between pods lost some 1,000 super-packets in
/// six seconds here whenever the worker had to wait for its processor; with 16 MiB none.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Send buffers: as large as a batch, so that sending it needs no pause in between.
const SEND_BUFFER: usize = 1 << 20;
/// What full buffers may cost a batch in all: long against any burst, short against the time after which a worker
/// counts as stuck. What cannot be sent in this time is dropped and counted.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a socket that only sends may receive.
const NO_BUFFER: usize = 4096;

/// Checks that nobody has `address`, not even to share it: another overlay daemon on the same port
/// would, and take half of the packets.
///
/// # Errors
/// As [`open_shared`].
pub fn probe(address: SocketAddr) -> Result<(), SetupError> {
    bind(address, false).map(drop)
}

/// A descriptor from an earlier process as a socket that shares a port, with its address; given back if
/// it is none of the kind that [`open_shared`] opens.
///
/// # Errors
/// The descriptor.
pub fn inherit(fd: OwnedFd) -> Result<(SocketAddr, Socket), OwnedFd> {
    let socket = Socket::from(fd);
    let is_ours = socket.r#type().is_ok_and(|kind| kind == Type::DGRAM)
        && socket.protocol().is_ok_and(|protocol| protocol == Some(Protocol::UDP))
        && socket.reuse_port().unwrap_or(false);
    match address(&socket).filter(|_| is_ours) {
        Some(address) => Ok((address, socket)),
        None => Err(socket.into()),
    }
}

/// Where a socket is bound to.
#[must_use]
pub fn address(socket: &Socket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}

/// The headers of what `socket` sends, for those that leave from its port by another way. Only for IPv4.
///
/// # Errors
/// It cannot be asked, or is none of IPv4.
pub(super) fn outer(socket: &Socket) -> io::Result<Outer> {
    let Some(SocketAddr::V4(from)) = address(socket) else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    Ok(Outer::new(from, u8::try_from(socket.ttl_v4()?).unwrap_or(u8::MAX)))
}

/// What a worker receives by.
#[derive(Debug)]
pub struct Shared {
    /// A socket of those that share the port.
    pub socket: Socket,
    /// One that this has taken the place of, with what came before that.
    pub earlier: Option<Socket>,
}

/// Opens `count` sockets that share `address`, those that were `inherited` among them; the kernel
/// spreads among them what comes in by the sender's address and port.
///
/// It lets sockets of one user only share a port. Where another had those that were inherited, and they are too few,
/// new ones take the place of all of them.
///
/// # Errors
/// What failed, and how to mend it: above all a port that is taken, be it by a process or by a
/// kernel VXLAN device.
pub fn open_shared(
    address: SocketAddr,
    count: usize,
    offloads: &Offloads,
    mut inherited: Vec<Socket>,
) -> Result<Vec<Shared>, SetupError> {
    if inherited.is_empty() {
        probe(address)?;
    }
    inherited.truncate(count);
    let more: Result<Vec<Socket>, _> = (inherited.len()..count).map(|_| bind(address, true)).collect();
    let (sockets, earlier) = match more {
        Ok(more) => (inherited.into_iter().chain(more).collect(), Vec::new()),
        Err(error) if is_taken(&error.source) && !inherited.is_empty() => {
            (supersede(&inherited, address, count)?, inherited)
        }
        Err(error) => return Err(error),
    };
    for socket in sockets.iter().chain(&earlier) {
        mmsg::tell_tos(socket.as_fd()).map_err(|source| SetupError {
            call: "ask for the type of service of packets",
            object: "of a UDP socket".to_owned(),
            remedy: "see the kernel log",
            source,
        })?;
    }
    for socket in &sockets {
        size_buffers(socket, RECEIVE_BUFFER, SEND_BUFFER);
        may_be_cut(socket)?;
        if offloads.is_on(Offload::Gro) && mmsg::set_udp_gro(socket.as_fd(), true).is_err() {
            offloads.switch_off(Offload::Gro);
        }
        if offloads.is_on(Offload::Gso) && mmsg::probe_udp_segment(socket.as_fd()).is_err() {
            offloads.switch_off(Offload::Gso);
        }
    }
    let mut earlier = earlier.into_iter();
    Ok(sockets.into_iter().map(|socket| Shared { socket, earlier: earlier.next() }).collect())
}

/// Binds `count` sockets to the `address` of `earlier` ones, which are another user's. From then on what comes goes to
/// the new ones: they are a group of their own, and of several the kernel takes the youngest of IPv4
/// (`udp_lib_get_port` and `udp4_lib_lookup2` in `net/ipv4/udp.c`, as of Linux 6.18). Of IPv6 it takes the oldest: these
/// are connected, to themselves, and receive from nobody else.
fn supersede(earlier: &[Socket], address: SocketAddr, count: usize) -> Result<Vec<Socket>, SetupError> {
    let sharing = |sockets: &[Socket], yes| {
        sockets.iter().try_for_each(|socket| socket.set_reuse_address(yes)).map_err(|source| SetupError {
            call: "share the UDP port with other users",
            object: address.to_string(),
            remedy: "see the kernel log",
            source,
        })
    };
    sharing(earlier, true)?;
    let open = |_| bind_as(address, |socket| socket.set_reuse_port(true).and(socket.set_reuse_address(true)));
    let sockets: Result<Vec<Socket>, _> = (0..count).map(open).collect();
    // Nobody else is to come in by that door.
    sharing(earlier, false)?;
    let sockets = sockets?;
    sharing(&sockets, false)?;
    if address.is_ipv6() {
        earlier.iter().try_for_each(|socket| socket.connect(&address.into())).map_err(|source| {
            SetupError {
                call: "take the UDP port over from other users",
                object: address.to_string(),
                remedy: "see the kernel log",
                source,
            }
        })?;
    }
    Ok(sockets)
}

/// Opens `count` sockets that only send, from `address` and a port of their own each.
///
/// # Errors
/// What failed, and how to mend it.
pub fn open_lanes(address: IpAddr, count: usize) -> Result<Vec<Socket>, SetupError> {
    let open = |_| {
        let socket = bind(SocketAddr::new(address, 0), false)?;
        size_buffers(&socket, NO_BUFFER, SEND_BUFFER);
        may_be_cut(&socket)?;
        Ok(socket)
    };
    (0..count).map(open).collect()
}

fn bind(address: SocketAddr, shared: bool) -> Result<Socket, SetupError> {
    bind_as(address, |socket| socket.set_reuse_port(shared))
}

fn bind_as(
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> Result<Socket, SetupError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            // Each family has sockets of its own.
            socket.set_only_v6(true)?;
        }
        prepare(&socket)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    bind().map_err(|source: io::Error| SetupError {
        call: "bind the UDP port",
        object: address.to_string(),
        remedy: remedy(address.port(), &source),
        source,
    })
}

/// Buffers of the wanted size if we may, else as large as `net.core.{r,w}mem_max` lets them be:
/// smaller ones lose packets in bursts, and are no reason not to start.
fn size_buffers(socket: &Socket, receive: usize, send: usize) {
    if mmsg::force_buffers(socket.as_fd(), receive, send).is_err() {
        let _ = socket.set_recv_buffer_size(receive);
        let _ = socket.set_send_buffer_size(send);
    }
}

/// A path that is narrower than the interface costs fragments and no packets, also where its routers do not
/// say so ([`crate::path_mtu`]). The kernel's VXLAN devices, as flannel makes them, do the same.
fn may_be_cut(socket: &Socket) -> Result<(), SetupError> {
    mtu::set_dont_fragment(socket.as_fd(), DontFragment::Never).map_err(|source| SetupError {
        call: "let packets be fragmented",
        object: "of a UDP socket".to_owned(),
        remedy: "see the kernel log",
        source,
    })
}

fn is_taken(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRINUSE)
}

fn remedy(port: u16, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        // Of no particular port.
        Some(libc::EADDRINUSE) if port == 0 => {
            "no port is left: widen net.ipv4.ip_local_port_range, or start with --source-port-spread=off"
        }
        Some(libc::EADDRINUSE) => {
            "the port is taken: see 'ss -ulnp', or 'ip -d link show type vxlan' for a kernel VXLAN device"
        }
        Some(libc::EADDRNOTAVAIL) => "no interface of this host has that address: see --iface",
        Some(libc::EACCES | libc::EPERM) => "run with CAP_NET_BIND_SERVICE, or choose a port above 1023",
        _ => "see the kernel log",
    }
}

/// The sending side: a socket a lane, and a TAP's queue for what leaves whole.
pub struct UdpTransmitter {
    lanes: Vec<Socket>,
    arrays: SendArrays,
    offloads: Arc<Offloads>,
    whole: Option<Whole>,
}

/// What it takes to send super-packets whole.
struct Whole {
    tap: TapQueue,
    /// The headers of each lane.
    outer: Vec<Outer>,
    cutter: Cutter,
}

impl UdpTransmitter {
    /// Sends through `lanes`, without waiting.
    #[must_use]
    pub fn new(lanes: Vec<Socket>, offloads: Arc<Offloads>) -> Self {
        Self { lanes, arrays: SendArrays::new(SEND_BATCH), offloads, whole: None }
    }

    /// Waits while a buffer is full, and the packets behind wait in the overlay device's queue; but not once `stop`
    /// is raised.
    #[must_use]
    pub fn waiting(self, stop: Arc<StopFlag>) -> Self {
        Self { arrays: self.arrays.waiting(Patience::new(stop)), ..self }
    }

    /// Sends super-packets whole by `tap`, with the source ports of their lanes.
    #[must_use]
    pub fn with_tap(mut self, tap: TapQueue) -> Self {
        let headers: io::Result<Vec<_>> = self.lanes.iter().map(outer).collect();
        self.whole = headers.ok().map(|outer| Whole { tap, outer, cutter: Cutter::default() });
        self
    }
}

impl Transmitter for UdpTransmitter {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn takes_super_packets(&self) -> bool {
        self.whole.is_some() && self.offloads.is_on(Offload::TunnelGso)
    }

    fn transmit(&mut self, batch: &Batch, mut failed: impl FnMut(Unsent<'_>)) {
        self.begin();
        for lane in 0..self.lanes.len() {
            self.send(lane, batch.runs(lane), batch, &mut failed);
        }
    }
}

impl UdpTransmitter {
    /// The sockets, by lane.
    #[must_use]
    pub fn sockets(&self) -> &[Socket] {
        &self.lanes
    }

    /// Begins a batch: a wire that takes nothing is waited for as long as it may cost one.
    pub fn begin(&mut self) {
        self.arrays.patience().begin(PATIENCE);
    }

    /// What a wire that takes nothing may still cost the batch, whichever way it goes.
    pub fn patience(&mut self) -> &mut Patience {
        self.arrays.patience()
    }

    /// Sends `runs`, of `batch`, by a lane.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn send(
        &mut self,
        lane: usize,
        mut runs: &[Run],
        batch: &Batch,
        failed: &mut impl FnMut(Unsent<'_>),
    ) {
        let Self { lanes, arrays, offloads, whole } = self;
        let socket = &lanes[lane];
        while let Some(first) = runs.first() {
            if let (Some((packet, place)), Some(whole)) = (first.super_packet(), whole.as_mut()) {
                let bytes = &batch.bytes()[place.start..place.start + place.len];
                let (len, packets) = (packet.payload_len(), packet.segments() as u16);
                let sent = match first.to() {
                    SocketAddr::V4(to) => {
                        let outer = whole.outer[lane].headers(to, first.ecn(), len, packets);
                        whole.tap.send(packet, bytes, &outer)
                    }
                    // Headers of our own are IPv4's.
                    SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
                };
                if let Err(error) = sent {
                    if is_tunnel_gso_broken(&error) {
                        offloads.switch_off(Offload::TunnelGso);
                    }
                    let cut = whole.cutter.cut(packet, bytes);
                    send_cut(arrays, socket, offloads, first, packet, cut, failed);
                }
                runs = &runs[1..];
                continue;
            }
            if !offloads.is_on(Offload::Gso) {
                send_singly(arrays, socket, batch, first, failed);
                runs = &runs[1..];
                continue;
            }
            let until_whole = runs.iter().take_while(|run| run.super_packet().is_none());
            match arrays.send(socket.as_fd(), batch.bytes(), until_whole.map(Run::whole)) {
                Ok(sent) => runs = &runs[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if first.count() > 1 && is_gso_broken(&error) => {
                    offloads.switch_off(Offload::Gso);
                }
                Err(error) if first.count() > 1 && error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    send_singly(arrays, socket, batch, first, failed);
                    runs = &runs[1..];
                }
                Err(error) => {
                    let (count, inner_len) = (first.count(), first.inner_len());
                    failed(Unsent { run: first, first: 0, count, inner_len, error });
                    runs = &runs[1..];
                }
            }
        }
    }
}

/// Sends the datagrams of `run` one by one, which the kernel may cut into fragments.
fn send_singly(
    arrays: &mut SendArrays,
    socket: &Socket,
    batch: &Batch,
    run: &Run,
    failed: &mut impl FnMut(Unsent<'_>),
) {
    let mut next = 0;
    while next < run.count() {
        let messages = run.singly().skip(next);
        match arrays.send(socket.as_fd(), batch.bytes(), messages) {
            Ok(sent) => next += sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let inner_len = run.inner_len() / run.count();
                failed(Unsent { run, first: next, count: 1, inner_len, error });
                next += 1;
            }
        }
    }
}

/// Sends the segments of `run`, a super-packet, as runs: of as many as may be, and one by one where the kernel
/// does not take these.
fn send_cut(
    arrays: &mut SendArrays,
    socket: &Socket,
    offloads: &Offloads,
    run: &Run,
    packet: SuperPacket,
    (bytes, step): (&[u8], usize),
    failed: &mut impl FnMut(Unsent<'_>),
) {
    let mut most = if offloads.is_on(Offload::Gso) { (MAX_RUN_LEN / step).clamp(1, MAX_RUN) } else { 1 };
    let mut rest = 0..bytes.len();
    while !rest.is_empty() {
        let slices = [Slice { start: rest.start, len: rest.len().min(most * step) }];
        let segment_len = (slices[0].len > step).then_some(step as u16);
        let message = Outgoing { to: run.to(), tos: run.ecn() as u8, slices: &slices, segment_len };
        match arrays.send(socket.as_fd(), bytes, std::iter::once(message)) {
            Ok(_) => rest.start += slices[0].len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if segment_len.is_some() => {
                if is_gso_broken(&error) {
                    offloads.switch_off(Offload::Gso);
                }
                most = 1;
            }
            Err(error) => {
                let inner_len = packet.segments_len() / packet.segments();
                failed(Unsent { run, first: rest.start / step, count: 1, inner_len, error });
                rest.start += slices[0].len;
            }
        }
    }
}

/// The receiving side of one socket.
pub struct UdpReceiver {
    shared: Shared,
    batch: RecvBatch,
}

impl UdpReceiver {
    /// Receives from `shared`.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self { shared, batch: RecvBatch::new(RECV_BATCH, DATAGRAM_LEN) }
    }
}

impl Receiver for UdpReceiver {
    fn receive(&mut self) -> io::Result<usize> {
        if let Some(earlier) = &self.shared.earlier {
            match self.batch.receive(earlier.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.shared.earlier = None,
                received => return received,
            }
        }
        self.batch.receive(self.shared.socket.as_fd())
    }

    fn arrival(&self, index: usize) -> Arrival {
        let Received { from, tos, place, segment_len, truncated } = self.batch.received(index);
        Arrival { from, ecn: Ecn::of_tos(tos), place, segment_len, truncated }
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.batch.bytes()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use overlay_wire::{Format, vnet};

    use super::*;
    use crate::table::tests::{local, peer};
    use crate::table::{Local, PeerTable, Route};

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const FAMILIES: [IpAddr; 2] = [LOCALHOST, IpAddr::V6(Ipv6Addr::LOCALHOST)];

    fn free_address() -> SocketAddr {
        free_address_of(LOCALHOST)
    }

    fn free_address_of(address: IpAddr) -> SocketAddr {
        std::net::UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_port_that_is_taken_and_none_that_is_left_have_their_own_remedies() {
        let taken = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert!(remedy(8472, &taken).contains("the port is taken"));
        assert!(remedy(0, &taken).contains("net.ipv4.ip_local_port_range"));
    }

    /// A batch of one-byte packets to `to`, of runs that end where the destination changes.
    fn batch(to: &[SocketAddr], lanes: usize) -> Batch {
        let mut batch = Batch::new(to.len(), lanes);
        let mut tables = HashMap::new();
        for (i, to) in to.iter().enumerate() {
            let table = tables.entry(to).or_insert_with(|| {
                let local = Local { port: to.port(), public: to.ip().into(), ..local(Format::FlannelUdp) };
                PeerTable::new(local, vec![peer("10.1.63.0/24", &to.ip().to_string())])
            });
            let Route::Peer(hop) = table.route("10.1.63.2".parse().unwrap()) else { panic!("no route") };
            batch.next_read()[vnet::LEN] = i as u8;
            batch.push(i % lanes, hop, 1);
        }
        batch
    }

    fn receive(receiver: &mut UdpReceiver) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(count) = receiver.receive() {
            for index in 0..count {
                let place = receiver.arrival(index).place;
                bytes.extend_from_slice(&receiver.bytes()[place]);
            }
        }
        bytes
    }

    #[test]
    fn everything_arrives_with_runs_and_without() {
        for (wanted, family) in
            [&Offload::ALL[..], &[]].into_iter().flat_map(|wanted| FAMILIES.map(|family| (wanted, family)))
        {
            let offloads = Arc::new(Offloads::new(wanted));
            let address = free_address_of(family);
            let mut receiver =
                UdpReceiver::new(open_shared(address, 1, &offloads, Vec::new()).unwrap().remove(0));
            let lanes = open_lanes(family, 1).unwrap();
            let mut transmitter = UdpTransmitter::new(lanes, Arc::clone(&offloads));
            transmitter.transmit(&batch(&[address; 40], 1), |unsent| panic!("{unsent:?}"));
            assert_eq!(receive(&mut receiver), (0..40).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn what_cannot_be_sent_does_not_stop_the_rest() {
        let offloads = Arc::new(Offloads::new(&Offload::ALL));
        let address = free_address();
        let mut receiver =
            UdpReceiver::new(open_shared(address, 1, &offloads, Vec::new()).unwrap().remove(0));
        let mut transmitter = UdpTransmitter::new(open_lanes(LOCALHOST, 1).unwrap(), Arc::clone(&offloads));
        let forbidden = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 9);
        let mut failures = Vec::new();
        transmitter.transmit(&batch(&[address, forbidden, forbidden, address], 1), |unsent| {
            failures.push((unsent.count, unsent.inner_len, unsent.error.raw_os_error()));
        });
        assert_eq!(failures, [(2, 2, Some(libc::EACCES))]);
        assert_eq!(receive(&mut receiver), [0, 3]);
    }

    #[test]
    fn a_socket_that_cannot_segment_sends_all_the_same() {
        let offloads = Arc::new(Offloads::new(&Offload::ALL));
        let address = free_address();
        let mut receiver =
            UdpReceiver::new(open_shared(address, 1, &offloads, Vec::new()).unwrap().remove(0));
        let lanes = open_lanes(LOCALHOST, 1).unwrap();
        // With its checksums off a socket refuses runs, as one does whose interface cannot.
        mmsg::set_no_check(lanes[0].as_fd()).unwrap();
        let mut transmitter = UdpTransmitter::new(lanes, Arc::clone(&offloads));
        transmitter.transmit(&batch(&[address; 5], 1), |unsent| panic!("{unsent:?}"));
        assert_eq!(receive(&mut receiver), [0, 1, 2, 3, 4]);
        assert!(!offloads.is_on(Offload::Gso));
    }

    #[test]
    fn lanes_have_ports_of_their_own() {
        for family in FAMILIES {
            let lanes = open_lanes(family, 4).unwrap();
            let ports: std::collections::BTreeSet<u16> =
                lanes.iter().map(|lane| address(lane).unwrap().port()).collect();
            assert_eq!(ports.len(), 4);
        }
    }

    #[test]
    fn sockets_of_another_user_are_superseded_and_what_they_hold_is_received() {
        for family in FAMILIES {
            let address = free_address_of(family);
            let offloads = Offloads::default();
            let open = |count, inherited| open_shared(address, count, &offloads, inherited).unwrap();
            let theirs: Vec<Socket> = open(2, Vec::new()).into_iter().map(|shared| shared.socket).collect();
            // A socket is the user's whom its inode is.
            theirs.iter().for_each(|socket| std::os::unix::fs::fchown(socket, Some(64_242), None).unwrap());
            let kept = theirs.iter().map(|socket| socket.try_clone().unwrap()).collect();
            let send = |bytes: std::ops::Range<u8>| {
                // From many ports, so that each socket of a group gets some.
                for byte in bytes {
                    let from = std::net::UdpSocket::bind((family, 0)).unwrap();
                    from.send_to(&[byte], address).unwrap();
                }
            };
            send(0..32);
            let more = open(3, kept);
            send(32..64);
            let ours: Vec<Socket> = more.iter().map(|shared| shared.socket.try_clone().unwrap()).collect();
            let mut receivers: Vec<_> = more.into_iter().map(UdpReceiver::new).collect();
            let received: Vec<Vec<u8>> = receivers.iter_mut().map(receive).collect();
            assert!(received.iter().all(|bytes| bytes.is_sorted_by_key(|byte| *byte >= 32)), "{received:?}");
            assert!(received.iter().all(|bytes| bytes.iter().any(|byte| *byte >= 32)), "{received:?}");
            let mut all = received.concat();
            all.sort_unstable();
            assert_eq!(all, (0..64).collect::<Vec<u8>>());
            for socket in theirs.iter().chain(&ours) {
                assert!(!socket.reuse_address().unwrap(), "a stranger could bind the port, too");
            }
            drop((theirs, receivers));
            assert_eq!(open(4, ours).iter().filter(|shared| shared.earlier.is_some()).count(), 0);
        }
    }

    #[test]
    fn a_taken_port_is_an_error_even_if_its_holder_shares() {
        for family in FAMILIES {
            let address = free_address_of(family);
            let _holder = open_shared(address, 2, &Offloads::default(), Vec::new()).unwrap();
            let error = open_shared(address, 1, &Offloads::default(), Vec::new()).unwrap_err().to_string();
            assert!(error.contains(&address.to_string()) && error.contains("taken"), "{error}");
        }
    }

    #[test]
    fn each_family_has_the_port_for_itself() {
        let offloads = Offloads::default();
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), free_address().port());
        let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), v4.port());
        let _v4 = open_shared(v4, 1, &offloads, Vec::new()).unwrap();
        let sockets = open_shared(v6, 1, &offloads, Vec::new()).unwrap();
        assert!(sockets[0].socket.only_v6().unwrap());
        assert_eq!(address(&sockets[0].socket), Some(v6));
    }

    #[test]
    fn headers_are_made_up_for_ipv4_alone() {
        let offloads = Arc::new(Offloads::new(&Offload::ALL));
        for (family, expected) in FAMILIES.into_iter().zip([true, false]) {
            let lanes = open_lanes(family, 2).unwrap();
            assert_eq!(outer(&lanes[0]).is_ok(), expected, "{family}");
            assert!(!UdpTransmitter::new(lanes, Arc::clone(&offloads)).takes_super_packets());
        }
    }
}
