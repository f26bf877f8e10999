//! How large packets to a peer may be, asked by echoes that must not be cut on the way.
//!
//! The packets of the data plane themselves may be cut: where the path is narrower than the interface, routers
//! on the way do it, whether or not their ICMP errors come back, and nothing is lost for it. What it costs is
//! spared by telling inner senders, and for that the path is asked beside the data, by the control plane.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use overlay_sys::mtu::{self, DontFragment};
use overlay_wire::checksum;
use overlay_wire::ecn::Ecn;
use overlay_wire::ip::Version;
use overlay_wire::outer::{self, Outer};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::echo::{self, Echo, EchoOut, Kind};
use crate::error::SetupError;
use crate::table::PeerTable;

/// What sends packets that arrive as they were sent, or not at all.
pub struct Prober {
    out: Box<dyn EchoOut + Sync>,
    from: IpAddr,
}

impl Prober {
    /// Asks from this address of the host, by which the peers know it, and a port of its own, as flows have theirs.
    ///
    /// # Errors
    /// No socket is to be had.
    pub fn by_any_port(from: IpAddr) -> Result<Self, SetupError> {
        let open = || {
            let socket = UdpSocket::bind((from, 0))?;
            mtu::set_dont_fragment(socket.as_fd(), DontFragment::Always)?;
            Ok(Socket::from(socket))
        };
        let socket = open().map_err(|source| failed(from, source))?;
        Ok(Self { out: Box::new(socket), from })
    }

    /// Asks from the one port that all packets leave by, which a firewall on the way may insist on.
    ///
    /// # Errors
    /// No socket is to be had; `EPERM` without `CAP_NET_RAW`, `EAFNOSUPPORT` for IPv6.
    pub fn by(from: SocketAddr) -> Result<Self, SetupError> {
        let failed = |source| failed(from.ip(), source);
        let SocketAddr::V4(v4) = from else {
            return Err(failed(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)));
        };
        // With this protocol packets are given whole, header and all: the sockets at that port send without DF.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let socket = socket.map_err(failed)?;
        // As far as any echo goes; routers take off from it.
        let outer = Mutex::new(Outer::new(v4, TTL));
        Ok(Self { out: Box::new(OnePort { socket, outer }), from: from.ip() })
    }

    /// Asks the node whose overlay device has the address `to` for an echo with `token`, by a packet of `len`
    /// bytes on the wire, all of its headers counted.
    ///
    /// # Errors
    /// `EMSGSIZE` if the interface does not take it; `HostUnreachable` if no node has that address; otherwise
    /// what the kernel said.
    pub fn ask(&self, to: IpAddr, token: u64, len: u32, table: &PeerTable) -> io::Result<()> {
        let outer = Version::of(self.from);
        let inner = len.saturating_sub(table.local().format.overhead(outer)) as usize;
        echo::send(self.out.as_ref(), Echo { kind: Kind::Question, token }, to, inner, table)
    }

    /// What the kernel knows of the path to a peer's end of the tunnel: the interface's MTU, or less if a
    /// router on the way has said so not long ago (`net.ipv4.route.mtu_expires`).
    ///
    /// # Errors
    /// There is no route to it, or no descriptor to be had.
    pub fn known(&self, to: SocketAddr) -> io::Result<u32> {
        let socket = UdpSocket::bind((self.from, 0))?;
        socket.connect(to)?;
        mtu::path_mtu(socket.as_fd())
    }
}

fn failed(from: IpAddr, source: io::Error) -> SetupError {
    SetupError {
        call: "open a socket",
        object: format!("at {from}, to ask for the MTU of paths"),
        remedy: "raise the limit of open files",
        source,
    }
}

/// A raw socket that sends from a port which is others'. What a router says of its packets, the kernel notes for
/// those.
struct OnePort {
    socket: Socket,
    outer: Mutex<Outer>,
}

impl EchoOut for OnePort {
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        if payload.len() > usize::from(u16::MAX) - outer::LEN {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let SocketAddr::V4(v4) = to else { return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)) };
        let mut outer = self.outer.lock();
        let mut headers = outer.headers(v4, Ecn::NotEct, payload.len(), 1);
        outer::fill_checksum(&mut headers, checksum::sum(payload));
        // The kernel brings the header's checksum along (`raw_send_hdrinc`, net/ipv4/raw.c).
        headers[FLAGS_AT] |= DONT_FRAGMENT;
        let packet = [&headers[..], payload].concat();
        self.socket.send_to_with_flags(&packet, &to.into(), libc::MSG_DONTWAIT).map(drop)
    }
}

/// Where an IPv4 header has its flags, and the one of them (RFC 791).
const FLAGS_AT: usize = 6;
const DONT_FRAGMENT: u8 = 0x40;
const TTL: u8 = 64;
