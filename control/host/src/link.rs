//! The overlay device's name, MTU and address; this host's own addresses, and what changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::{LinkUnspec, MulticastGroup};
use tracing::{debug, info};

use super::changes::{Changes, Payload};
use super::netlink::{Link, Netlink, refused};
use super::{Desired, HostError, Steps};

/// The protocol id of our routes, shown by `ip route` as `proto 222`: how a route of an earlier life is told
/// from an administrator's. Neither linux/rtnetlink.h (6.1) nor iproute2 (6.1)'s rt_protos gives it to anybody.
pub const ROUTE_PROTOCOL: u8 = 222;

/// Brings the device to the wanted state. Returns what was not as it
/// should, for people.
///
/// An IPv4 address on the device other than the wanted /32 is removed. Other devices, and IPv6, are left alone.
///
/// # Errors
/// [`HostError::NoDevice`], or the steps that the kernel refused; the others are done.
pub async fn apply(desired: &Desired) -> Result<Vec<String>, HostError> {
    let netlink = Netlink::open()?;
    let link = netlink
        .links()
        .await?
        .into_iter()
        .find(|link| link.name == desired.device)
        .ok_or_else(|| HostError::NoDevice(desired.device.clone()))?;

    let mut steps = Steps::default();
    steps.took(bring_up(&netlink, &link, desired).await);
    steps.took(put_address(&netlink, &link, desired).await);
    steps.outcome()
}

/// Removes the TUN device of this name, with its address and routes. What else has that name stays.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel refuses.
pub async fn remove_tun(device: &str) -> Result<(), HostError> {
    remove_tun_if(device, |_| true).await
}

/// The same, unless some process has it open.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel refuses.
pub async fn remove_unused_tun(device: &str) -> Result<(), HostError> {
    remove_tun_if(device, |link| !link.carrier).await
}

async fn remove_tun_if(device: &str, wanted: impl Fn(&Link) -> bool) -> Result<(), HostError> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let found = links.iter().find(|link| link.tun && link.name == device && wanted(link));
    let Some(link) = found else { return Ok(()) };
    let removed = netlink.handle.link().del(link.index).execute().await;
    removed.map_err(|error| refused(format!("remove the device {device}"), &error))
}

/// Whether some process has the TUN device of this name open: it has a carrier then, up or not.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn is_open(device: &str) -> Result<bool, HostError> {
    let links = Netlink::open()?.links().await?;
    Ok(links.iter().any(|link| link.tun && link.name == device && link.carrier))
}

/// The index of the device of this name: another device of the same name has another.
///
/// # Errors
/// [`HostError::NoDevice`], or [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn index_of(device: &str) -> Result<u32, HostError> {
    let links = Netlink::open()?.links().await?;
    let link = links.into_iter().find(|link| link.name == device);
    link.map(|link| link.index).ok_or_else(|| HostError::NoDevice(device.to_owned()))
}

/// Gives the device of this index its name back, if somebody has renamed it and nobody else has the name now. Returns
/// what the name was, for people.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel refuses.
pub async fn rename_back(index: u32, name: &str) -> Result<Option<String>, HostError> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let Some(renamed) = links.iter().find(|link| link.index == index && link.name != name) else {
        return Ok(None);
    };
    if links.iter().any(|link| link.name == name) {
        return Ok(None);
    }
    let action = format!("rename {} to {name}", renamed.name);
    // Only a device that is down takes another name. Its address stays.
    for change in [
        LinkUnspec::new_with_index(index).down().build(),
        LinkUnspec::new_with_index(index).name(name.to_owned()).build(),
    ] {
        let done = netlink.handle.link().set(change).execute().await;
        done.map_err(|error| refused(action.as_str(), &error))?;
    }
    Ok(Some(format!("the name {name} (was {})", renamed.name)))
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
pub struct HostChanges(Changes<()>);

impl HostChanges {
    /// Changes from now on.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if the socket cannot be opened.
    pub fn subscribe() -> Result<Self, HostError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Link, MulticastGroup::Ipv4Route];
        Changes::subscribe(&groups, SETTLE).map(Self)
    }

    /// Waits until something has changed since the last call, or may have (events were lost), and a moment
    /// longer for what belongs to it. May be cancelled without losing one.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if the socket has failed: subscribe again, and take that for a change.
    pub async fn changed(&mut self) -> Result<(), HostError> {
        self.0.next(|payload| is_change(payload).then_some(())).await
    }
}

/// Lets packets in through `device` whose answers would leave by another one, where the host's
/// `rp_filter` would not: who may send what is checked by the data plane, more strictly.
///
/// Returns what was not so, for people.
///
/// # Errors
/// [`HostError::Sysctl`] if the setting cannot be written.
pub fn loosen_reverse_path(device: &str) -> Result<Option<String>, HostError> {
    // ip-sysctl: the larger of this and the setting for all counts, and 2 asks for any route back.
    let was_other = set(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "2")?;
    Ok(was_other.then(|| format!("net.ipv4.conf.{device}.rp_filter=2")))
}

/// Writes a setting if it is another; returns whether it was.
pub(super) fn set(path: String, wanted: &'static str) -> Result<bool, HostError> {
    let write = || {
        if std::fs::read_to_string(&path)?.trim() == wanted {
            return Ok(false);
        }
        std::fs::write(&path, wanted).map(|()| true)
    };
    write().map_err(|source| HostError::Sysctl { path: path.clone(), wanted, source })
}

async fn bring_up(netlink: &Netlink, link: &Link, desired: &Desired) -> Result<Option<String>, HostError> {
    if link.up && link.mtu == desired.mtu {
        return Ok(None);
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
        .map_err(|e| refused(format!("set {} up with an MTU of {}", desired.device, desired.mtu), &e))?;
    let was = if link.up { format!("the MTU {} (was {})", desired.mtu, link.mtu) } else { "up".to_owned() };
    Ok(Some(format!("{}: {was}", desired.device)))
}

/// The wanted address comes first and the others go afterwards, so that the device is never without one.
/// One that is there already is not put again: that would be announced as a change.
async fn put_address(netlink: &Netlink, link: &Link, desired: &Desired) -> Result<Option<String>, HostError> {
    let (wanted, others): (Vec<_>, Vec<_>) = netlink
        .addresses()
        .await?
        .into_iter()
        .filter(|a| a.index == link.index)
        .partition(|a| a.address == desired.address && a.prefix_len == 32);
    let missing = wanted.is_empty();
    if missing {
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
    Ok(missing.then(|| format!("the address {}/32 of {}", desired.address, desired.device)))
}

fn is_change(payload: &Payload) -> bool {
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
