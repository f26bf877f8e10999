//! The questions we ask the kernel over rtnetlink, in our own words.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::HostError;
use overlay_wire::MacAddr;

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Netlink {
    /// Sends requests.
    pub handle: Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Opens the socket; its traffic is handled by a task that ends with this value.
    pub fn open() -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| failed("open a socket", &e))?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// All network devices, in the kernel's order.
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list the network devices", &e))?;
        Ok(links.iter().map(Link::from).collect())
    }

    /// The VXLAN devices that are the kernel's own.
    pub async fn vxlan_devices(&self) -> Result<Vec<KernelVxlan>, HostError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list the network devices", &e))?;
        Ok(links.iter().filter_map(vxlan_device).collect())
    }

    /// All IPv4 addresses, in the kernel's order.
    pub async fn addresses(&self) -> Result<Vec<Address>, HostError> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let messages: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(|e| failed("list the addresses", &e))?;
        Ok(messages.into_iter().filter_map(Address::from_message).collect())
    }

    /// The main table's IPv4 routes that carry this protocol id: the kernel picks them, so that a table
    /// with all the routes of the Internet costs no more than a small one.
    pub async fn routes_of(&self, protocol: u8) -> Result<Vec<Route>, HostError> {
        // A kernel before 4.20 neither knows the option nor picks: it gives all.
        let strict = rtnetlink::new_connection_with_strict_check()
            .map(|(connection, handle, _)| Self { handle, connection: tokio::spawn(connection) });
        let handle = strict.as_ref().map_or(&self.handle, |strict| &strict.handle);
        let mut query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        query.header.protocol = RouteProtocol::Other(protocol);
        query.header.kind = RouteType::Unspec;
        query.header.scope = RouteScope::Universe;
        let routes: Vec<RouteMessage> = handle
            .route()
            .get(query)
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list our routes", &e))?;
        let routes = routes.into_iter().filter_map(Route::from_message);
        Ok(routes.filter(|route| route.protocol == RouteProtocol::Other(protocol)).collect())
    }

    /// The index of the device that the preferred (lowest metric) IPv4 default route leaves through.
    pub async fn default_device(&self) -> Result<Option<u32>, HostError> {
        let routes = self.routes().await?;
        let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0 && route.unicast);
        Ok(defaults.min_by_key(|route| route.metric).and_then(|route| route.device))
    }

    /// All IPv4 routes of the main table.
    pub async fn routes(&self) -> Result<Vec<Route>, HostError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<RouteMessage> = self
            .handle
            .route()
            .get(query)
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list the routes", &e))?;
        Ok(messages.into_iter().filter_map(Route::from_message).collect())
    }

    /// Which way the kernel sends what goes to `address`; `None` if it does not.
    pub async fn way_to(&self, address: Ipv4Addr) -> Result<Option<Way>, HostError> {
        self.way_from(None, address).await
    }

    /// The same for what has this source address already.
    pub async fn way_from(
        &self,
        source: Option<Ipv4Addr>,
        address: Ipv4Addr,
    ) -> Result<Option<Way>, HostError> {
        match self.look_up(address, source, None).await {
            Ok(way) => Ok(way),
            // Unreachable, prohibited, or no route at all.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(failed(&format!("look up the route to {address}"), &error)),
        }
    }

    /// Which way the kernel sends a packet to `address`: one of this host's own, or, as `from` says, one with another's
    /// source that comes in by a device.
    ///
    /// # Errors
    /// The kernel's word if it goes nowhere.
    pub async fn decide(&self, address: Ipv4Addr, from: Option<(Ipv4Addr, u32)>) -> Result<Way, String> {
        let (source, device) = from.unzip();
        match self.look_up(address, source, device).await {
            Ok(way) => way.ok_or_else(|| "no answer".to_owned()),
            Err(error) => Err(reason(&error)),
        }
    }

    /// Looks up the way to `address`, of what has this source and comes in by this device, if any.
    async fn look_up(
        &self,
        address: Ipv4Addr,
        source: Option<Ipv4Addr>,
        device: Option<u32>,
    ) -> Result<Option<Way>, rtnetlink::Error> {
        let mut query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32);
        if let Some(source) = source {
            query = query.source_prefix(source, 32);
        }
        if let Some(device) = device {
            query = query.input_interface(device);
        }
        let route = self.handle.route().get(query.build()).execute().try_next().await?;
        Ok(route.as_ref().and_then(Way::from_message))
    }

    /// What is known of all IPv4 neighbours.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, HostError> {
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Inet);
        let messages: Vec<NeighbourMessage> =
            request.execute().try_collect().await.map_err(|error| refused("list the neighbours", &error))?;
        Ok(messages.iter().filter_map(Neighbour::from_message).collect())
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// In bytes; 0 if the kernel does not tell.
    pub mtu: u32,
    /// Its address, if it is an Ethernet's.
    pub mac: Option<MacAddr>,
    pub up: bool,
    /// Whether it is a TUN or TAP.
    pub tun: bool,
    /// A TUN has a carrier while some process has it open, also if it is down.
    pub carrier: bool,
    /// The index of the bridge that it is a port of.
    pub master: Option<u32>,
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            tun: false,
            carrier: false,
            master: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(MacAddr),
                LinkAttribute::Carrier(carrier) => link.carrier = *carrier != 0,
                LinkAttribute::Controller(index) => link.master = Some(*index).filter(|index| *index != 0),
                LinkAttribute::LinkInfo(infos) => {
                    link.tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        link
    }
}

/// A VXLAN device of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelVxlan {
    pub index: u32,
    pub name: String,
    pub vni: u32,
    pub port: u16,
    /// Only then it has the port.
    pub up: bool,
    pub mac: Option<MacAddr>,
}

fn vxlan_device(message: &LinkMessage) -> Option<KernelVxlan> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(options)) => Some(options),
            _ => None,
        }),
        _ => None,
    })?;
    let Link { index, name, up, .. } = Link::from(message);
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(MacAddr),
        _ => None,
    });
    let mut device = KernelVxlan { index, name, vni: 0, port: 0, up, mac };
    for option in options {
        match option {
            InfoVxlan::Id(vni) => device.vni = *vni,
            InfoVxlan::Port(port) => device.port = *port,
            _ => {}
        }
    }
    Some(device)
}

/// An IPv4 address of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The device that has it.
    pub index: u32,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Put by hand, not for a limited time (as DHCP does).
    pub permanent: bool,
    /// Not to be used for anything new.
    pub deprecated: bool,
    /// As the kernel gave it: what a delete request wants to see again.
    pub message: AddressMessage,
}

impl Address {
    fn from_message(message: AddressMessage) -> Option<Self> {
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                // IFA_LOCAL is this host's end; on a point-to-point link IFA_ADDRESS is the other one.
                AddressAttribute::Local(IpAddr::V4(local)) => address = Some(*local),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Address {
            index: message.header.index,
            address: address?,
            prefix_len: message.header.prefix_len,
            permanent: flags.contains(AddressFlags::Permanent),
            deprecated: flags.contains(AddressFlags::Deprecated),
            message,
        })
    }
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: Ipv4Net,
    /// The device, of several hops that of the first.
    pub device: Option<u32>,
    /// The only hop's gateway, if it has one.
    pub gateway: Option<Ipv4Addr>,
    pub metric: u32,
    pub protocol: RouteProtocol,
    /// Not a blackhole or the like.
    pub unicast: bool,
    /// The gateways of all its hops.
    pub gateways: Vec<Ipv4Addr>,
    /// As the kernel gave it: what a delete request wants to see again.
    pub message: RouteMessage,
}

impl Route {
    fn from_message(message: RouteMessage) -> Option<Self> {
        let mut base = Ipv4Addr::UNSPECIFIED;
        let mut table = u32::from(message.header.table);
        let (mut metric, mut device, mut gateway, mut gateways) = (0, None, None, Vec::new());
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => base = *address,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
                RouteAttribute::MultiPath(hops) => {
                    device = hops.first().map(|hop| hop.interface_index);
                    gateways.extend(hops.iter().flat_map(|hop| &hop.attributes).filter_map(gateway_in));
                }
                RouteAttribute::Table(id) => table = *id,
                _ => {}
            }
        }
        let destination = Ipv4Net::new(base, message.header.destination_prefix_length).ok()?;
        gateways.extend(gateway);
        let (protocol, unicast) = (message.header.protocol, message.header.kind == RouteType::Unicast);
        (table == MAIN_TABLE).then_some(Self {
            destination,
            device,
            gateway,
            metric,
            protocol,
            unicast,
            gateways,
            message,
        })
    }
}

fn gateway_in(attribute: &RouteAttribute) -> Option<Ipv4Addr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    }
}

/// The kernel's answer to where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The device it leaves through.
    pub device: u32,
    /// The source address it gets, if it has none yet.
    pub source: Option<Ipv4Addr>,
    /// Whether the destination is on the link itself, without a gateway.
    pub on_link: bool,
    /// The gateway, if it is one by IPv4.
    pub gateway: Option<Ipv4Addr>,
    /// The path's MTU, if it is another than the device's.
    pub mtu: Option<u32>,
    /// Whether it is this host's own address.
    pub local: bool,
}

impl Way {
    fn from_message(message: &RouteMessage) -> Option<Self> {
        let (mut device, mut source, mut on_link) = (None, None, true);
        let (mut gateway, mut mtu) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
                RouteAttribute::Gateway(via) => {
                    on_link = false;
                    if let RouteAddress::Inet(via) = via {
                        gateway = Some(*via);
                    }
                }
                RouteAttribute::Via(_) => on_link = false,
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let local = message.header.kind == RouteType::Local;
        Some(Self { device: device?, source, on_link, gateway, mtu, local })
    }
}

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The device by whose link it is reached.
    pub device: u32,
    pub address: Ipv4Addr,
    /// Its address there, if it has answered and the link is an Ethernet.
    pub mac: Option<MacAddr>,
    pub state: NeighbourState,
}

impl Neighbour {
    pub(super) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(*v4),
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.as_slice().try_into().ok().map(MacAddr);
                }
                _ => {}
            }
        }
        let (device, state) = (message.header.ifindex, message.header.state);
        Some(Self { device, address: address?, mac, state })
    }
}

/// Where a route leads to; `None` for a default route.
pub fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Ipv4Net::new(*address, route.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

/// What a failed request says: the kernel's reason without the library's preamble.
pub fn refused(action: impl Into<String>, error: &rtnetlink::Error) -> HostError {
    HostError::Netlink { action: action.into(), reason: reason(error) }
}

fn reason(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_string(),
        other => other.to_string(),
    }
}

fn failed(action: &str, error: &dyn std::error::Error) -> HostError {
    HostError::Netlink { action: action.to_owned(), reason: error.to_string() }
}

/// `RT_TABLE_MAIN` (linux/rtnetlink.h).
const MAIN_TABLE: u32 = 254;
