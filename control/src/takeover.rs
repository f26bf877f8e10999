//! Taking over from a flanneld that has been stopped: it leaves the kernel's own VXLAN device, which has
//! the name and the port that we need, with its routes, neighbours and forwarding entries. They go with
//! the device.
//!
//! The lease stays, and with it subnet and VTEP MAC, so that neither containers nor peers notice.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tracing::{info, warn};

use crate::host::HostError;
use crate::host::netlink::{Netlink, refused};
use crate::netconf::Backend;
use crate::node::Plan;

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
/// and VNI is removed; any other that is in the way is somebody else's, and is met as an error later.
///
/// A running flanneld is not robbed. The device does not say whose it is, so a process of that name, in
/// this network namespace, counts as its owner.
///
/// # Errors
/// [`TakeoverError`]; nothing has been touched then.
pub async fn from_flanneld(plan: &Plan) -> Result<(), TakeoverError> {
    let Backend::Vxlan { vni, port, .. } = plan.config.backend else { return Ok(()) };
    let netlink = Netlink::open()?;
    let (ours, others): (Vec<_>, Vec<_>) =
        netlink.vxlan_devices().await?.into_iter().partition(|d| d.name == plan.device() && d.vni == vni);
    let Some(left) = ours.into_iter().next() else { return Ok(()) };
    if let Some(pid) = process_here("flanneld") {
        return Err(TakeoverError::Running { device: left.name, pid });
    }
    if let Some(other) = others.into_iter().find(|other| other.up && other.port == port) {
        return Err(TakeoverError::PortShared { device: left.name, other: other.name, port: other.port });
    }
    if let Some(mac) = left.mac.filter(|mac| *mac != plan.vtep_mac) {
        warn!(
            device = left.name,
            was = %mac,
            lease = %plan.vtep_mac,
            "flanneld's device has another address than this node's lease says: peers go by the lease"
        );
    }
    info!(device = left.name, vni, "taking over from flanneld: its kernel device is replaced by ours");
    let action = format!("remove flanneld's device {}", left.name);
    netlink.handle.link().del(left.index).execute().await.map_err(|e| refused(action, &e))?;
    Ok(())
}

/// A process of this name in this network namespace, other than this one.
pub(crate) fn process_here(name: &str) -> Option<u32> {
    let namespace = |process: PathBuf| fs::metadata(process.join("ns/net")).map(|meta| meta.ino()).ok();
    let own = namespace("/proc/thread-self".into())?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let here =
            comm.trim_end() == name && pid != std::process::id() && namespace(entry.path()) == Some(own);
        here.then_some(pid)
    })
}
