//! Rules of runs that are over, and of flanneld.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use overlay_api::path;
use overlay_host::leftovers::devices_with_rules;
use overlay_host::netlink::Netlink;
use overlay_host::{HostError, firewall};
use overlay_node::takeover::process_here;

/// Rules of a run with another device, which is gone: it will not come back for them. Nor will a flanneld
/// that does not run; one that does may serve another network of this host.
pub(super) async fn remove(own_device: &str) {
    if process_here("flanneld").is_none()
        && let Err(error) = firewall::remove_flannels().await
    {
        warn!(%error, "rules that flanneld has left stay behind");
    }
    let stale = match devices_gone().await {
        Ok(devices) => devices,
        Err(error) => return debug!(%error, "rules of earlier runs cannot be looked for"),
    };
    for device in stale.iter().filter(|device| *device != own_device) {
        match firewall::remove_all(device).await {
            Ok(_) => info!(device, "removed the firewall rules of an earlier run"),
            Err(error) => warn!(%error, device, "rules of an earlier run stay behind"),
        }
    }
}

/// The devices that have rules of ours but are neither there nor served by a daemon: they belong to a run
/// with another configuration.
///
/// # Errors
/// What nft, iptables or the kernel said.
async fn devices_gone() -> Result<BTreeSet<String>, HostError> {
    let links = Netlink::open()?.links().await?;
    let mut gone = BTreeSet::new();
    for device in devices_with_rules().await? {
        let served = match path::socket(&device) {
            Ok(socket) => path::is_alive(&socket),
            Err(_) => false,
        };
        if !served && !links.iter().any(|link| link.name == device) {
            gone.insert(device);
        }
    }
    Ok(gone)
}
