//! What one process of the daemon leaves to the next: the queues of the overlay device, the sockets that share
//! the underlay's port, and the place of a program on the underlay's interface. Who keeps them open in between
//! keeps what arrives in them, too.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use socket2::Socket;

use crate::sys;
use crate::sys::xdp_prog::{self, Link};
use crate::tun::{self, TunQueue};
use crate::underlay::udp;

/// Descriptors of an earlier process, recognised by what the kernel says of each.
#[derive(Debug, Default)]
pub struct Inherited {
    queues: Vec<(String, TunQueue)>,
    sockets: Vec<(SocketAddrV4, Socket)>,
    links: Vec<(u32, Link)>,
    foreign: usize,
}

impl Inherited {
    /// What the service manager hands over to this process; nothing when asked again.
    ///
    /// # Errors
    /// `EBADF` if the environment tells of descriptors that are not open.
    pub fn take() -> io::Result<Self> {
        sys::listen_fds::take().map(Self::from_iter)
    }

    /// The queues of the device `name`. All other queues are closed.
    pub fn queues(&mut self, name: &str) -> Vec<TunQueue> {
        let queues = std::mem::take(&mut self.queues);
        queues.into_iter().filter(|(device, _)| device == name).map(|(_, queue)| queue).collect()
    }

    /// The sockets that are bound to `address`. All others are closed.
    pub fn sockets(&mut self, address: SocketAddrV4) -> Vec<Socket> {
        let sockets = std::mem::take(&mut self.sockets);
        sockets.into_iter().filter(|(bound, _)| *bound == address).map(|(_, socket)| socket).collect()
    }

    /// The place of a program on the interface of this index. All others are given up.
    pub fn link(&mut self, interface: u32) -> Option<Link> {
        let links = std::mem::take(&mut self.links);
        links.into_iter().find(|(on, _)| *on == interface).map(|(_, link)| link)
    }

    /// Whether there is nothing to go on with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.sockets.is_empty()
    }

    /// How many there are: queues, sockets, and others that are not ours, which were closed.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.queues.len(), self.sockets.len(), self.foreign)
    }
}

impl FromIterator<OwnedFd> for Inherited {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(descriptors: I) -> Self {
        let mut inherited = Self::default();
        for fd in descriptors {
            match tun::inherit(fd).map_err(|fd| udp::inherit(fd).map_err(xdp_prog::inherit)) {
                Ok(queue) => inherited.queues.push(queue),
                Err(Ok(socket)) => inherited.sockets.push(socket),
                Err(Err(Ok(link))) => inherited.links.push(link),
                Err(Err(Err(_))) => inherited.foreign += 1,
            }
        }
        inherited
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;
    use crate::offload::Offloads;

    #[test]
    fn sockets_are_told_apart_by_what_they_are() {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let [a, b] = [0, 1].map(|_| udp::open_shared(address, 1, &Offloads::default(), Vec::new()).unwrap());
        let bound = a[0].socket.local_addr().unwrap().as_socket_ipv4().unwrap();
        let unshared = UdpSocket::bind(address).unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let file = File::open("/dev/null").unwrap();
        let all = a.into_iter().chain(b).map(|shared| OwnedFd::from(shared.socket));
        let mut inherited: Inherited =
            all.chain([OwnedFd::from(unshared), OwnedFd::from(tcp), OwnedFd::from(file)]).collect();
        assert_eq!(inherited.counts(), (0, 2, 3));
        let ours = inherited.sockets(bound);
        assert_eq!(ours.len(), 1, "of two sockets, the one with that address");
        let more = udp::open_shared(bound, 2, &Offloads::default(), ours).unwrap();
        assert_eq!(more.len(), 2, "another joins the one inherited");
    }
}
