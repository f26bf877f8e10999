//! The peers' part of a check: the way to each, and whether its daemon answers.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;

use super::finding::{Finding, Level};
use crate::diagnose::trace::{Question, TraceError, trace};
use crate::diagnose::{icmp, ping};
use overlay_api::reach::Way;
use overlay_api::status::{BackendStatus, PeerStatus, Status};
use overlay_host::HostError;
use overlay_host::docker::{self, Bridge};
use overlay_leases::store::key_of;

/// More are not asked: the answer would come too late, and what ails all shows in a few.
const MOST: usize = 64;
const PATIENCE: Duration = Duration::from_millis(700);
/// A packet that came from a peer so lately tells that it is there, whatever it runs.
const LATELY: f64 = 60.0;

pub(super) async fn findings(status: &Status, socket: &Path) -> Result<Vec<Finding>, HostError> {
    let mut findings = Vec::new();
    if status.peers.is_empty() {
        let remedy = "is a daemon running on other nodes, with the same store, prefix and backend? See 'overlayctl leases'";
        findings.push(Finding::warning("peers", "there are none", remedy));
    }
    let asked = status.peers.iter().take(MOST);
    for peer in asked.clone() {
        match way(status, peer, socket).await {
            Ok(finding) => findings.extend(finding),
            Err(TraceError::Host(error)) => return Err(error),
            Err(error) => {
                let remedy = match error {
                    TraceError::OlderDaemon => "restart the daemon: systemctl restart overlayd",
                    _ => "see 'overlayctl trace'",
                };
                findings.push(Finding::warning("way", error.to_string(), remedy));
                break;
            }
        }
    }
    let answers = asked.filter(|peer| peer.way == Way::Tunnel).map(|peer| answers(status, peer, socket));
    findings.extend(join_all(answers).await);
    if status.peers.len() > MOST {
        findings.push(Finding::ok("peers", format!("{} more are not asked", status.peers.len() - MOST)));
    }
    Ok(findings)
}

/// What would keep a packet of a pod here from leaving for a pod there; nothing if nothing does.
async fn way(status: &Status, peer: &PeerStatus, socket: &Path) -> Result<Option<Finding>, TraceError> {
    let pod = |subnet: ipnet::Ipv4Net| (u32::from(subnet.network()) + 2).into();
    let device = status.device.as_ref().map_or("", |device| device.name.as_str());
    let bridge = docker::bridge(&[status.network], status.lease.subnet, device).await?;
    // What pods send may go another way than what this host sends, and the bridge need not be there yet.
    let sources = match bridge {
        Bridge::Inside { .. } => vec![status.lease.public_ip, pod(status.lease.subnet)],
        _ => vec![status.lease.public_ip],
    };
    for src in sources {
        let question = Question { src, dst: pod(peer.subnet), carries: None, size: None, outer: None };
        let steps = trace(&question, status, socket).await?.steps;
        // The firewall has findings of its own.
        let mut stops =
            steps.into_iter().filter(|step| src == status.lease.public_ip || step.step == "route");
        let stop = stops.find_map(|step| Some((step.step, step.text, step.dropped?)));
        if let Some((step, text, dropped)) = stop {
            let from = if src == status.lease.public_ip { "this host" } else { "pods" };
            let text = format!("from {from} to {}, {step}: {text}", peer.subnet);
            return Ok(Some(Finding::error("way", text, dropped.remedy)));
        }
    }
    Ok(None)
}

/// Whether the daemon of `peer` answers, with short packets and with the largest.
async fn answers(status: &Status, peer: &PeerStatus, socket: &Path) -> Finding {
    let name = format!("{} at {}", peer.subnet, peer.public_ip);
    let key = peer.subnet.network().to_string();
    let mtu = status.device.as_ref().map_or(0, |device| device.mtu as usize);
    let short = match ping::ask(socket, &key, None, PATIENCE).await {
        Ok(answer) => answer,
        Err(error) => {
            return Finding::error("peer", format!("{name}: {error}"), "see the lines above, and the log");
        }
    };
    let Some(round_trip) = short.round_trip_us else {
        // Of one that has answered before, traffic of a moment ago says nothing.
        let last_seen = short.last_seen_s.filter(|_| !short.answers);
        return silent(status, peer, &name, last_seen).await;
    };
    // The first may only teach the kernel the path's MTU.
    for _ in 0..2 {
        let large = ping::ask(socket, &key, Some(mtu), PATIENCE).await;
        if large.is_ok_and(|large| large.round_trip_us.is_some()) {
            return Finding::ok(
                "peer",
                format!("{name} answers in {:.3} ms, {mtu} bytes too", round_trip / 1e3),
            );
        }
    }
    Finding::error(
        "peer",
        format!(
            "{name} answers short packets, but none of {mtu} bytes: something on the way carries less, and does not say so"
        ),
        "lower the MTU of the interface, or the option MTU of the vxlan backend, on all nodes; and let ICMP 'fragmentation needed' pass",
    )
}

/// What becomes of the lease of a node that is gone, or is to be done about it.
fn end_of(status: &Status, peer: &PeerStatus) -> String {
    match status.store.kind.as_str() {
        "dir" => format!("remove its lease: rm '{}/subnets/{}'", status.store.r#where, key_of(peer.subnet)),
        _ => {
            "its lease expires by itself, unless it is a reservation ('overlayctl leases' says so)".to_owned()
        }
    }
}

async fn silent(status: &Status, peer: &PeerStatus, name: &str, last_seen: Option<f64>) -> Finding {
    if let Some(ago) = last_seen.filter(|ago| *ago < LATELY) {
        return Finding::ok(
            "peer",
            format!("{name} answers no echo (no overlayd?), but sent a packet {ago:.0} s ago"),
        );
    }
    let port = match status.backend {
        BackendStatus::Udp { port } | BackendStatus::Vxlan { port, .. } => port,
        _ => 0,
    };
    let host = match icmp::ping(peer.public_ip, PATIENCE).await {
        Ok(Some(_)) => Some("the host is there, but its overlay"),
        // Nothing is known of the host then.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Some("the host is for root to ask, and its overlay")
        }
        Ok(None) | Err(_) => None,
    };
    let (level, text, remedy) = if let Some(host) = host {
        (
            Level::Warning,
            format!("{name}: {host} does not answer, and nothing came from it lately"),
            format!(
                "is its daemon running, and UDP port {port} open both ways? (A node with flanneld or kernel VXLAN never answers an echo)"
            ),
        )
    } else {
        (
            Level::Error,
            format!("{name}: neither the host nor its overlay answers"),
            format!(
                "is the host up, and does the underlay reach it? If it is gone for good, {}",
                end_of(status, peer)
            ),
        )
    };
    Finding { check: "peer", level, text, remedy: Some(remedy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_api::example::example;

    #[test]
    fn a_lease_without_an_end_is_not_said_to_expire() {
        let mut status = example();
        let peer = status.peers[0].clone();
        assert!(end_of(&status, &peer).contains("expires by itself, unless"));
        status.store.kind = "dir".to_owned();
        status.store.r#where = "/var/lib/overlay".to_owned();
        assert_eq!(end_of(&status, &peer), "remove its lease: rm '/var/lib/overlay/subnets/10.1.63.0-24'");
    }
}
