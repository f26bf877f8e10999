//! The way from here to another node.

use std::net::Ipv4Addr;

use super::daemon::TraceError;
use super::steps::Question;
use super::tracer::Tracer;
use crate::diagnose::kernel::Decision;
use overlay::drops::DropReason;
use overlay_api::reach::Way;
use overlay_api::status::{BackendStatus, DeviceStatus, Status};
use overlay_api::trace::{Answer, Direction, Peer, Verdict};
use overlay_host::firewall::ruleset::{Device, Way as Hooks};

impl Tracer<'_> {
    /// From a pod or from this host to another node.
    pub(super) async fn outwards(&mut self) -> Result<(), TraceError> {
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
        let seen_as = self.source_in_overlay();
        let answer = self.data_plane(Direction::Egress, seen_as).await?;
        let Some(way) = self.route_out(way, &answer) else { return Ok(()) };
        let passes = match &bridge {
            Some(bridge) => self.forwards(bridge, &way.device).await,
            None => self.passes_here(Hooks::Sent { by: Device::named(&way.device), user: None }).await,
        };
        if !passes {
            return Ok(());
        }
        let Some(peer) = &answer.peer else { return Ok(()) };
        self.source(seen_as);
        if peer.way == Way::Direct {
            self.next_hop(&way, peer.public_ip);
            return Ok(());
        }
        self.trace.pass("lookup", format!("{}, the lease of {}", peer.subnet, peer.public_ip));
        self.encapsulate(peer, &answer).await;
        if self.trace.passes() {
            self.far_end(seen_as, &answer);
        }
        Ok(())
    }

    /// The kernel's decision, if it is the right one for a packet to `peer`.
    fn route_out(&mut self, way: Result<Decision, String>, answer: &Answer) -> Option<Decision> {
        let Question { src, dst, .. } = *self.question;
        let Status { network, device, .. } = self.status;
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
        let Some(peer) = &answer.peer else {
            let dropped = answer.verdict.as_ref().and_then(|verdict| verdict.dropped.as_ref());
            let reason = dropped.map(|dropped| dropped.reason.as_str());
            let remedy = dropped.map_or(DropReason::NoRoute.remedy(), |dropped| &dropped.remedy);
            self.trace.pass("route", way.to_string());
            self.trace.drop("lookup", reason, format!("no node has a lease for {dst}"), remedy);
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

    /// The source that it enters the overlay with: a rule of ours may give it another.
    fn source_in_overlay(&self) -> Ipv4Addr {
        let Status { network, device, return_path_masq, .. } = self.status;
        let src = self.question.src;
        let device = device.as_ref().filter(|_| *return_path_masq && !network.contains(&src));
        device.map_or(src, |device| device.address)
    }

    fn source(&mut self, seen_as: Ipv4Addr) {
        let (src, network) = (self.question.src, self.status.network);
        let text = if seen_as != src {
            format!(
                "{src} becomes {seen_as}: it is not in {network}, and is masqueraded so that replies come back this way"
            )
        } else if network.contains(&src) {
            format!("{src} is kept: what goes from {network} to {network} is bound to its source")
        } else {
            format!("{src} is kept: no rule rewrites it")
        };
        self.trace.pass("source", text);
    }

    async fn encapsulate(&mut self, peer: &Peer, answer: &Answer) {
        let Some(DeviceStatus { mtu, .. }) = self.status.device else { return };
        let how = match &self.status.backend {
            BackendStatus::Vxlan { vni, port, .. } => {
                let mac = peer.vtep_mac.as_deref().unwrap_or("-");
                format!("VXLAN, VNI {vni}, to VTEP {mac}, UDP port {port}")
            }
            BackendStatus::Udp { port } => format!("flannel's UDP format, port {port}"),
            BackendStatus::HostGw { .. } | BackendStatus::Alloc => return,
        };
        if let Some(Verdict { dropped: Some(dropped), .. }) = &answer.verdict {
            return self.trace.dropped("encapsulate", &how, dropped);
        }
        let fits = match answer.mtu {
            Some(less) if less < mtu => format!("{less} bytes, as the path takes no more"),
            _ => format!("{mtu} bytes"),
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
                Some(DropReason::SendFailed.label()),
                format!("the kernel has no way to {}: {reason}", peer.public_ip),
                "repair the underlay's routes: the overlay only uses them",
            ),
        }
    }

    /// What the peer does with it.
    fn far_end(&mut self, seen_as: Ipv4Addr, answer: &Answer) {
        let Some(Verdict { dropped, .. }) = &answer.far_end else { return };
        match dropped {
            Some(dropped) => self.trace.dropped("far end", &format!("{seen_as} is its source"), dropped),
            None if seen_as != self.question.src => {
                self.trace.pass("far end", "the source is this host's own, as the peer's source check asks");
            }
            None => {
                self.trace.pass("far end", format!("{seen_as} is ours, as the peer's source check asks"));
            }
        }
    }
}
