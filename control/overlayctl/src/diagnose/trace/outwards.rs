//! The way from here to another node.

use std::net::Ipv4Addr;

use super::steps::Question;
use super::tracer::Tracer;
use crate::diagnose::kernel::Decision;
use overlay_api::reach::Way;
use overlay_api::status::{BackendStatus, DeviceStatus, PeerStatus, Status};
use overlay_host::HostError;
use overlay_host::firewall::ruleset::{Device, Way as Hooks};

impl Tracer<'_> {
    /// From a pod or from this host to another node.
    pub(super) async fn outwards(&mut self) -> Result<(), HostError> {
        let Question { src, dst, .. } = *self.question;
        let network = self.status.network;
        if !network.contains(&dst) {
            self.trace.pass("route", format!("{dst} is not in {network}: no matter of the overlay"));
            return Ok(());
        }
        let from_host = self.kernel.decide(src, None).await.is_ok_and(|way| way.local);
        let bridge = if from_host { None } else { self.kernel.device_of(src).await };
        // Without forwarding the kernel says that it knows no way.
        if bridge.as_deref().is_some_and(|bridge| !self.takes_from(bridge)) {
            return Ok(());
        }
        let way = self.kernel.decide(dst, bridge.as_deref().map(|bridge| (src, bridge))).await;
        let peer = self.peer_of(dst).cloned();
        let Some(way) = self.route_out(way, peer.as_ref()) else { return Ok(()) };
        let passes = match &bridge {
            Some(bridge) => self.forwards(bridge, &way.device).await,
            None => self.passes_here(Hooks::Sent { by: Device::named(&way.device), user: None }).await,
        };
        if !passes {
            return Ok(());
        }
        let Some(peer) = peer else { return Ok(()) };
        self.source(src);
        if peer.way == Way::Direct {
            self.next_hop(&way, peer.public_ip);
            return Ok(());
        }
        self.trace.pass("lookup", format!("{}, the lease of {}", peer.subnet, peer.public_ip));
        self.encapsulate(&peer).await;
        if self.trace.passes() {
            self.far_end(src);
        }
        Ok(())
    }

    /// The kernel's decision, if it is the right one for a packet to `peer`.
    fn route_out(&mut self, way: Result<Decision, String>, peer: Option<&PeerStatus>) -> Option<Decision> {
        let Question { src, dst, .. } = *self.question;
        let Status { network, lease, device, .. } = self.status;
        let way = match way {
            Ok(way) => way,
            Err(reason) => {
                self.trace.drop(
                    "route",
                    None,
                    format!("the kernel has no way for {dst} from {src}: {reason}"),
                    "see 'ip route get', and 'overlayctl status' for what overlayd cannot put right",
                );
                return None;
            }
        };
        if way.local {
            self.trace.pass("route", format!("{dst} is this host's own address"));
            return None;
        }
        let Some(peer) = peer else {
            let reason = if lease.subnet.contains(&dst) { "own_subnet" } else { "no_route" };
            self.trace.pass("route", way.to_string());
            self.trace.drop(
                "lookup",
                Some(reason),
                format!("no node has a lease for {dst}"),
                "is the daemon of that node running, with the same store and prefix? See 'overlayctl leases'",
            );
            return None;
        };
        let expected = match (peer.way, device) {
            (Way::Tunnel, Some(device)) => device.name == way.device,
            (Way::Direct, _) => way.gateway == Some(peer.public_ip),
            _ => {
                let text =
                    peer.problem.clone().unwrap_or_else(|| format!("there is no way to {}", peer.public_ip));
                self.trace.drop("route", None, text, "see 'overlayctl peers'");
                return None;
            }
        };
        if !expected {
            let through = device.as_ref().map_or("the node itself", |device| device.name.as_str());
            self.trace.drop(
                "route",
                None,
                format!("the kernel sends {dst} {way}, not by {through}"),
                format!(
                    "another route is more specific than that of the overlay for {network}, or stands before it: see 'ip route get {dst}' and 'ip rule'"
                ),
            );
            return None;
        }
        self.trace.pass("route", format!("{dst} {way}"));
        Some(way)
    }

    /// Whether a rule of ours gives the packet another source.
    fn source(&mut self, src: Ipv4Addr) {
        let Status { network, device, return_path_masq, .. } = self.status;
        let text = match device {
            _ if network.contains(&src) => {
                format!("{src} is kept: what goes from {network} to {network} is bound to its source")
            }
            Some(device) if *return_path_masq && src != device.address => {
                format!(
                    "{src} becomes {}: it is not in {network}, and is masqueraded so that replies come back this way",
                    device.address
                )
            }
            _ => format!("{src} is kept: no rule rewrites it"),
        };
        self.trace.pass("source", text);
    }

    async fn encapsulate(&mut self, peer: &PeerStatus) {
        let Some(DeviceStatus { mtu, .. }) = self.status.device else { return };
        let how = match &self.status.backend {
            BackendStatus::Vxlan { vni, port, .. } => {
                let mac = peer.vtep_mac.as_deref().unwrap_or("-");
                format!("VXLAN, VNI {vni}, to VTEP {mac}, UDP port {port}")
            }
            BackendStatus::Udp { port } => format!("flannel's UDP format, port {port}"),
            BackendStatus::HostGw { .. } | BackendStatus::Alloc => return,
        };
        let fits = match peer.mtu {
            Some(less) => format!("{less} bytes, as the path takes no more"),
            None => format!("{mtu} bytes"),
        };
        self.trace.pass("encapsulate", format!("{how}; inner packets of up to {fits}"));
        match self.kernel.decide(peer.public_ip, None).await {
            Ok(way) => {
                if self.tunnel_passes(peer.public_ip, true).await {
                    self.next_hop(&way, peer.public_ip);
                }
            }
            Err(reason) => self.trace.drop(
                "underlay",
                Some("send_failed"),
                format!("the kernel has no way to {}: {reason}", peer.public_ip),
                "repair the underlay's routes: the overlay only uses them",
            ),
        }
    }

    /// What the peer asks of the source.
    fn far_end(&mut self, src: Ipv4Addr) {
        let Status { lease, network, return_path_masq, .. } = self.status;
        let (text, remedy) = if *return_path_masq && !network.contains(&src) {
            self.trace.pass("far end", "the source is this host's own, as the peer's source check asks");
            return;
        } else if lease.subnet.contains(&src) || src == lease.public_ip {
            self.trace.pass("far end", format!("{src} is ours, as the peer's source check asks"));
            return;
        } else if network.contains(&src) {
            (
                format!("{src} is in {network}, but not in our lease {}", lease.subnet),
                "a container of an earlier subnet, or one with an address of its own choice: start it again",
            )
        } else {
            (
                format!(
                    "{src} is not in our lease {}, nor our public address, and not masqueraded",
                    lease.subnet
                ),
                "switch --return-path-masq on",
            )
        };
        let reason = match (self.peer_of(src), network.contains(&src)) {
            (Some(_), _) => "other_peers_source",
            (None, true) => "stale_source",
            (None, false) => "wrong_source",
        };
        self.trace.drop("far end", Some(reason), text, remedy);
    }
}
