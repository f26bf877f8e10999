//! Docker's bridge: docker reads its subnet when it starts, and keeps it whatever becomes of ours.

use ipnet::Ipv4Net;

use super::HostError;
use super::netlink::Netlink;

/// What is wrong with docker's bridge on a node with this `subnet` of `network`, and what to do about it:
/// its address is one of the network's, but not ours. A bridge outside of the network is not our business.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn stranded(network: Ipv4Net, subnet: Ipv4Net) -> Result<Option<String>, HostError> {
    let netlink = Netlink::open()?;
    let Some(bridge) = netlink.links().await?.into_iter().find(|link| link.name == BRIDGE) else {
        return Ok(None);
    };
    let addresses = netlink.addresses().await?.into_iter();
    let of_bridge: Vec<_> = addresses.filter(|address| address.index == bridge.index).collect();
    if of_bridge.iter().any(|address| subnet.contains(&address.address)) {
        return Ok(None);
    }
    let earlier = of_bridge.iter().find(|address| network.contains(&address.address));
    Ok(earlier.map(|address| {
        format!(
            "{BRIDGE} still has {}/{}, but this node's subnet is {subnet} now: the other nodes do not reach its containers. Give docker the new one: systemctl restart docker",
            address.address, address.prefix_len
        )
    }))
}

/// As docker names it unless told otherwise (`--bridge`).
const BRIDGE: &str = "docker0";
