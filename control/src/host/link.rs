//! The overlay device's MTU, address and route, and IPv4 forwarding; this host's own addresses, and what changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::netlink::{Link, Netlink, Route, refused};
use super::{Desired, HostError};

/// The protocol id of our routes, shown by `ip route` as `proto 222`: how a route of an earlier life is told
/// from an administrator's. Neither linux/rtnetlink.h (6.1) nor iproute2 (6.1)'s rt_protos gives it to anybody.
pub const ROUTE_PROTOCOL: u8 = 222;

/// Brings the device, its route and `net.ipv4.ip_forward` to the wanted state.
///
/// An IPv4 address on the device other than the wanted /32 is removed, and a route of the same network
/// and metric that leaves elsewhere is replaced. Other devices, and IPv6, are left alone.
///
/// # Errors
/// [`HostError::NoDevice`], or the step that the kernel refused; earlier steps stay done.
pub async fn apply(desired: &Desired) -> Result<(), HostError> {
    let netlink = Netlink::open()?;
    let link = netlink
        .links()
        .await?
        .into_iter()
        .find(|link| link.name == desired.device)
        .ok_or_else(|| HostError::NoDevice(desired.device.clone()))?;

    bring_up(&netlink, &link, desired).await?;
    put_address(&netlink, &link, desired).await?;
    put_route(&netlink, &link, desired).await?;
    enable_forwarding()
}

/// All IPv4 addresses of this network namespace, whatever device has them.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn addresses() -> Result<BTreeSet<Ipv4Addr>, HostError> {
    Ok(Netlink::open()?.addresses().await?.iter().map(|a| a.address).collect())
}

/// Tells when this network namespace's IPv4 addresses, devices or IPv4 routes have changed (RTNLGRP_IPV4_IFADDR,
/// RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE). A device that goes down takes routes along without an event for them.
///
/// Subscribe first and look then: so no change falls between the two.
pub struct HostChanges {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
    /// When what has changed is told, if anything has.
    tell_at: Option<Instant>,
}

impl HostChanges {
    /// Changes from now on.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if the socket cannot be opened.
    pub fn subscribe() -> Result<Self, HostError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Link, MulticastGroup::Ipv4Route];
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(|e| HostError::Netlink {
                action: "subscribe to changes of this host".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self { messages, connection: tokio::spawn(connection), tell_at: None })
    }

    /// Waits until something has changed since the last call, or may have (events were lost), and a moment
    /// longer for what belongs to it. May be cancelled without losing one.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if the socket has failed: subscribe again, and take that for a change.
    pub async fn changed(&mut self) -> Result<(), HostError> {
        loop {
            let message = match self.tell_at {
                None => self.messages.next().await,
                Some(at) => match timeout_at(at, self.messages.next()).await {
                    Ok(message) => message,
                    Err(_) => {
                        self.tell_at = None;
                        return Ok(());
                    }
                },
            };
            let (message, _) = message.ok_or_else(|| HostError::Netlink {
                action: "follow changes of this host".to_owned(),
                reason: "the socket failed".to_owned(),
            })?;
            if is_change(&message.payload) {
                self.tell_at.get_or_insert(Instant::now() + SETTLE);
            }
        }
    }
}

impl Drop for HostChanges {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Lets packets in through `device` whose answers would leave by another one, where the host's
/// `rp_filter` would not: who may send what is checked by the data plane, more strictly.
///
/// # Errors
/// [`HostError::Sysctl`] if the setting cannot be written.
pub fn loosen_reverse_path(device: &str) -> Result<(), HostError> {
    // ip-sysctl: the larger of this and the setting for all counts, and 2 asks for any route back.
    set(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "2").map(drop)
}

/// Has the kernel forward IPv4 packets.
///
/// # Errors
/// [`HostError::Sysctl`] if the setting cannot be written.
pub fn enable_forwarding() -> Result<(), HostError> {
    if set(IP_FORWARD.to_owned(), "1")? {
        info!(
            "net.ipv4.ip_forward was off and is on now: packets between pods and the overlay are forwarded"
        );
    }
    Ok(())
}

/// Writes a setting if it is another; returns whether it was.
fn set(path: String, wanted: &'static str) -> Result<bool, HostError> {
    let write = || {
        if std::fs::read_to_string(&path)?.trim() == wanted {
            return Ok(false);
        }
        std::fs::write(&path, wanted).map(|()| true)
    };
    write().map_err(|source| HostError::Sysctl { path: path.clone(), wanted, source })
}

async fn bring_up(netlink: &Netlink, link: &Link, desired: &Desired) -> Result<(), HostError> {
    if link.up && link.mtu == desired.mtu {
        return Ok(());
    }
    // The overlay carries IPv4: without an address of its own the device sends no IPv6 either, which
    // would only be counted as dropped. In a request of its own: within one, the kernel (6.18, do_setlink)
    // sets the device up, and makes the address, before it looks at this.
    let no_ipv6 = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])]);
    let quiet = LinkUnspec::new_with_index(link.index).append_extra_attribute(no_ipv6).build();
    if let Err(error) = netlink.handle.link().set(quiet).execute().await {
        // A host without IPv6, or a device whose MTU is too small for it: quiet anyway.
        debug!(%error, "IPv6 addresses of the overlay device are not switched off");
    }
    let up = LinkUnspec::new_with_index(link.index).mtu(desired.mtu).up().build();
    netlink
        .handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(|e| refused(format!("set {} up with an MTU of {}", desired.device, desired.mtu), &e))
}

/// The wanted address comes first and the others go afterwards, so that the device is never without one.
/// One that is there already is not put again: that would be announced as a change.
async fn put_address(netlink: &Netlink, link: &Link, desired: &Desired) -> Result<(), HostError> {
    let (wanted, others): (Vec<_>, Vec<_>) = netlink
        .addresses()
        .await?
        .into_iter()
        .filter(|a| a.index == link.index)
        .partition(|a| a.address == desired.address && a.prefix_len == 32);
    if wanted.is_empty() {
        netlink
            .handle
            .address()
            .add(link.index, IpAddr::V4(desired.address), 32)
            .execute()
            .await
            .map_err(|e| refused(format!("add {}/32 to {}", desired.address, desired.device), &e))?;
    }
    // From the last: a secondary address goes with the primary one that it is listed after.
    for other in others.into_iter().rev() {
        let action = format!("remove {}/{} from {}", other.address, other.prefix_len, desired.device);
        info!(device = desired.device, address = %other.address, "removing an address that is not ours");
        netlink.handle.address().del(other.message).execute().await.map_err(|e| refused(action, &e))?;
    }
    Ok(())
}

async fn put_route(netlink: &Netlink, link: &Link, desired: &Desired) -> Result<(), HostError> {
    let network = desired.network.trunc();
    // One that is there already is not put again: that would be announced as a change.
    let in_place = |route: &Route| {
        (route.destination, route.device, route.metric) == (network, Some(link.index), 0)
            && route.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
            && route.message.header.scope == RouteScope::Link
    };
    if netlink.routes().await?.iter().any(in_place) {
        return Ok(());
    }
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network.addr(), network.prefix_len())
        .output_interface(link.index)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .build();
    netlink
        .handle
        .route()
        .add(route)
        .replace()
        .execute()
        .await
        .map_err(|e| refused(format!("route {network} through {}", desired.device), &e))
}

fn is_change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    matches!(
        payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_)
                | RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
                | RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
        ) | NetlinkPayload::Overrun(_)
    )
}

/// How long a change is left to settle: an address that is replaced is away for a moment, and a device that
/// is made anew has its address later. Also, however much changes, it is told five times a second at most.
const SETTLE: Duration = Duration::from_millis(200);

/// Per network namespace, and that of the thread that opens it.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{DoneMessage, NetlinkPayload};
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rtnetlink::packet_route::address::AddressMessage;

    use super::is_change;

    #[test]
    fn lost_events_count_as_a_change() {
        assert!(is_change(&NetlinkPayload::Overrun(Vec::new())));
        let gone = RouteNetlinkMessage::DelAddress(AddressMessage::default());
        assert!(is_change(&NetlinkPayload::InnerMessage(gone)));
        assert!(!is_change(&NetlinkPayload::Done(DoneMessage::default())));
    }
}
