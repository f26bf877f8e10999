//! Who is the next on the way to each peer: its link-layer address, from the kernel's routes and neighbours, for
//! those who build whole frames. What changes is followed.
//!
//! A peer without one is reached by sockets, and by these the kernel resolves what is missing. What is not used
//! by the kernel it does not look after: so it is told, now and then, that a neighbour is in use.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::HostError;
use super::changes::{Changes, Payload};
use super::netlink::{self, Netlink};
use overlay::table::{Hop, SharedTable};
use overlay_wire::MacAddr;

/// Follows the next hops of a table's peers until it is dropped.
pub struct NextHops {
    task: JoinHandle<()>,
    peers_changed: Arc<Notify>,
}

/// Which way frames are built for.
#[derive(Debug, Clone, Copy)]
pub struct By {
    /// The index of the interface.
    pub interface: u32,
    /// Its MTU, in bytes. A way with a smaller one is left to the kernel.
    pub mtu: u32,
    /// The source address.
    pub source: Ipv4Addr,
}

impl NextHops {
    /// Tells the peers' states in `table` of their next hops by an interface.
    #[must_use]
    pub fn follow(by: By, table: SharedTable) -> Self {
        let peers_changed = Arc::<Notify>::default();
        let changed = Arc::clone(&peers_changed);
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = follow(by, &table, &changed).await {
                    warn!(%error, "next hops cannot be followed: packets go by sockets until they can");
                }
                table.current().hops().for_each(|hop| hop.state.set_next_hop(None));
                sleep(PAUSE).await;
            }
        });
        Self { task, peers_changed }
    }

    /// There may be other peers.
    pub fn peers_changed(&self) {
        self.peers_changed.notify_one();
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the kernel says.
#[derive(Default)]
struct Known {
    /// By peer, whom packets go to; `None` if they do not leave by our interface.
    ways: HashMap<Ipv4Addr, Option<Ipv4Addr>>,
    /// Those who have one.
    neighbours: HashMap<Ipv4Addr, Neighbour>,
    /// The peers, and which of them is looked up again next.
    peers: Vec<Ipv4Addr>,
    next: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Neighbour {
    mac: MacAddr,
    /// It may be out of date, and nobody asks.
    stale: bool,
}

async fn follow(by: By, table: &SharedTable, peers_changed: &Notify) -> Result<(), HostError> {
    use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Link, Neigh};
    let mut changes = Changes::subscribe(&[Neigh, Link, Ipv4Ifaddr, Ipv4Route, Ipv4Rule], SETTLE)?;
    let netlink = Netlink::open()?;
    let mut known = Known::default();
    let mut tick = interval(FRESH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = Look::Ways;
    loop {
        if look == Look::Ways {
            known.look_up_all(&netlink, by, table).await?;
        }
        if look != Look::Nothing {
            known.neighbours = neighbours(&netlink, by.interface).await?;
            known.tell(table);
        }
        look = tokio::select! {
            look = changes.next(|payload| concerns(payload, by.interface)) => look?,
            () = peers_changed.notified() => Look::Ways,
            _ = tick.tick() => {
                known.use_stale(&netlink, by.interface).await;
                if known.look_up_some(&netlink, by).await? { Look::Neighbours } else { Look::Nothing }
            }
        };
    }
}

impl Known {
    async fn look_up_all(&mut self, netlink: &Netlink, by: By, table: &SharedTable) -> Result<(), HostError> {
        let mut peers: Vec<_> = table.current().hops().filter_map(end).collect();
        peers.sort_unstable();
        peers.dedup();
        self.ways.clear();
        for peer in &peers {
            self.ways.insert(*peer, way(netlink, by, *peer).await?);
        }
        self.peers = peers;
        Ok(())
    }

    /// What a path's MTU has become gives no event: a few ways are looked up in turn. Whether there is news.
    async fn look_up_some(&mut self, netlink: &Netlink, by: By) -> Result<bool, HostError> {
        let mut news = false;
        for _ in 0..self.peers.len().min(AT_ONCE) {
            self.next = (self.next + 1) % self.peers.len();
            let peer = self.peers[self.next];
            let way = way(netlink, by, peer).await?;
            news |= self.ways.insert(peer, way) != Some(way);
        }
        Ok(news)
    }

    fn tell(&self, table: &SharedTable) {
        for hop in table.current().hops() {
            let via = end(hop).and_then(|end| self.ways.get(&end).copied().flatten());
            let neighbour = via.and_then(|via| self.neighbours.get(&via));
            hop.state.set_next_hop(neighbour.map(|neighbour| neighbour.mac));
        }
    }

    /// Has the kernel see for itself whether those that are in use are still there (`NTF_USE`, as if it had
    /// sent something).
    async fn use_stale(&self, netlink: &Netlink, interface: u32) {
        let mut used: Vec<Ipv4Addr> = self.ways.values().copied().flatten().collect();
        used.sort_unstable();
        used.dedup();
        for via in used {
            if self.neighbours.get(&via).is_some_and(|neighbour| neighbour.stale) {
                let request = netlink.handle.neighbours().add(interface, IpAddr::V4(via)).replace();
                // One that has gone meanwhile is resolved when it is wanted.
                let _ = request.flags(NeighbourFlags::Use).state(NeighbourState::None).execute().await;
            }
        }
    }
}

/// The end of the tunnel at a peer, if packets to it can go by the rings: these are of IPv4.
fn end(hop: &Hop) -> Option<Ipv4Addr> {
    match hop.address {
        IpAddr::V4(end) => Some(end),
        IpAddr::V6(_) => None,
    }
}

/// Whom packets to `peer` go to on the link; `None` if they leave by another interface or not at all, or if the
/// way is narrower than the interface.
async fn way(netlink: &Netlink, by: By, peer: Ipv4Addr) -> Result<Option<Ipv4Addr>, HostError> {
    let way = netlink.way_from(Some(by.source), peer).await?;
    let fits = |mtu: Option<u32>| mtu.is_none_or(|mtu| mtu >= by.mtu);
    Ok(way
        .filter(|way| way.device == by.interface && !way.local && fits(way.mtu))
        .and_then(|way| if way.on_link { Some(peer) } else { way.gateway }))
}

async fn neighbours(netlink: &Netlink, interface: u32) -> Result<HashMap<Ipv4Addr, Neighbour>, HostError> {
    let all = netlink.neighbours().await?;
    Ok(all.into_iter().filter(|known| known.device == interface).filter_map(neighbour).collect())
}

fn neighbour(known: netlink::Neighbour) -> Option<(Ipv4Addr, Neighbour)> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    let usable = matches!(known.state, Reachable | Stale | Delay | Probe | Permanent);
    usable.then_some((known.address, Neighbour { mac: known.mac?, stale: known.state == Stale }))
}

/// What has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    Nothing,
    Neighbours,
    Ways,
}

/// What a message about a change means to those who use this interface.
fn concerns(payload: &Payload, interface: u32) -> Option<Look> {
    use RouteNetlinkMessage as Message;
    match payload {
        NetlinkPayload::InnerMessage(Message::NewNeighbour(message) | Message::DelNeighbour(message)) => {
            (message.header.ifindex == interface).then_some(Look::Neighbours)
        }
        // Routes, rules, addresses and links; or some were lost.
        _ => Some(Look::Ways),
    }
}

/// Changes come in crowds: an interface that goes down takes all its neighbours along.
const SETTLE: Duration = Duration::from_millis(10);
/// How often stale neighbours are looked after, and some ways looked up again.
const FRESH: Duration = Duration::from_secs(3);
/// How many ways: each is a question of some 15 µs.
const AT_ONCE: usize = 128;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

    use super::*;

    fn message(state: NeighbourState, mac: &[u8]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        (message.header.ifindex, message.header.state) = (2, state);
        let address = NeighbourAddress::Inet(Ipv4Addr::new(192, 168, 1, 1));
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message
    }

    /// The next hop that a message tells of.
    fn judged(message: &NeighbourMessage) -> Option<(Ipv4Addr, Neighbour)> {
        netlink::Neighbour::from_message(message).and_then(neighbour)
    }

    #[test]
    fn only_who_has_an_address_is_a_next_hop() {
        use NeighbourState::{Failed, Incomplete, Permanent, Reachable, Stale};
        let mac = [2, 0, 0, 0, 0, 7];
        for (state, stale) in [(Reachable, false), (Stale, true), (Permanent, false)] {
            let expected = Neighbour { mac: MacAddr(mac), stale };
            assert_eq!(judged(&message(state, &mac)), Some(([192, 168, 1, 1].into(), expected)));
        }
        assert_eq!(judged(&message(Failed, &mac)), None);
        assert_eq!(judged(&message(Incomplete, &mac)), None);
        assert_eq!(judged(&message(Reachable, &mac[..4])), None, "of another kind of link");
    }

    #[test]
    fn others_neighbours_are_none_of_our_business() {
        let event = |interface| {
            let message = message(NeighbourState::Reachable, &[2; 6]);
            concerns(&NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)), interface)
        };
        assert_eq!((event(2), event(3)), (Some(Look::Neighbours), None));
    }
}
