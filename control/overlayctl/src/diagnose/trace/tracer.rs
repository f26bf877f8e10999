//! Who follows a packet, and what is asked on the way in and on the way out.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::daemon::{TraceError, ask};
use super::steps::{Question, Trace};
use crate::diagnose::kernel::{Decision, Kernel, Neighbour, sysctl};
use overlay::drops::DropReason;
use overlay_api::status::Status;
use overlay_api::trace::{Answer, Direction};
use overlay_host::firewall::ruleset::Ruleset;
use overlay_host::forwarding;

pub(super) struct Tracer<'a> {
    pub(super) question: &'a Question,
    pub(super) status: &'a Status,
    /// Where the daemon answers.
    pub(super) socket: &'a Path,
    pub(super) kernel: Kernel,
    pub(super) ruleset: Ruleset,
    pub(super) trace: Trace,
}

impl Tracer<'_> {
    /// Whether this host forwards what comes in by a device.
    pub(super) fn takes_from(&mut self, from: &str) -> bool {
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

    /// The first hop on the underlay to `node`.
    pub(super) fn next_hop(&mut self, way: &Decision, node: Ipv4Addr) {
        let learned = way.mtu.map(|mtu| format!(", path MTU {mtu}")).unwrap_or_default();
        let source = way.source.map(|source| format!(" from {source}")).unwrap_or_default();
        if self.kernel.link(&way.device).is_some_and(|link| !link.up) {
            let remedy = format!("ip link set {} up", way.device);
            self.trace.drop(
                "underlay",
                Some(DropReason::SendFailed.label()),
                format!("{} is down", way.device),
                remedy,
            );
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

    /// What the daemon's data plane does with the packet, which it meets with the source `src`.
    pub(super) async fn data_plane(&self, direction: Direction, src: Ipv4Addr) -> Result<Answer, TraceError> {
        let Question { dst, carries, size, outer, .. } = *self.question;
        let question = overlay_api::trace::Question {
            len: size,
            outer: outer.map(IpAddr::from),
            protocol: carries.map(|carries| carries.protocol.number()),
            port: carries.and_then(|carries| carries.port),
            ..overlay_api::trace::Question::new(direction, src.into(), dst.into())
        };
        ask(self.socket, &question).await
    }
}
