//! What nodes before this one have left in the kernel, and has no use any more.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use tracing::{debug, info, warn};

use super::rules::Rules;
use overlay_api::path;
use overlay_host::leftovers::devices_with_rules;
use overlay_host::netlink::Netlink;
use overlay_host::{HostError, firewall, link, routes};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::state::SavedState;
use overlay_node::plan::Plan;
use overlay_node::takeover::process_here;

/// What an earlier node has put into the kernel: one of this process, or of a run that its saved state tells of.
pub(super) struct Earlier {
    /// What its rules are named after.
    device: String,
    /// What its routes lie in.
    network: Ipv4Net,
    /// Whether it was this process's: then nobody else can have taken it over.
    own: bool,
}

impl Earlier {
    /// A node of this process.
    pub(super) fn own(plan: &Plan) -> Self {
        Self { device: plan.device(), network: plan.config.network, own: true }
    }

    /// The node of a run that has saved this state.
    pub(super) fn of(state: &SavedState) -> Option<Self> {
        let config = NetworkConfig::parse(&state.config).ok()?;
        Some(Self { device: config.device(), network: config.network, own: false })
    }

    /// Removes what the node of `plan` will not replace by its own. What another daemon has taken over since
    /// is left alone.
    pub(super) async fn remove(&self, plan: &Plan, rules: &Rules) {
        let in_use = !self.own
            && match path::socket(&self.device) {
                Ok(path) => path::is_alive(&path),
                Err(_) => false,
            };
        if self.device != plan.device() && !in_use {
            if let Err(error) = link::remove_tun(&self.device).await {
                warn!(%error, "the earlier device stays behind");
            }
            rules.remove(self.device.clone());
        }
        if self.network != plan.config.network
            && !in_use
            && let Err(error) = routes::remove(self.network, plan.config.network).await
        {
            warn!(%error, network = %self.network, "routes of an earlier run stay behind");
        }
    }
}

/// Rules of a run with another device, which is gone: it will not come back for them. Nor will a flanneld
/// that does not run; one that does may serve another network of this host.
pub(super) async fn remove_stale_rules(own_device: &str) {
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
