//! What one process of the daemon leaves to the next: the queues of the overlay device, the sockets that share
//! the underlay's port, the TAP by which super-packets leave whole, and the places of programs on that and on the
//! underlay's interface. Who keeps them open in between keeps what arrives in them, too, and the devices.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use overlay_sys::link::{self, Hook, Link};
use overlay_sys::listen_fds;
use overlay_sys::tun::has_lost_its_device;
use socket2::Socket;

use crate::tun::{self, TunQueue};
use crate::underlay::udp;
use crate::underlay::whole::{self, Earlier};

/// Descriptors of an earlier process, recognised by what the kernel says of each.
#[derive(Debug, Default)]
pub struct Inherited {
    queues: Vec<(String, TunQueue)>,
    sockets: Vec<(SocketAddr, Socket)>,
    taps: Vec<(String, OwnedFd)>,
    links: Vec<Place>,
    foreign: usize,
}

/// What the places of programs are kept under: two programs may hang on at one device by hooks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes the tunnel's packets to rings.
    Rings,
    /// It sends whole super-packets from the TAP to the next hop.
    Tap,
}

impl Role {
    /// The name under which the service manager keeps it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rings => "xdp",
            Self::Tap => "tap",
        }
    }

    const fn hook(self) -> Hook {
        match self {
            Self::Rings => Hook::Xdp,
            Self::Tap => Hook::Ingress,
        }
    }
}

/// The place of a program.
#[derive(Debug)]
struct Place {
    /// What it was kept under.
    name: String,
    hook: Hook,
    device: u32,
    link: Link,
}

impl Place {
    /// Whether it is one of this role. Without a name its hook tells.
    fn is(&self, role: Role) -> bool {
        self.hook == role.hook() && (self.name.is_empty() || self.name == role.name())
    }
}

impl Inherited {
    /// What the service manager hands over to this process; nothing when asked again.
    ///
    /// # Errors
    /// `EBADF` if the environment tells of descriptors that are not open.
    pub fn take() -> io::Result<Self> {
        listen_fds::take().map(Self::from_iter)
    }

    /// Whether there are queues of the device `name`.
    #[must_use]
    pub fn has_queues(&self, name: &str) -> bool {
        self.queues.iter().any(|(device, _)| device == name)
    }

    /// Whether there are sockets that are bound to `address`.
    #[must_use]
    pub fn has_sockets(&self, address: SocketAddr) -> bool {
        self.sockets.iter().any(|(bound, _)| *bound == address)
    }

    /// The queues of the device `name`. Others stay, until this is dropped.
    pub fn queues(&mut self, name: &str) -> Vec<TunQueue> {
        self.queues.extract_if(.., |(device, _)| device == name).map(|(_, queue)| queue).collect()
    }

    /// The sockets that are bound to `address`. Others stay, until this is dropped.
    pub fn sockets(&mut self, address: SocketAddr) -> Vec<Socket> {
        self.sockets.extract_if(.., |(bound, _)| *bound == address).map(|(_, socket)| socket).collect()
    }

    /// The place of the rings' program on the interface of this index. All others of its role are given up.
    pub fn link(&mut self, interface: u32) -> Option<Link> {
        let mut links = self.links(Role::Rings).into_iter();
        links.find(|(on, _)| *on == interface).map(|(_, link)| link)
    }

    /// What there is of the TAP `name`. Other TAPs stay, until this is dropped.
    pub fn tap(&mut self, name: &str) -> Earlier {
        let queues = self.taps.extract_if(.., |(device, _)| device == name).map(|(_, queue)| queue).collect();
        Earlier { queues, links: self.links(Role::Tap) }
    }

    fn links(&mut self, role: Role) -> Vec<(u32, Link)> {
        let links = self.links.extract_if(.., |place| place.is(role));
        links.map(|Place { device, link, .. }| (device, link)).collect()
    }

    /// Whether there is nothing to go on with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.sockets.is_empty()
    }

    /// How many there are: queues of overlay devices, sockets, and others that are not ours, which were closed.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.queues.len(), self.sockets.len(), self.foreign)
    }

    /// Puts a descriptor of that name to its like; one that is not ours is given back.
    fn put(&mut self, name: String, fd: OwnedFd) -> Result<(), OwnedFd> {
        tun::inherit(fd)
            .map(|queue| self.queues.push(queue))
            .or_else(|fd| whole::inherit(fd).map(|tap| self.taps.push(tap)))
            .or_else(|fd| udp::inherit(fd).map(|socket| self.sockets.push(socket)))
            .or_else(|fd| {
                let (hook, device, link) = link::inherit(fd)?;
                self.links.push(Place { name, hook, device, link });
                Ok(())
            })
    }
}

/// Of descriptors with the names under which they were kept.
impl FromIterator<(String, OwnedFd)> for Inherited {
    fn from_iter<I: IntoIterator<Item = (String, OwnedFd)>>(descriptors: I) -> Self {
        let mut inherited = Self::default();
        for (name, fd) in descriptors {
            // With its device somebody has taken away what it was for.
            if !has_lost_its_device(fd.as_fd()) && inherited.put(name, fd).is_err() {
                inherited.foreign += 1;
            }
        }
        inherited
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use overlay_sys::redirect::Redirect;
    use overlay_sys::tun::{bring_up_mute, open_queue, open_tunnel_tap};

    use super::*;
    use crate::offload::Offloads;

    fn unnamed(fd: OwnedFd) -> (String, OwnedFd) {
        (String::new(), fd)
    }

    #[test]
    fn programs_at_one_hook_are_told_apart_by_their_names() {
        let name = format!("tap{}", std::process::id());
        let _tap = open_tunnel_tap(&name).expect("a TAP (this test needs root)");
        let (index, _) = bring_up_mute(&name).unwrap();
        let attached = || {
            let redirect = Redirect::attach(index, 1, None).unwrap();
            redirect.link().as_fd().try_clone_to_owned().unwrap()
        };
        for (names, ours) in
            [(["", "another"], 1), (["tap", "another"], 1), (["xdp", "another"], 0), (["", "tap"], 2)]
        {
            let mut inherited: Inherited =
                names.map(|name| (name.to_owned(), attached())).into_iter().collect();
            let Earlier { links, .. } = inherited.tap(&name);
            assert_eq!((links.len(), inherited.links.len()), (ours, 2 - ours), "{names:?}");
        }
    }

    #[test]
    fn a_tap_is_told_from_the_overlays_device_and_its_program_from_others() {
        let (device, name) = (format!("tun{}", std::process::id()), format!("tap{}", std::process::id()));
        let queue = open_queue(&device).expect("a TUN device (this test needs root)");
        let tap = open_tunnel_tap(&name).expect("a TAP (this test needs root)");
        let (index, _) = bring_up_mute(&name).unwrap();
        let redirect = Redirect::attach(index, 1, None).unwrap();
        let link = redirect.link().as_fd().try_clone_to_owned().unwrap();
        let mut inherited: Inherited = [queue, tap, link].into_iter().map(unnamed).collect();
        assert_eq!(inherited.counts(), (1, 0, 0));
        assert!(inherited.link(index).is_none(), "of another kind");
        let Earlier { queues, links } = inherited.tap(&name);
        assert_eq!((queues.len(), links.len(), links[0].0), (1, 1, index));
        assert_eq!(inherited.queues(&device).len(), 1);
    }

    #[test]
    fn queues_whose_device_is_gone_are_nothing_to_go_on_with_and_nobody_elses() {
        let name = format!("gone{}", std::process::id());
        let tap = open_tunnel_tap(&name).expect("a TAP (this test needs root)");
        let deleted = std::process::Command::new("ip").args(["link", "del", &name]).status().unwrap();
        assert!(deleted.success());
        let mut inherited: Inherited = [tap].into_iter().map(unnamed).collect();
        assert_eq!(inherited.counts(), (0, 0, 0));
        assert!(inherited.tap(&name).queues.is_empty());
    }

    #[test]
    fn sockets_are_told_apart_by_what_they_are() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let [a, b] = [0, 1].map(|_| udp::open_shared(address, 1, &Offloads::default(), Vec::new()).unwrap());
        let bound = udp::address(&a[0].socket).unwrap();
        let unshared = UdpSocket::bind(address).unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let file = File::open("/dev/null").unwrap();
        let all = a.into_iter().chain(b).map(|shared| OwnedFd::from(shared.socket));
        let mut inherited: Inherited =
            all.chain([unshared.into(), tcp.into(), file.into()]).map(unnamed).collect();
        assert_eq!(inherited.counts(), (0, 2, 3));
        let ours = inherited.sockets(bound);
        assert_eq!(ours.len(), 1, "of two sockets, the one with that address");
        let more = udp::open_shared(bound, 2, &Offloads::default(), ours).unwrap();
        assert_eq!(more.len(), 2, "another joins the one inherited");
    }
}
