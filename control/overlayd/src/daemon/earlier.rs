//! What nodes before this one have left in the kernel, and has no use any more.

use ipnet::Ipv4Net;
use tracing::warn;

use super::rules::Rules;
use overlay_api::path;
use overlay_host::{link, routes};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::state::SavedState;
use overlay_node::plan::Plan;

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
