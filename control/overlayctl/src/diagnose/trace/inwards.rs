//! The way from another node to a pod here.

use std::net::Ipv4Addr;

use super::daemon::TraceError;
use super::steps::Question;
use super::tracer::Tracer;
use crate::diagnose::kernel::{Decision, Neighbour, rp_filter};
use overlay::drops::DropReason;
use overlay_api::reach::Way;
use overlay_api::status::BackendStatus;
use overlay_api::trace::{Answer, Direction, Peer};
use overlay_host::firewall::ruleset::{Device, Way as Hooks};

impl Tracer<'_> {
    /// From another node to a pod here.
    pub(super) async fn inwards(&mut self) -> Result<(), TraceError> {
        let Question { src, dst, .. } = *self.question;
        let answer = self.data_plane(Direction::Ingress, src).await?;
        if !self.from(&answer) {
            return Ok(());
        }
        let sender = answer.peer;
        let way_in = match (&sender, &self.status.device) {
            (Some(Peer { way: Way::Direct, public_ip, .. }), _) => self.kernel.device_of(*public_ip).await,
            (_, device) => device.as_ref().map(|device| device.name.clone()),
        };
        let Some(way_in) = way_in else { return Ok(()) };
        let node = sender.as_ref().filter(|peer| peer.way == Way::Tunnel).map(|peer| peer.public_ip);
        if let Some(node) = node
            && !self.tunnel_passes(node, false).await
        {
            return Ok(());
        }
        if !self.reverse_path(src, &way_in).await {
            return Ok(());
        }
        let way = match self.kernel.decide(dst, Some((src, &way_in))).await {
            Ok(way) => way,
            Err(_) if !self.takes_from(&way_in) => return Ok(()),
            Err(reason) => {
                self.trace.drop(
                    "route",
                    None,
                    format!("the kernel has no way for {dst} from {way_in}: {reason}"),
                    "is docker running, with the subnet of 'overlayctl status'?",
                );
                return Ok(());
            }
        };
        if way.device == way_in {
            self.trace.drop(
                "route",
                Some(DropReason::OwnSubnet.label()),
                format!(
                    "the kernel sends {dst} back into the overlay: no bridge has {}",
                    self.status.lease.subnet
                ),
                "start docker with the --bip of the subnet file (systemctl restart docker)",
            );
            return Ok(());
        }
        self.trace.pass("route", format!("{dst} {way}"));
        let passes = match way.local {
            true => self.passes_here(Hooks::Received { by: Device::named(&way_in) }).await,
            false => self.forwards(&way_in, &way.device).await,
        };
        if way.local || !passes {
            return Ok(());
        }
        self.pod(&way, dst);
        Ok(())
    }

    /// Whether the data plane takes it from where it comes from.
    fn from(&mut self, answer: &Answer) -> bool {
        let (src, network) = (self.question.src, self.status.network);
        let is_its = |peer: &&Peer| peer.subnet.contains(&src) || peer.public_ip == src;
        let owner = answer.peer.as_ref().filter(is_its);
        let who = match owner {
            Some(peer) => format!("{}, the lease of {}", peer.subnet, peer.public_ip),
            None => format!("no node has a lease for {src}, nor is it a node's public address"),
        };
        match answer.verdict.as_ref().map(|verdict| &verdict.dropped) {
            Some(Some(dropped)) => self.trace.dropped("from", &who, dropped),
            // Without a tunnel nothing of ours looks at it; with alloc no node is known here.
            None if owner.is_none()
                && network.contains(&src)
                && self.status.backend != BackendStatus::Alloc =>
            {
                self.trace.drop("from", None, who, DropReason::StaleSource.remedy());
            }
            _ if owner.is_some() => self.trace.pass("from", who),
            _ if network.contains(&src) => self.trace.pass("from", format!("{src}, whosever it is")),
            _ => self.trace.pass("from", format!("{src}, not in {network}")),
        }
        self.trace.passes()
    }

    /// Whether the pod is there.
    fn pod(&mut self, way: &Decision, dst: Ipv4Addr) {
        match self.kernel.neighbour(&way.device, dst) {
            Neighbour::Silent => self.trace.drop(
                "pod",
                None,
                format!("{dst} does not answer ARP on {}", way.device),
                "is there a container with this address?",
            ),
            _ => self.trace.pass("pod", format!("{dst} on {}", way.device)),
        }
    }

    /// Whether what comes from `src` by `device` passes the reverse path filter.
    async fn reverse_path(&mut self, src: Ipv4Addr, device: &str) -> bool {
        let filter = rp_filter(device);
        let back = self.kernel.decide(src, None).await;
        let passes = match (filter, &back) {
            (0, _) => true,
            (1, Ok(back)) => back.device == device,
            (_, back) => back.is_ok(),
        };
        if passes {
            self.trace.pass("rp_filter", format!("{filter} on {device}, it passes"));
        } else {
            let back = back.map_or_else(|reason| reason, |back| back.to_string());
            self.trace.drop(
                "rp_filter",
                None,
                format!("{filter} on {device}, and the way back to {src} is {back}"),
                format!("sysctl net.ipv4.conf.{device}.rp_filter=2 net.ipv4.conf.all.rp_filter=2, or have the sender masquerade (--return-path-masq)"),
            );
        }
        passes
    }
}
