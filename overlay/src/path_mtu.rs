//! How large packets to a peer may be, asked by echoes that must not be cut on the way.
//!
//! The packets of the data plane themselves may be cut: where the path is narrower than the interface, routers
//! on the way do it, whether or not their ICMP errors come back, and nothing is lost for it. What it costs is
//! spared by telling inner senders, and for that the path is asked beside the data, by the control plane.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;

use socket2::Socket;

use crate::echo::{self, Echo, Kind};
use crate::error::SetupError;
use crate::sys::mtu::{self, DontFragment};
use crate::table::PeerTable;

/// A socket whose packets arrive as they were sent, or not at all.
#[derive(Debug)]
pub struct Prober {
    socket: Socket,
    from: Ipv4Addr,
}

impl Prober {
    /// Asks from this address of the host, by which the peers know it.
    ///
    /// # Errors
    /// No socket is to be had.
    pub fn open(from: Ipv4Addr) -> Result<Self, SetupError> {
        let open = || {
            let socket = UdpSocket::bind((from, 0))?;
            mtu::set_dont_fragment(socket.as_fd(), DontFragment::Always)?;
            Ok(socket)
        };
        let socket = open().map_err(|source: io::Error| SetupError {
            call: "open a socket",
            object: format!("at {from}, to ask for the MTU of paths"),
            remedy: "raise the limit of open files",
            source,
        })?;
        Ok(Self { socket: socket.into(), from })
    }

    /// Asks the node whose overlay device has the address `to` for an echo with `token`, by a packet of `len`
    /// bytes on the wire, all of its headers counted.
    ///
    /// # Errors
    /// `EMSGSIZE` if the interface does not take it; `HostUnreachable` if no node has that address; otherwise
    /// what the kernel said.
    pub fn ask(&self, to: Ipv4Addr, token: u64, len: u32, table: &PeerTable) -> io::Result<()> {
        let inner = len.saturating_sub(table.local().format.overhead()) as usize;
        echo::send(&self.socket, Echo { kind: Kind::Question, token }, to, inner, table)
    }

    /// What the kernel knows of the path to a peer's end of the tunnel: the interface's MTU, or less if a
    /// router on the way has said so not long ago (`net.ipv4.route.mtu_expires`).
    ///
    /// # Errors
    /// There is no route to it, or no descriptor to be had.
    pub fn known(&self, to: SocketAddrV4) -> io::Result<u32> {
        let socket = UdpSocket::bind((self.from, 0))?;
        socket.connect(SocketAddr::from(to))?;
        mtu::path_mtu(socket.as_fd())
    }
}
