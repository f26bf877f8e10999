//! Tells when somebody has changed what is ours to look after, by the kernel's own events: links,
//! addresses, routes and the forwarding switch by rtnetlink (RTNLGRP_*), firewall rules by nfnetlink
//! (NFNLGRP_NFTABLES, which iptables' nft variant shows up in as well).
//!
//! iptables-legacy gives no events: [`Polled`] sees its changes by looking.

use std::fs;
use std::io;

use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload, NlasIterator};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tracing::debug;

use super::HostError;
use super::firewall::TABLE_PREFIX;
use super::forwarding;
use super::netlink::destination;
use overlay_support::reserve::reading;
use overlay_sys::xtables::{TableInfo, Tables};

/// What may no longer be as it should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Touched {
    /// The device, its address, a route, or forwarding.
    pub link: bool,
    /// Firewall rules.
    pub rules: bool,
}

impl Touched {
    /// Nothing.
    pub const NOTHING: Self = Self { link: false, rules: false };
    /// Anything, since events were lost, or since it is time to look.
    pub const ALL: Self = Self { link: true, rules: true };
    const LINK: Self = Self { link: true, rules: false };
    const RULES: Self = Self { link: false, rules: true };

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { link: self.link || other.link, rules: self.rules || other.rules }
    }
}

/// What is ours, to tell our business from that of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    /// The overlay device's name.
    pub device: String,
    /// The name of the TAP by which super-packets leave whole, if there is one.
    pub tap: Option<String>,
    /// The index of the interface to the other nodes.
    pub underlay: u32,
    /// All pods of all nodes: our routes lead there, or into a part of it.
    pub network: Ipv4Net,
}

/// Changes of this network namespace, from the moment of subscribing.
pub struct HostEvents {
    route: Multicast,
    /// Not there on a kernel without nfnetlink.
    netfilter: Option<Multicast>,
}

impl HostEvents {
    /// Changes from now on.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if the socket cannot be opened.
    pub fn subscribe() -> Result<Self, HostError> {
        let route = Multicast::join(NETLINK_ROUTE, &ROUTE_GROUPS).map_err(failed("subscribe to changes"))?;
        let netfilter = Multicast::join(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
            .inspect_err(|error| debug!(%error, "no events of firewall rules: they are looked at in turn"))
            .ok();
        Ok(Self { route, netfilter })
    }

    /// Waits until something of `interest` has changed, or may have (events were lost). May be
    /// cancelled without losing an event.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if a socket has failed: subscribe again, and look at everything.
    pub async fn changed(&mut self, interest: &Interest) -> Result<Touched, HostError> {
        loop {
            let touched = tokio::select! {
                datagram = self.route.receive() => datagram.map(|datagram| routing_touched(datagram, interest)),
                datagram = receive(self.netfilter.as_mut()) => datagram.map(rules_touched),
            };
            let touched = touched.map_err(failed("follow changes"))?;
            if touched != Touched::NOTHING {
                return Ok(touched);
            }
        }
    }
}

/// What has to be looked at, since there is no event for it, or since there may be none: the forwarding
/// switch, and the tables of iptables-legacy. Looking costs a few system calls and no program.
pub struct Polled {
    forwarding: bool,
    tables: Vec<TableInfo>,
    legacy: Option<Tables>,
}

impl Polled {
    /// As it is now.
    #[must_use]
    pub fn now() -> Self {
        let mut polled = Self { forwarding: false, tables: Vec::new(), legacy: None };
        polled.again();
        polled
    }

    /// Looks again: what has changed since the last time.
    pub fn again(&mut self) -> Touched {
        let forwarding = forwarding::is_on_at_all();
        let tables = self.legacy_tables();
        let touched = Touched { link: self.forwarding && !forwarding, rules: self.tables != tables };
        self.forwarding = forwarding;
        self.tables = tables;
        touched
    }

    /// The tables of iptables-legacy, as they were seen last.
    #[must_use]
    pub fn tables(&self) -> &[TableInfo] {
        &self.tables
    }

    fn legacy_tables(&mut self) -> Vec<TableInfo> {
        // `thread-self`: /proc/net shows the network namespace of the main thread. The file is there with
        // the first table only.
        let names =
            reading(|| fs::read_to_string("/proc/thread-self/net/ip_tables_names")).unwrap_or_default();
        if names.is_empty() {
            return Vec::new();
        }
        if self.legacy.is_none() {
            self.legacy = Tables::open()
                .inspect_err(|error| debug!(%error, "iptables-legacy cannot be looked at"))
                .ok();
        }
        let Some(legacy) = &self.legacy else { return Vec::new() };
        names.lines().filter_map(|name| legacy.info(name).ok()).collect()
    }
}

/// A netlink socket that listens to groups.
pub(super) struct Multicast {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Multicast {
    pub(super) fn join(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.socket_mut().add_membership(*group)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// The next datagram; `None` if some were lost.
    pub(super) async fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) if self.buffer.len() < DATAGRAM => Ok(Some(&self.buffer)),
            Ok(()) => Ok(None),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn receive(socket: Option<&mut Multicast>) -> io::Result<Option<&[u8]>> {
    match socket {
        Some(socket) => socket.receive().await,
        None => std::future::pending().await,
    }
}

fn routing_touched(datagram: Option<&[u8]>, interest: &Interest) -> Touched {
    let Some(datagram) = datagram else { return Touched::ALL };
    let ours = messages(datagram).any(|message| match message.message_type() {
        // A sysctl of some device: forwarding, or the reverse-path filter.
        RTM_NEWNETCONF => true,
        _ => match NetlinkMessage::deserialize(message.into_inner()).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => is_ours(&message, interest),
            _ => false,
        },
    });
    if ours { Touched::LINK } else { Touched::NOTHING }
}

fn is_ours(message: &RouteNetlinkMessage, interest: &Interest) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            let name = name_of(link);
            link.header.index == interest.underlay
                || name.is_some_and(|name| *name == interest.device || Some(name) == interest.tap.as_ref())
        }
        // With an address the kernel removes routes without a word.
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            destination(route).is_some_and(|destination| interest.network.contains(&destination))
        }
        _ => false,
    }
}

fn name_of(link: &LinkMessage) -> Option<&String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// Whether rules of ours are concerned, or the chains that lead to them. What kube-proxy and docker do
/// all day in chains and sets of their own is not.
fn rules_touched(datagram: Option<&[u8]>) -> Touched {
    let Some(datagram) = datagram else { return Touched::RULES };
    let ours = messages(datagram).any(|message| {
        let [action, subsystem] = message.message_type().to_le_bytes();
        if subsystem != NFNL_SUBSYS_NFTABLES {
            return false;
        }
        let chain = match action {
            NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE => None,
            NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => Some(NFTA_CHAIN_NAME),
            NFT_MSG_NEWRULE | NFT_MSG_DELRULE => Some(NFTA_RULE_CHAIN),
            _ => return false,
        };
        let Some(attributes) = message.payload().get(NFGENMSG_LEN..) else { return false };
        let Some(table) = text(attributes, NFTA_TABLE) else { return false };
        match chain.map(|chain| text(attributes, chain)) {
            _ if table.starts_with(TABLE_PREFIX) => true,
            None => BASE_CHAINS.iter().any(|(of, _)| *of == table),
            Some(chain) => chain.is_some_and(|chain| {
                let is_base = BASE_CHAINS.contains(&(table.as_str(), chain.as_str()));
                is_base || OUR_CHAINS.iter().any(|ours| chain.starts_with(ours))
            }),
        }
    });
    if ours { Touched::RULES } else { Touched::NOTHING }
}

fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let message = NetlinkBuffer::new(&rest[..length]);
        // Each begins at a multiple of four (NLMSG_ALIGN).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A string attribute: zero-terminated.
fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let attribute = NlasIterator::new(attributes).filter_map(Result::ok).find(|a| a.kind() == kind)?;
    let text = attribute.value().split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> HostError {
    move |error| HostError::Netlink { action: action.to_owned(), reason: error.to_string() }
}

/// How the names of our iptables chains begin, flannel's among them.
const OUR_CHAINS: [&str; 2] = ["OVERLAYD-", "FLANNEL-"];
/// Where iptables' nft variant keeps what leads to them, and rules of ours that stand by themselves: table and chain.
const BASE_CHAINS: [(&str, &str); 4] =
    [("filter", "FORWARD"), ("nat", "POSTROUTING"), ("mangle", "FORWARD"), ("raw", "PREROUTING")];

/// The kernel's own limit of a batch of notifications is half of it (NLMSG_GOODSIZE is a page or two).
const DATAGRAM: usize = 64 << 10;
const ENOBUFS: i32 = 105;
// linux/netlink.h
pub(super) const NETLINK_ROUTE: isize = 0;
pub(super) const NETLINK_NETFILTER: isize = 12;
// linux/rtnetlink.h: RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_NETCONF
const ROUTE_GROUPS: [u32; 4] = [1, 5, 7, 24];
const RTM_NEWNETCONF: u16 = 80;
// linux/netfilter/nfnetlink.h
pub(super) const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFGENMSG_LEN: usize = 4;
// linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_NEWRULE: u8 = 6;
const NFT_MSG_DELRULE: u8 = 8;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE` alike.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

    use super::*;

    /// A message of nfnetlink with string attributes.
    fn message(action: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut payload = vec![2, 0, 0, 0];
        for (kind, text) in attributes {
            payload.extend((text.len() as u16 + 5).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(text.bytes());
            payload.push(0);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        let mut message = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        message.extend(u16::from_le_bytes([action, NFNL_SUBSYS_NFTABLES]).to_ne_bytes());
        message.resize(16, 0);
        message.extend(payload);
        message
    }

    #[test]
    fn rules_of_ours_and_what_leads_to_them_count() {
        for (action, attributes, touched) in [
            (NFT_MSG_DELTABLE, &[(NFTA_TABLE, "overlayd_flannel.1")][..], true),
            (NFT_MSG_DELRULE, &[(NFTA_TABLE, "overlayd_flannel.1"), (NFTA_RULE_CHAIN, "postrouting")], true),
            (NFT_MSG_DELTABLE, &[(NFTA_TABLE, "filter")], true),
            (NFT_MSG_DELRULE, &[(NFTA_TABLE, "filter"), (NFTA_RULE_CHAIN, "FORWARD")], true),
            (NFT_MSG_DELCHAIN, &[(NFTA_TABLE, "filter"), (NFTA_CHAIN_NAME, "OVERLAYD-FWD-flannel.1")], true),
            (NFT_MSG_NEWCHAIN, &[(NFTA_TABLE, "filter"), (NFTA_CHAIN_NAME, "FORWARD")], true),
            (NFT_MSG_DELRULE, &[(NFTA_TABLE, "mangle"), (NFTA_RULE_CHAIN, "FORWARD")], true),
            (NFT_MSG_DELTABLE, &[(NFTA_TABLE, "raw")], true),
            (NFT_MSG_NEWRULE, &[(NFTA_TABLE, "mangle"), (NFTA_RULE_CHAIN, "POSTROUTING")], false),
            (NFT_MSG_NEWRULE, &[(NFTA_TABLE, "nat"), (NFTA_RULE_CHAIN, "KUBE-SERVICES")], false),
            (NFT_MSG_NEWRULE, &[(NFTA_TABLE, "kube-proxy"), (NFTA_RULE_CHAIN, "FORWARD")], false),
            (NFT_MSG_DELTABLE, &[(NFTA_TABLE, "overlay")], false),
            // A set element: no rule.
            (12, &[(NFTA_TABLE, "overlayd_flannel.1")], false),
        ] {
            let wanted = if touched { Touched::RULES } else { Touched::NOTHING };
            let other = message(NFT_MSG_NEWTABLE, &[(NFTA_TABLE, "other")]);
            let datagram = [other, message(action, attributes)].concat();
            assert_eq!(rules_touched(Some(&datagram)), wanted, "{action} {attributes:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_lost_does_no_harm() {
        let whole = message(NFT_MSG_DELTABLE, &[(NFTA_TABLE, "overlayd_flannel.1")]);
        for end in 0..whole.len() - 4 {
            assert_eq!(rules_touched(Some(&whole[..end])), Touched::NOTHING, "{end}");
        }
        assert_eq!(rules_touched(None), Touched::RULES);
        let interest = Interest {
            device: String::new(),
            tap: None,
            underlay: 2,
            network: "10.1.0.0/16".parse().unwrap(),
        };
        assert_eq!(routing_touched(None, &interest), Touched::ALL);
        assert_eq!(routing_touched(Some(&whole), &interest), Touched::NOTHING);
    }

    #[test]
    fn only_links_and_routes_of_ours_count() {
        let interest = Interest {
            device: "flannel.1".to_owned(),
            tap: Some("overlay.1".to_owned()),
            underlay: 2,
            network: "10.1.0.0/16".parse().unwrap(),
        };
        let link = |index: u32, name: &str| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.attributes.push(LinkAttribute::IfName(name.to_owned()));
            RouteNetlinkMessage::DelLink(link)
        };
        assert!(is_ours(&link(9, "flannel.1"), &interest));
        assert!(is_ours(&link(8, "overlay.1"), &interest));
        assert!(is_ours(&link(2, "eth0"), &interest));
        assert!(!is_ours(&link(10, "veth3"), &interest));
        let route = |destination: &str| {
            let net: Ipv4Net = destination.parse().unwrap();
            let mut route = RouteMessage::default();
            route.header.destination_prefix_length = net.prefix_len();
            route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(net.addr())));
            RouteNetlinkMessage::DelRoute(route)
        };
        assert!(is_ours(&route("10.1.0.0/16"), &interest));
        assert!(is_ours(&route("10.1.63.0/24"), &interest));
        assert!(!is_ours(&route("10.2.0.0/16"), &interest));
        assert!(!is_ours(&route("10.0.0.0/8"), &interest));
    }
}
