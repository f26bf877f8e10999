//! Taking over from a flanneld that has been stopped: it leaves the kernel's own VXLAN device, which has
//! the name and the port that we need, with its routes, neighbours and forwarding entries. They go with
//! the device.
//!
//! The lease stays, and with it subnet and VTEP MAC, so that neither containers nor peers notice.

use ipnet::Ipv4Net;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::plan::Plan;
use overlay_host::netlink::{KernelVxlan, Netlink, refused};
use overlay_host::{HostError, firewall, routes};
use overlay_leases::netconf::Backend;
use overlay_support::owner;

/// What is there cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Its owner is still at work.
    #[error(
        "the kernel device {device} belongs to a flanneld that is running (process {pid}): stop it first, as by 'systemctl stop flanneld', and overlayd takes over its lease and its device"
    )]
    Running {
        /// The device.
        device: String,
        /// flanneld's process.
        pid: u32,
    },
    /// It serves our network without a device of its own.
    #[error(
        "a flanneld that is running (process {pid}) serves {network} on this host: stop it first, as by 'systemctl stop flanneld', and overlayd takes over its lease and its routes"
    )]
    Beside {
        /// The network.
        network: Ipv4Net,
        /// flanneld's process.
        pid: u32,
    },
    /// The port would not be free without the device either.
    #[error(
        "the kernel device {other} has UDP port {port}, too: overlayd cannot take over {device} beside it (give one of the networks another Port, or remove {other} if nothing uses it)"
    )]
    PortShared {
        /// The device to be taken over.
        device: String,
        /// The one beside it.
        other: String,
        /// Their port.
        port: u16,
    },
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Makes room for the node of `plan` where flanneld has left its device. Only a VXLAN device of our name
/// and VNI is removed, or, if we have no use for the name, one named as flannel names them that has an address
/// of our network; any other that is in the way is somebody else's, and is met as an error later.
///
/// A running flanneld is not robbed. The device does not say whose it is, so a process of that name, in
/// this network namespace, counts as its owner. The firewall's programs are waited for until `programs`.
///
/// # Errors
/// [`TakeoverError`]; nothing has been touched then.
pub async fn from_flanneld(plan: &Plan, programs: Instant) -> Result<(), TakeoverError> {
    let Some(left) = find(plan, programs).await? else { return Ok(()) };
    let netlink = Netlink::open()?;
    if !matches!(plan.config.backend, Backend::Vxlan { .. }) {
        info!(device = left.name, "taking over from flanneld: its kernel device is removed");
        return remove(plan, &netlink, left).await;
    }
    if let Some(mac) = left.mac.filter(|mac| *mac != plan.vtep_mac) {
        warn!(
            device = left.name,
            was = %mac,
            lease = %plan.vtep_mac,
            "flanneld's device has another address than this node's lease says: peers go by the lease"
        );
    }
    info!(
        device = left.name,
        vni = left.vni,
        "taking over from flanneld: its kernel device is replaced by ours"
    );
    remove(plan, &netlink, left).await
}

/// Refuses to run beside a flanneld that serves the network of `plan` where no port and no device tells of it: its rules
/// do.
async fn refuse_beside(plan: &Plan, programs: Instant) -> Result<(), TakeoverError> {
    let network = plan.config.network;
    if plan.wire().is_some() {
        return Ok(());
    }
    let Some(pid) = process_here("flanneld") else { return Ok(()) };
    // Programs that hang or fail do not keep packets from flowing.
    let asked = timeout_at(programs, firewall::flannel_has_rules_for(network)).await;
    if matches!(asked, Ok(Ok(true))) {
        return Err(TakeoverError::Beside { network, pid });
    }
    Ok(())
}

/// The device that [`from_flanneld`] would remove.
///
/// # Errors
/// As [`from_flanneld`].
pub(crate) async fn find(plan: &Plan, programs: Instant) -> Result<Option<KernelVxlan>, TakeoverError> {
    refuse_beside(plan, programs).await?;
    let netlink = Netlink::open()?;
    let addresses = netlink.addresses().await?;
    let in_network =
        |index| addresses.iter().any(|a| a.index == index && plan.config.network.contains(&a.address));
    let vxlan = match plan.config.backend {
        Backend::Vxlan { vni, port, .. } => Some((vni, port)),
        _ => None,
    };
    let is_ours = |device: &KernelVxlan| match vxlan {
        Some((vni, _)) => device.name == plan.device() && device.vni == vni,
        None => device.name == format!("flannel.{}", device.vni) && in_network(device.index),
    };
    let (ours, others): (Vec<_>, Vec<_>) = netlink.vxlan_devices().await?.into_iter().partition(is_ours);
    let Some(left) = ours.into_iter().next() else { return Ok(None) };
    if let Some(pid) = process_here("flanneld") {
        return Err(TakeoverError::Running { device: left.name, pid });
    }
    let wants_port = |other: &KernelVxlan| other.up && vxlan.is_some_and(|(_, port)| other.port == port);
    if let Some(other) = others.into_iter().find(wants_port) {
        return Err(TakeoverError::PortShared { device: left.name, other: other.name, port: other.port });
    }
    Ok(Some(left))
}

/// Removes flanneld's device, and with it its routes, neighbours and forwarding entries. What they led to ends here
/// until the node of `plan` has put its own routes: it would leave by the default route.
async fn remove(plan: &Plan, netlink: &Netlink, device: KernelVxlan) -> Result<(), TakeoverError> {
    routes::bar(plan.config.network, device.index).await?;
    let action = format!("remove flanneld's device {}", device.name);
    netlink.handle.link().del(device.index).execute().await.map_err(|e| refused(action, &e))?;
    Ok(())
}

/// A process of this name in this network namespace, other than this one.
pub fn process_here(name: &str) -> Option<u32> {
    owner::processes_here().find(|pid| owner::name_of(*pid).is_some_and(|its| its == name))
}
