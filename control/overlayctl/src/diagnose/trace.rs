//! `overlayctl trace`: the way of one packet through this host, step by step, as daemon and kernel have it now.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::kernel::{Decision, Kernel, Neighbour, rp_filter, sysctl};
use crate::carries::Carries;
use overlay_api::reach::Way;
use overlay_api::status::{BackendStatus, DeviceStatus, PeerStatus, Status};
use overlay_host::firewall::ruleset::{Connection, Device, Packet, Ruleset, Way as Hooks};
use overlay_host::firewall::verdict::{self, Findings, Overlay, Traffic};
use overlay_host::{HostError, forwarding};

/// Which packet.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its source: a pod's, or this host's own.
    pub src: Ipv4Addr,
    /// Its destination.
    pub dst: Ipv4Addr,
    /// What it carries.
    pub carries: Option<Carries>,
}

/// The way of a packet.
#[derive(Debug, Serialize)]
pub struct Trace {
    /// What comes after what. The last one may drop it.
    pub steps: Vec<Step>,
}

/// One thing that happens to the packet.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub step: &'static str,
    /// What happens.
    pub text: String,
    /// Why the packet does not get beyond it.
    pub dropped: Option<Dropped>,
}

/// The end of a packet.
#[derive(Debug, Serialize)]
pub struct Dropped {
    /// As `overlayctl drops` and the metrics name it, if it is the data plane that drops.
    pub reason: Option<&'static str>,
    /// What to do.
    pub remedy: String,
}

impl Trace {
    /// Whether the packet gets through this host.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.steps.iter().all(|step| step.dropped.is_none())
    }

    /// For a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for Step { step, text, dropped } in &self.steps {
            let _ = match dropped {
                None => writeln!(out, "{step:<12} {text}"),
                Some(Dropped { reason, remedy }) => {
                    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                    writeln!(out, "{step:<12} DROPPED{reason}: {text}\n{:<12} remedy: {remedy}", "")
                }
            };
        }
        out
    }

    fn pass(&mut self, step: &'static str, text: impl Into<String>) {
        self.steps.push(Step { step, text: text.into(), dropped: None });
    }

    fn drop(
        &mut self,
        step: &'static str,
        reason: Option<&'static str>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let dropped = Some(Dropped { reason, remedy: remedy.into() });
        self.steps.push(Step { step, text: text.into(), dropped });
    }
}

/// Follows the packet of `question` through the host of the daemon that says `status`.
///
/// # Errors
/// The kernel or the firewall cannot be asked.
pub async fn trace(question: &Question, status: &Status) -> Result<Trace, HostError> {
    let mut tracer = Tracer {
        question,
        status,
        kernel: Kernel::open().await?,
        ruleset: Ruleset::read().await?,
        trace: Trace { steps: Vec::new() },
    };
    let own = status.lease.subnet;
    match (own.contains(&question.src), own.contains(&question.dst)) {
        (true, true) => tracer.trace.pass(
            "route",
            format!(
                "{} and {} are both in {own}: the bridge carries it, not the overlay",
                question.src, question.dst
            ),
        ),
        (false, true) => tracer.inwards().await?,
        _ => tracer.outwards().await?,
    }
    Ok(tracer.trace)
}

struct Tracer<'a> {
    question: &'a Question,
    status: &'a Status,
    kernel: Kernel,
    ruleset: Ruleset,
    trace: Trace,
}

impl Tracer<'_> {
    /// From a pod or from this host to another node.
    async fn outwards(&mut self) -> Result<(), HostError> {
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

    /// Whether this host forwards the packet between two devices.
    async fn forwards(&mut self, from: &str, to: &str) -> bool {
        if !self.takes_from(from) {
            return false;
        }
        let way = |from, to| Hooks::Forwarded { from: Device::named(from), to: Device::named(to) };
        let (request, reply) = (self.packet(way(from, to)), self.reply(way(to, from)));
        let text = format!("from {from} to {to}");
        self.by_rules("forward", &text, &[request], Traffic::Pods).await
            && self.refuses_no_reply(&reply).await
    }

    /// Whether this host forwards what comes in by a device.
    fn takes_from(&mut self, from: &str) -> bool {
        if sysctl("net/ipv4/ip_forward").as_deref() == Some("0") {
            self.trace.drop("forward", None, "net.ipv4.ip_forward is 0", "sysctl net.ipv4.ip_forward=1");
            return false;
        }
        if !forwarding::is_on(from) {
            self.trace.drop(
                "forward",
                None,
                format!("net.ipv4.conf.{from}.forwarding is 0: what comes in there stays here"),
                forwarding::remedy(from),
            );
            return false;
        }
        true
    }

    /// Whether the packet passes the rules for what this host itself sends or receives, and its reply.
    async fn passes_here(&mut self, way: Hooks) -> bool {
        let (name, text, back) = match &way {
            Hooks::Sent { by, .. } => {
                ("output", format!("by {}", by.name), Hooks::Received { by: by.clone() })
            }
            Hooks::Received { by } => {
                ("input", format!("by {}", by.name), Hooks::Sent { by: by.clone(), user: None })
            }
            Hooks::Forwarded { .. } => return true,
        };
        let (request, reply) = (self.packet(way), self.reply(back));
        self.by_rules(name, &text, &[request], Traffic::Pods).await && self.refuses_no_reply(&reply).await
    }

    /// Whether the tunnel's packets to, or from, `node` pass the rules of this host.
    async fn tunnel_passes(&mut self, node: Ipv4Addr, sent: bool) -> bool {
        // What goes by the rings of --io=xdp, no rule sees.
        let by_sockets = self.status.io.as_ref().is_some_and(|io| io.rings.is_none());
        let (Some(port), true) = (self.status.backend.port(), by_sockets) else { return true };
        let Ok(way) = self.kernel.decide(node, None).await else { return true };
        let own = way.source.unwrap_or(self.status.lease.public_ip);
        let device = Device::named(&way.device);
        let [out, back] = verdict::of_tunnel(own, &[node], &device, port, self.status.backend.has_one_port());
        let (packet, text) = match sent {
            true => (out, format!("UDP to {node} port {port} by {}", way.device)),
            false => (back, format!("UDP from {node} to port {port} by {}", way.device)),
        };
        self.by_rules("tunnel", &text, &[packet], Traffic::Tunnel { port }).await
    }

    fn packet(&self, way: Hooks) -> Packet {
        let Question { src, dst, carries } = *self.question;
        Packet {
            way,
            from: vec![src.into()],
            to: vec![dst.into()],
            protocol: carries.map(|carries| carries.protocol),
            source_port: None,
            port: carries.and_then(|carries| carries.port),
            connection: Connection::New,
        }
    }

    fn reply(&self, way: Hooks) -> Packet {
        let request = self.packet(way);
        Packet {
            from: request.to,
            to: request.from,
            source_port: request.port,
            port: None,
            connection: Connection::Established,
            ..request
        }
    }

    async fn refuses_no_reply(&mut self, reply: &Packet) -> bool {
        let found = self.findings(std::slice::from_ref(reply), Traffic::Pods).await;
        match found.refusals.into_iter().next() {
            Some(refusal) => {
                self.trace.drop("replies", None, format!("by {}", refusal.by), refusal.remedy);
                false
            }
            None => true,
        }
    }

    async fn findings(&self, packets: &[Packet], traffic: Traffic) -> Findings {
        let overlay = Overlay {
            network: self.status.network,
            device: self.status.device.as_ref().map(|device| device.name.clone()).unwrap_or_default(),
            forward_rules: self.status.forward_rules,
        };
        verdict::findings(&self.ruleset, packets, traffic, &overlay).await
    }

    /// Adds what the host's rules say to `packets`; returns whether they pass, as far as that can be read.
    async fn by_rules(
        &mut self,
        step: &'static str,
        text: &str,
        packets: &[Packet],
        traffic: Traffic,
    ) -> bool {
        let Findings { refusals, mut partly, of_any, unread } = self.findings(packets, traffic).await;
        partly.extend(of_any.into_iter().map(|refusal| refusal.by));
        if let Some(refusal) = refusals.into_iter().next() {
            self.trace.drop(step, None, format!("{text}: by {}", refusal.by), refusal.remedy);
            return false;
        }
        let mut said = match unread.as_slice() {
            [] => format!("{text}, nothing refuses it"),
            rules => format!(
                "{text}, no rule that overlayd can read refuses it; one that it cannot read may act on it: {}",
                rules.join("; ")
            ),
        };
        if !partly.is_empty() {
            let what = "some of it, by what it carries, is dropped by";
            let _ = write!(said, "; {what}: {}", partly.join("; "));
        }
        self.trace.pass(step, said);
        true
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

    /// The first hop on the underlay to `node`.
    fn next_hop(&mut self, way: &Decision, node: Ipv4Addr) {
        let learned = way.mtu.map(|mtu| format!(", path MTU {mtu}")).unwrap_or_default();
        let source = way.source.map(|source| format!(" from {source}")).unwrap_or_default();
        if self.kernel.link(&way.device).is_some_and(|link| !link.up) {
            let remedy = format!("ip link set {} up", way.device);
            self.trace.drop("underlay", Some("send_failed"), format!("{} is down", way.device), remedy);
            return;
        }
        let hop = way.gateway.unwrap_or(node);
        let known = match self.kernel.neighbour(&way.device, hop) {
            Neighbour::Silent => {
                self.trace.drop(
                    "underlay",
                    None,
                    format!("{node} {way}: {hop} does not answer ARP on {}", way.device),
                    format!("is {hop} up, and on the link of {}?", way.device),
                );
                return;
            }
            Neighbour::Known => "",
            Neighbour::Unknown | Neighbour::Asked => " (its MAC is not known yet)",
        };
        self.trace.pass("underlay", format!("{node} {way}{source}{known}{learned}"));
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

    /// From another node to a pod here.
    async fn inwards(&mut self) -> Result<(), HostError> {
        let Question { src, dst, .. } = *self.question;
        let strict = self.status.source_check.as_deref() == Some("strict");
        let sender =
            self.peer_of(src).or_else(|| self.status.peers.iter().find(|peer| peer.public_ip == src));
        let sender = sender.cloned();
        match &sender {
            Some(peer) => {
                self.trace.pass("from", format!("{}, the lease of {}", peer.subnet, peer.public_ip));
            }
            None if !self.status.network.contains(&src) && !strict => {
                self.trace.pass("from", format!("{src}, not in {}", self.status.network));
            }
            None => {
                let stale = self.status.network.contains(&src);
                self.trace.drop(
                    "from",
                    Some(if stale { "stale_source" } else { "wrong_source" }),
                    format!("no node has a lease for {src}, nor is it a node's public address"),
                    "the sending host should masquerade it (--return-path-masq), or its lease is missing: see 'overlayctl leases'",
                );
                return Ok(());
            }
        }
        let way_in = match (&sender, &self.status.device) {
            (Some(PeerStatus { way: Way::Direct, public_ip, .. }), _) => {
                self.kernel.device_of(*public_ip).await
            }
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
                Some("own_subnet"),
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
        match self.kernel.neighbour(&way.device, dst) {
            Neighbour::Silent => self.trace.drop(
                "pod",
                None,
                format!("{dst} does not answer ARP on {}", way.device),
                "is there a container with this address?",
            ),
            _ => self.trace.pass("pod", format!("{dst} on {}", way.device)),
        }
        Ok(())
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

    fn peer_of(&self, address: Ipv4Addr) -> Option<&PeerStatus> {
        let those = self.status.peers.iter().filter(|peer| peer.subnet.contains(&address));
        those.max_by_key(|peer| peer.subnet.prefix_len())
    }
}
