//! What the rules of this host say to a packet, its reply and what carries it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::steps::Question;
use super::tracer::Tracer;
use overlay_host::firewall::ruleset::{Connection, Device, Packet, Way as Hooks};
use overlay_host::firewall::verdict::{self, Findings, Overlay, Traffic};

impl Tracer<'_> {
    /// Whether this host forwards the packet between two devices.
    pub(super) async fn forwards(&mut self, from: &str, to: &str) -> bool {
        if !self.takes_from(from) {
            return false;
        }
        let way = |from, to| Hooks::Forwarded { from: Device::named(from), to: Device::named(to) };
        let (request, reply) = (self.packet(way(from, to)), self.reply(way(to, from)));
        let text = format!("from {from} to {to}");
        self.by_rules("forward", &text, &[request], Traffic::Pods).await
            && self.refuses_no_reply(&reply).await
    }

    /// Whether the packet passes the rules for what this host itself sends or receives, and its reply.
    pub(super) async fn passes_here(&mut self, way: Hooks) -> bool {
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
    pub(super) async fn tunnel_passes(&mut self, node: Ipv4Addr, sent: bool) -> bool {
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
        let Question { src, dst, carries, .. } = *self.question;
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
}
