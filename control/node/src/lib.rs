//! This host's part of the overlay: rules and routes, and for backends that have one the tunnel, a device
//! with its workers; built from a plan and taken down again when it is dropped.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use overlay::forwarder::OnFailure;
use overlay::handover::Inherited;
use overlay::offload::Offload;
use overlay::underlay::whole;
use parking_lot::Mutex;
use tracing::info;

use crate::plan::Plan;
use crate::ways::{Put, Reached, Terms, Ways};
use overlay_api::reach::Routed;
use overlay_host::firewall::verdict::Overlay;
use overlay_host::holdings::Surveyor;
use overlay_host::iface::Underlay;
use overlay_host::routes::OwnRoute;
use overlay_host::rule_watch::{RuleWatch, Watched, Whole};
use overlay_host::{Desired, FirewallKind, HostError, Steps, forwarding, link, routes};
use overlay_leases::lease::{Admitted, Lease};
use overlay_leases::netconf::Backend;
use overlay_leases::store::StoreAddresses;
use overlay_support::overlap::Holdings;

mod error;
pub mod io;
mod options;
pub mod path_mtu;
pub mod ping;
pub mod plan;
mod preflight;
pub mod service_manager;
pub mod takeover;
mod tunnel;
pub mod ways;

pub use error::NodeError;
pub use options::NodeOptions;
pub use preflight::preflight;
pub use tunnel::Tunnel;
use tunnel::configure;

/// A running node.
pub struct Node {
    plan: Plan,
    desired: Desired,
    tunnel: Option<Tunnel>,
    rules: RuleWatch,
    stores: StoreAddresses,
    surveyor: Surveyor,
    /// For the control socket, too, which asks at any time.
    peers: Mutex<Vec<Reached>>,
    routed: Mutex<Option<Routed>>,
    /// Its routes, once they have been put: what is missing of them has been taken away.
    wanted: Mutex<Option<HashSet<OwnRoute>>>,
}

impl Node {
    /// Opens the device, configures the host and starts forwarding to `leases`, with what is `inherited` of
    /// an earlier node or process. `on_failure` is told when a worker has to give up later. The firewall's rules are
    /// somebody else's to put. What of all this could not be had, though packets flow, is told beside the node;
    /// [`Node::sync`] tries it again.
    ///
    /// # Errors
    /// What could not be had, and without which none would flow; a device, and what was put on it, stays.
    pub async fn start(
        plan: Plan,
        options: &NodeOptions,
        leases: &Admitted,
        on_failure: &OnFailure,
        inherited: &mut Inherited,
    ) -> Result<(Self, Option<HostError>), NodeError> {
        plan.check()?;
        let desired = plan.desired(&options.host);
        let mut lacking = Vec::new();
        let tunnel = match plan.wire() {
            Some(wire) => {
                let started =
                    Tunnel::start(&plan, wire, options, leases, &desired, on_failure, inherited).await?;
                lacking.extend(started.1);
                Some(started.0)
            }
            None => None,
        };
        if plan.config.backend != Backend::Alloc {
            match forwarding::apply(&desired).await {
                Ok(put) => put.into_iter().for_each(|what| info!(what, "the host is prepared")),
                // Others may be at it.
                Err(error) => lacking.push(error),
            }
        }
        let rules = RuleWatch::start(watched(&plan, &desired, tunnel.as_ref()));
        let node = Self {
            plan,
            desired,
            tunnel,
            rules,
            stores: options.stores.clone(),
            surveyor: Surveyor::default(),
            peers: Mutex::default(),
            routed: Mutex::default(),
            wanted: Mutex::default(),
        };
        lacking.extend(node.reach(leases).await?.unless_cut_off()?);
        Ok((node, HostError::of(lacking)))
    }

    /// Ends forwarding, for up to `patience`; returns the names of workers that have not ended by then. Device, rules
    /// and routes stay.
    pub fn stop(&self, patience: Duration) -> Vec<String> {
        self.tunnel.as_ref().map_or_else(Vec::new, |tunnel| tunnel.forwarder.stop(patience))
    }

    /// What it was made from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether what enters the overlay from outside the network gets this host's address as its source.
    #[must_use]
    pub fn masquerades_return_path(&self) -> bool {
        let Desired { masquerade, firewall, .. } = &self.desired;
        // flannel's own rules do that, too.
        (masquerade.return_path || masquerade.ip_masq) && *firewall != FirewallKind::None
    }

    /// Whether iptables is told to accept what is forwarded between pods.
    #[must_use]
    pub fn accepts_forwarding(&self) -> bool {
        self.desired.forward_rules && self.desired.firewall != FirewallKind::None
    }

    /// Why super-packets do not leave whole, if it is for the host's rules.
    #[must_use]
    pub fn why_not_whole(&self) -> Option<String> {
        let offloads = self.tunnel.as_ref().map(|tunnel| &tunnel.offloads);
        let held = offloads.is_some_and(|offloads| {
            offloads.is_to_be_had(Offload::TunnelGso) && !offloads.is_on(Offload::TunnelGso)
        });
        self.rules.why_not_whole().filter(|_| held)
    }

    /// Its tunnel, if its backend has one.
    #[must_use]
    pub fn tunnel(&self) -> Option<&Tunnel> {
        self.tunnel.as_ref()
    }

    /// The other nodes.
    #[must_use]
    pub fn peers(&self) -> Vec<Reached> {
        self.peers.lock().clone()
    }

    /// What of the network leads into the tunnel; `None` without one.
    #[must_use]
    pub fn routed(&self) -> Option<Routed> {
        self.routed.lock().clone()
    }

    /// Puts back all that the kernel has lost of this node: of the device its MTU and address, as by being set down
    /// once; of the routes those that are missing, while those that are left over go. Also, who is on our link, and
    /// what of the host's is in the network, is found out anew. The firewall's rules are the firewall's to sync.
    /// Returns what was put back, for people.
    ///
    /// # Errors
    /// The steps that the kernel refused, which hold up no other; [`HostError::NoDevice`] if the device, or the TAP
    /// beside it, is gone: then only a new node helps.
    pub async fn sync(&self) -> Result<Vec<String>, HostError> {
        if let Some(Tunnel { offloads, .. }) = &self.tunnel
            && offloads.is_to_be_had(Offload::TunnelGso)
            && !whole::passes(&self.plan.underlay.name)
        {
            info!(
                underlay = self.plan.underlay.name,
                "super-packets leave cut from now on: the interface does not pass them"
            );
            offloads.switch_off(Offload::TunnelGso);
        }
        let mut steps = Steps::default();
        if let Some(tunnel) = &self.tunnel {
            let devices = self.sync_devices(tunnel).await;
            if let Err(HostError::NoDevice(_)) = devices {
                return devices;
            }
            steps.took(devices);
            steps.took(tunnel.watch_paths().map(|()| None));
        }
        let leases = self.peers().into_iter().map(|peer| peer.lease).collect();
        steps.took(self.find_ways(leases).await.and_then(Put::outcome));
        if self.plan.config.backend != Backend::Alloc {
            steps.took(forwarding::apply(&self.desired).await);
        }
        steps.outcome()
    }

    async fn sync_devices(&self, tunnel: &Tunnel) -> Result<Vec<String>, HostError> {
        let device = &self.desired.device;
        let mut put: Vec<String> = link::rename_back(tunnel.index, device).await?.into_iter().collect();
        if link::index_of(device).await? != tunnel.index {
            return Err(HostError::NoDevice(device.clone()));
        }
        // Workers whose TAP is gone do without it, and say no more.
        if tunnel.has_tap
            && let Some(tap) = self.plan.tap()
        {
            link::index_of(&tap).await?;
        }
        put.extend(configure(&self.desired).await?);
        Ok(put)
    }

    /// Makes `leases` the peers. The host's own addresses are read anew. Returns the routes that have been put back,
    /// for people.
    ///
    /// # Errors
    /// The host's addresses or routes cannot be read: what was known earlier stays. Or a route cannot be put or removed.
    pub async fn publish(&self, leases: &Admitted) -> Result<Vec<String>, HostError> {
        self.reach(leases).await?.outcome()
    }

    async fn reach(&self, leases: &Admitted) -> Result<Put, HostError> {
        let addresses: Vec<Ipv4Addr> = link::addresses().await?.into_iter().collect();
        let peers = leases.beyond(&addresses);
        if let Some(tunnel) = &self.tunnel {
            tunnel.publish(&self.plan, &peers, addresses);
        }
        self.find_ways(peers.to_vec()).await
    }

    /// Finds out how each of `leases` is reached, and puts the routes that this takes.
    async fn find_ways(&self, leases: Vec<Lease>) -> Result<Put, HostError> {
        let Plan { config, underlay, .. } = &self.plan;
        let holdings = match config.backend {
            Backend::Alloc => Holdings::default(),
            _ => self.surveyor.look(self.plan.viewpoint(&self.stores.now())).await?,
        };
        if let Some(tunnel) = &self.tunnel {
            tunnel.table.set_no_nodes(holdings.trusted().into_iter().map(IpAddr::from).collect());
        }
        let on_link = if config.backend.routes_directly() {
            let nodes: Vec<Ipv4Addr> = leases.iter().map(|lease| lease.attrs.public_ip).collect();
            Some(routes::on_link(&nodes, underlay.index).await?)
        } else {
            None
        };
        let terms = Terms {
            plan: &self.plan,
            device: self.tunnel.as_ref().map(|tunnel| tunnel.index),
            blackhole: self.desired.blackhole,
        };
        let mut ways = Ways::find(terms, holdings, leases, on_link);
        let before = self.wanted.lock().clone();
        let put = ways.put(config.network, before.as_ref()).await;
        *self.wanted.lock() = Some(ways.wanted.drain(..).collect());
        let mut peers = self.peers.lock();
        ways::tell(&peers, &ways.reached);
        *peers = ways.reached;
        let mut routed = self.routed.lock();
        ways::tell_routed(routed.as_ref(), ways.routed.as_ref());
        *routed = ways.routed;
        put
    }
}

/// What of the host's rules concerns the node.
fn watched(plan: &Plan, desired: &Desired, tunnel: Option<&Tunnel>) -> Watched {
    let Underlay { name, index, address, .. } = &plan.underlay;
    let whole = tunnel.filter(|tunnel| tunnel.offloads.is_to_be_had(Offload::TunnelGso));
    Watched {
        overlay: Overlay {
            network: desired.network,
            device: desired.device.clone(),
            forward_rules: desired.forward_rules && desired.firewall != FirewallKind::None,
        },
        pods: desired.pod_subnet,
        way_out: if tunnel.is_some() { desired.device.clone() } else { name.clone() },
        whole: whole.zip(plan.wire()).map(|(tunnel, (_, port))| Whole {
            own: *address,
            underlay: name.clone(),
            index: *index,
            port,
            table: tunnel.table.clone(),
            offloads: Arc::clone(&tunnel.offloads),
        }),
    }
}
