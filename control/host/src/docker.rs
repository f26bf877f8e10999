//! Where this node's containers have their addresses: on docker's bridge, whose subnet docker reads when it starts and
//! keeps whatever becomes of ours, or on somebody else's.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::HostError;
use super::netlink::{Address, Link, Netlink};

/// The bridge of a node's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bridge {
    /// Docker's or another's: it has an address of the node's subnet.
    Inside {
        /// Its name.
        device: String,
        /// That address, with the length of its prefix.
        address: Ipv4Net,
        /// Its MTU, in bytes.
        mtu: u32,
    },
    /// Docker's has another address, and the other nodes do not reach its containers.
    Stranded(Stranded),
    /// Docker's has another address, and nobody is on it.
    Idle(Ipv4Net),
    /// There is none yet.
    Missing,
}

/// A bridge of docker's that has no address of the node's subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// What it has, with the length of its prefix.
    pub address: Ipv4Net,
    /// Whether it was the overlay's once.
    pub earlier: bool,
    /// What it should have an address of.
    pub subnet: Ipv4Net,
}

impl Stranded {
    /// What to say of it, with what to do.
    #[must_use]
    pub fn problem(&self) -> String {
        let Self { address, earlier, subnet } = self;
        if *earlier {
            format!(
                "{DOCKERS} still has {address}, but this node's subnet is {subnet} now: the other nodes do not reach its containers. Give docker the new one: systemctl restart docker"
            )
        } else {
            format!(
                "{DOCKERS} has {address}, and no bridge has an address of this node's subnet {subnet}: the other nodes do not reach docker's containers. 'journalctl -u docker' says why docker has not taken --bip from the subnet file; then: systemctl restart docker"
            )
        }
    }
}

/// Looks at the bridges of a node with this `subnet`, whose overlay device is `overlay`. The overlay has, or has had,
/// these `networks`.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel cannot be asked.
pub async fn bridge(networks: &[Ipv4Net], subnet: Ipv4Net, overlay: &str) -> Result<Bridge, HostError> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    Ok(judge(&links, &netlink.addresses().await?, networks, subnet, overlay))
}

/// The bridge by which packets of this node's pods come and go: docker's, if none has an address of the `subnet` yet.
pub async fn bridge_of_pods(networks: &[Ipv4Net], subnet: Ipv4Net, overlay: &str) -> String {
    match bridge(networks, subnet, overlay).await {
        Ok(Bridge::Inside { device, .. }) => device,
        _ => DOCKERS.to_owned(),
    }
}

fn judge(
    links: &[Link],
    addresses: &[Address],
    networks: &[Ipv4Net],
    subnet: Ipv4Net,
    overlay: &str,
) -> Bridge {
    let link = |address: &Address| links.iter().find(|link| link.index == address.index);
    let named = || addresses.iter().filter_map(|address| Some((link(address)?, net(address)?)));
    let mut inside =
        named().filter(|(link, address)| link.name != overlay && subnet.contains(&address.addr()));
    if let Some((link, address)) = inside.next() {
        return Bridge::Inside { device: link.name.clone(), address, mtu: link.mtu };
    }
    let dockers: Vec<_> = named().filter(|(link, _)| link.name == DOCKERS).collect();
    let once_ours = |address: Ipv4Addr| networks.iter().any(|network| network.contains(&address));
    if let Some((_, address)) = dockers.iter().find(|(_, address)| once_ours(address.addr())) {
        return Bridge::Stranded(Stranded { address: *address, earlier: true, subnet });
    }
    match dockers.first() {
        Some((bridge, address)) if links.iter().any(|link| link.master == Some(bridge.index)) => {
            Bridge::Stranded(Stranded { address: *address, earlier: false, subnet })
        }
        Some((_, address)) => Bridge::Idle(*address),
        None => Bridge::Missing,
    }
}

fn net(address: &Address) -> Option<Ipv4Net> {
    Ipv4Net::new(address.address, address.prefix_len).ok()
}

/// The name of docker's bridge unless docker is told otherwise (`--bridge`).
pub const DOCKERS: &str = "docker0";

#[cfg(test)]
mod tests {
    use super::*;

    /// Devices by name, each with an address; the last ones may be ports of the bridge `docker0`.
    fn judged(devices: &[(&str, &str)], port: bool, networks: &[&str]) -> Bridge {
        let index_of =
            |name: &str| devices.iter().zip(1..).find(|((n, _), _)| *n == name).map(|(_, index)| index);
        let link = |name: &str, index, master| Link {
            index,
            name: name.to_owned(),
            mtu: 1450,
            mac: None,
            up: true,
            tun: false,
            carrier: true,
            master,
        };
        let mut links: Vec<Link> =
            devices.iter().zip(1..).map(|((name, _), index)| link(name, index, None)).collect();
        if port {
            links.push(link("veth0", 99, index_of(DOCKERS)));
        }
        let address = |((_, address), index): (&(&str, &str), u32)| {
            let net: Ipv4Net = address.parse().unwrap();
            Address {
                index,
                address: net.addr(),
                prefix_len: net.prefix_len(),
                permanent: true,
                deprecated: false,
                message: Default::default(),
            }
        };
        let addresses: Vec<Address> = devices.iter().zip(1..).map(address).collect();
        let networks: Vec<Ipv4Net> = networks.iter().map(|network| network.parse().unwrap()).collect();
        judge(&links, &addresses, &networks, "10.1.9.0/24".parse().unwrap(), "flannel.1")
    }

    #[test]
    fn containers_are_where_a_bridge_has_an_address_of_the_subnet() {
        let overlay = ("flannel.1", "10.1.9.0/32");
        let stranded = |address: &str, earlier| {
            let subnet = "10.1.9.0/24".parse().unwrap();
            Bridge::Stranded(Stranded { address: address.parse().unwrap(), earlier, subnet })
        };
        let inside = |device: &str| Bridge::Inside {
            device: device.to_owned(),
            address: "10.1.9.1/24".parse().unwrap(),
            mtu: 1450,
        };
        let docker = |address| ("docker0", address);
        let cni = ("cni0", "10.1.9.1/24");
        let network = &["10.1.0.0/16"][..];
        for (devices, port, networks, wanted) in [
            (vec![overlay], false, network, Bridge::Missing),
            (vec![overlay, docker("10.1.9.1/24")], false, network, inside("docker0")),
            // Another bridge has the containers: what docker's has is nobody's problem.
            (vec![overlay, docker("172.17.0.1/16"), cni], true, network, inside("cni0")),
            (vec![overlay, docker("10.1.7.1/24"), cni], true, network, inside("cni0")),
            // An earlier subnet, of this network or of one before.
            (vec![overlay, docker("10.1.7.1/24")], false, network, stranded("10.1.7.1/24", true)),
            (
                vec![overlay, docker("10.2.7.1/24")],
                false,
                &["10.2.0.0/16", "10.1.0.0/16"],
                stranded("10.2.7.1/24", true),
            ),
            // Docker was never given it: nobody is cut off until somebody is on it.
            (vec![overlay, docker("172.17.0.1/16")], true, network, stranded("172.17.0.1/16", false)),
            (
                vec![overlay, docker("172.17.0.1/16")],
                false,
                network,
                Bridge::Idle("172.17.0.1/16".parse().unwrap()),
            ),
        ] {
            assert_eq!(judged(&devices, port, networks), wanted, "{devices:?}");
        }
    }
}
