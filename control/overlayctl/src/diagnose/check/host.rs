//! The kernel's part of a check, with a daemon running.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::finding::{Finding, Level};
use crate::diagnose::kernel::{Kernel, rp_filter, sysctl};
use overlay_api::reach::Way;
use overlay_api::status::{BackendStatus, DeviceStatus, Status};
use overlay_host::docker::{self, Bridge, DOCKERS};
use overlay_host::firewall::ruleset::{Device, Ruleset};
use overlay_host::firewall::verdict::{self, CutOff, Findings, Overlay, Refusal, Traffic};
use overlay_host::{HostError, forwarding};

pub(super) async fn findings(status: &Status) -> Result<Vec<Finding>, HostError> {
    let kernel = Kernel::open().await?;
    let mut findings = Vec::new();
    findings.extend(device(status, &kernel));
    let off = switched_off(status, &kernel).await?;
    let stay = off.iter().any(|finding| finding.level == Level::Error);
    findings.extend(off);
    if !stay {
        findings.extend(between_pods(status, &kernel).await?);
    }
    findings.push(bridge(status).await?);
    findings.extend(reverse_path(status, &kernel));
    Ok(findings)
}

fn device(status: &Status, kernel: &Kernel) -> Option<Finding> {
    let DeviceStatus { name, mtu, address, .. } = status.device.as_ref()?;
    let Some(link) = kernel.link(name) else {
        let remedy = "overlayd makes it anew by itself: see the log";
        return Some(Finding::error("device", format!("{name} is not there"), remedy));
    };
    Some(if !link.up {
        Finding::error("device", format!("{name} is down"), format!("ip link set {name} up"))
    } else if link.mtu != *mtu {
        let text = format!("{name} has MTU {}, not {mtu}", link.mtu);
        Finding::error("device", text, format!("ip link set {name} mtu {mtu}"))
    } else {
        Finding::ok("device", format!("{name}, address {address}, MTU {mtu}"))
    })
}

/// The devices by which pods' packets come in and go no further.
async fn switched_off(status: &Status, kernel: &Kernel) -> Result<Vec<Finding>, HostError> {
    let Status { lease, device, backend, .. } = status;
    let overlay = device.as_ref().map(|device| device.name.clone());
    let addresses = kernel.addresses().await?;
    let holds = |wanted: &dyn Fn(&Ipv4Addr) -> bool| -> Vec<String> {
        let those = addresses.iter().filter(|(_, address)| wanted(address));
        those.map(|(device, _)| device.clone()).collect()
    };
    let bridges = holds(&|address| lease.subnet.contains(address));
    let underlay = holds(&|address| *address == lease.public_ip);
    let direct = match backend {
        BackendStatus::HostGw { .. } => true,
        BackendStatus::Vxlan { direct_routing, .. } => *direct_routing,
        BackendStatus::Udp { .. } | BackendStatus::Alloc => false,
    };
    let mut findings = Vec::new();
    for name in overlay.into_iter().chain(bridges).collect::<BTreeSet<String>>() {
        if !forwarding::is_on(&name) {
            let text = format!("net.ipv4.conf.{name}.forwarding is 0: what comes in there reaches no pods");
            findings.push(Finding::error("forwarding", text, forwarding::remedy(&name)));
        }
    }
    for name in underlay.iter().filter(|name| !forwarding::is_on(name)) {
        let text =
            format!("net.ipv4.conf.{name}.forwarding is 0: what comes in there for pods does not reach them");
        findings.push(if direct {
            Finding::error("forwarding", text, forwarding::remedy(name))
        } else {
            Finding::warning("forwarding", text, forwarding::remedy(name))
        });
    }
    Ok(findings)
}

/// Whether packets pass between the pods here and those of others, and the tunnel's between the nodes.
async fn between_pods(status: &Status, kernel: &Kernel) -> Result<Vec<Finding>, HostError> {
    if sysctl("net/ipv4/ip_forward").as_deref() != Some("1") {
        let remedy =
            "sysctl net.ipv4.ip_forward=1, and find out who switched it off: overlayd switches it on";
        return Ok(vec![Finding::error("forwarding", "net.ipv4.ip_forward is 0", remedy)]);
    }
    let ruleset = match Ruleset::read().await {
        Ok(ruleset) => ruleset,
        // All else can be looked at without being root.
        Err(error) => {
            let text = format!("on, but what the firewall refuses cannot be read: {error}");
            let remedy = "its rules are for root to read: ask as root";
            return Ok(vec![Finding::warning("forwarding", text, remedy)]);
        }
    };
    let overlay = overlay_of(status);
    let device = status.device.as_ref().map(|device| device.name.as_str());
    let lease = status.lease.subnet;
    let bridge = docker::bridge_of_pods(&[status.network], lease, device.unwrap_or_default()).await;
    let bridge = Device::named(&bridge);
    let mut packets = Vec::new();
    if let Some(device) = device {
        let theirs = subnets(status, Way::Tunnel);
        let theirs = if status.peers.is_empty() { vec![status.network] } else { theirs };
        packets.extend(verdict::between_pods(lease, &theirs, &bridge, &Device::named(device)));
    }
    if let Some(direct) = status.peers.iter().find(|peer| peer.way == Way::Direct)
        && let Ok(way) = kernel.decide(direct.public_ip, None).await
    {
        let (theirs, device) = (subnets(status, Way::Direct), Device::named(&way.device));
        packets.extend(verdict::between_pods(lease, &theirs, &bridge, &device));
    }
    let mut findings = Vec::new();
    if packets.is_empty() {
        findings.push(Finding::ok("forwarding", "on"));
    } else {
        let found = verdict::findings(&ruleset, &packets, Traffic::Pods, &overlay).await;
        let cut_off = verdict::cut_off(&ruleset, &packets, lease, Traffic::Pods, &overlay).await;
        findings.extend(by_firewall("forwarding", "between pods it", "on", found, cut_off));
    }
    let of_arp = ruleset.of_arp();
    if !of_arp.is_empty() {
        let text = format!(
            "whether it lets this host find pods and nodes is not known: ARP passes {}",
            of_arp.join("; ")
        );
        let remedy = "let ARP pass by the bridge of the pods and by the interface to the other nodes: 'nft list ruleset arp' shows what there is";
        findings.push(Finding::warning("arp", text, remedy));
    }
    // What goes by the rings of --io=xdp, no rule sees.
    let by_sockets = status.io.as_ref().is_some_and(|io| io.rings.is_none());
    if let (Some(port), true, Some(peer)) = (status.backend.port(), by_sockets, status.peers.first())
        && let Ok(way) = kernel.decide(peer.public_ip, None).await
    {
        let nodes: Vec<Ipv4Addr> = status.peers.iter().map(|peer| peer.public_ip).collect();
        let own = way.source.unwrap_or(status.lease.public_ip);
        let device = Device::named(&way.device);
        let packets = verdict::of_tunnel(own, &nodes, &device, port, status.backend.has_one_port());
        let traffic = Traffic::Tunnel { port };
        let found = verdict::findings(&ruleset, &packets, traffic, &overlay).await;
        let cut_off = verdict::cut_off(&ruleset, &packets, lease, traffic, &overlay).await;
        let text = format!("UDP port {port} between the nodes");
        findings.extend(by_firewall("tunnel", &text, &text, found, cut_off));
    }
    Ok(findings)
}

/// The subnets of the nodes that are reached this way.
fn subnets(status: &Status, way: Way) -> Vec<Ipv4Net> {
    status.peers.iter().filter(|peer| peer.way == way).map(|peer| peer.subnet).collect()
}

fn overlay_of(status: &Status) -> Overlay {
    Overlay {
        network: status.network,
        device: status.device.as_ref().map(|device| device.name.clone()).unwrap_or_default(),
        forward_rules: status.forward_rules,
    }
}

/// What the firewall's word means for `what`.
fn by_firewall(
    check: &'static str,
    what: &str,
    fine: &str,
    found: Findings,
    cut_off: Vec<CutOff>,
) -> Vec<Finding> {
    if !found.refusals.is_empty() {
        let refused = found.refusals.into_iter().map(|refusal| {
            Finding::error(check, format!("{what} is dropped by {}", refusal.by), refusal.remedy)
        });
        return refused.collect();
    }
    let cut_off = cut_off.into_iter().map(|CutOff { to, by, more }| {
        let text = format!("{fine}, but what goes to {} is dropped by {}{}", some(&to), by.by, like(more));
        Finding::warning(check, text, by.remedy)
    });
    let of_any = found.of_any.into_iter().map(|Refusal { by, remedy }| {
        let text = format!("{fine}, but some packets of any connection are dropped by {by}");
        Finding::warning(check, text, remedy)
    });
    let mut findings: Vec<Finding> = cut_off.chain(of_any).collect();
    if !found.unread.is_empty() {
        let text = format!(
            "{fine}, and no rule that overlayd can read refuses it; one that it cannot read may act on it: {}",
            found.unread.join("; ")
        );
        let remedy = "find out what it does, or put a rule that accepts before it: 'nft monitor trace' shows a packet's way (nft-monitor(8), 'meta nftrace set 1')";
        findings.push(Finding::warning(check, text, remedy));
    }
    if !findings.is_empty() {
        return findings;
    }
    let partly = match found.partly.as_slice() {
        [] => String::new(),
        rules => format!(", but for what these rules drop of it: {}", rules.join("; ")),
    };
    vec![Finding::ok(check, format!("{fine}, and no firewall refuses it{partly}"))]
}

/// The first of these, and how many there are.
fn some(nets: &[Ipv4Net]) -> String {
    let name = |net: &Ipv4Net| match net.prefix_len() {
        32 => net.addr().to_string(),
        _ => net.to_string(),
    };
    let named: Vec<String> = nets.iter().take(NAMED).map(name).collect();
    match nets.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn like(more: usize) -> String {
    match more {
        0 => String::new(),
        1 => ", and by another like it".to_owned(),
        more => format!(", and by {more} more like it"),
    }
}

/// The bridge that the pods are on.
async fn bridge(status: &Status) -> Result<Finding, HostError> {
    let subnet = status.lease.subnet;
    let overlay = status.device.as_ref();
    let device = overlay.map_or("", |device| device.name.as_str());
    Ok(match docker::bridge(&[status.network], subnet, device).await? {
        Bridge::Inside { device, .. } if !is_up(&device) => {
            let remedy = format!("ip link set {device} up, and find out who has set it down");
            Finding::error(
                "bridge",
                format!("{device} is down: nothing reaches the pods of this host"),
                remedy,
            )
        }
        Bridge::Inside { device, mtu, .. } if overlay.is_some_and(|overlay| mtu > overlay.mtu) => {
            let most = overlay.map_or(0, |overlay| overlay.mtu);
            Finding::error(
                "bridge",
                format!(
                    "{device} has MTU {mtu}, more than the overlay's {most}: pods send what does not fit"
                ),
                mtu_remedy(&device, most),
            )
        }
        Bridge::Inside { device, address, mtu } => {
            Finding::ok("bridge", format!("{device}, {address}, MTU {mtu}"))
        }
        Bridge::Stranded(stranded) => Finding::error(
            "bridge",
            format!("{DOCKERS} has {}, which is not in this node's lease {subnet}", stranded.address),
            RESTART,
        ),
        Bridge::Idle(address) => Finding::warning(
            "bridge",
            format!(
                "no bridge has an address of {subnet} yet, and {DOCKERS} has {address}: there are no pods here"
            ),
            format!("if docker is to have the pods: {RESTART}"),
        ),
        Bridge::Missing => Finding::warning(
            "bridge",
            format!("no device has an address of {subnet} yet: there are no pods here"),
            "start docker with the subnet file's --bip",
        ),
    })
}

/// Whether a device is set up; one that cannot be looked at counts as that.
fn is_up(device: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{device}/flags"));
    let flags =
        flags.ok().and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
    flags.is_none_or(|flags| flags & IFF_UP != 0)
}

/// `linux/if.h`.
const IFF_UP: u32 = 1;

/// What gives a bridge another MTU is who has made it.
fn mtu_remedy(device: &str, most: u32) -> String {
    if device == DOCKERS {
        RESTART.to_owned()
    } else {
        format!("have whoever makes {device} give it an MTU of {most}, and its pods, too")
    }
}

/// Filters that drop what comes back another way than it went.
fn reverse_path(status: &Status, kernel: &Kernel) -> Vec<Finding> {
    if status.device.is_none() {
        return Vec::new();
    }
    let strict: Vec<&str> = kernel
        .links
        .iter()
        .map(|link| link.name.as_str())
        .filter(|name| *name != "lo" && rp_filter(name) == 1)
        .collect();
    vec![if strict.is_empty() {
        Finding::ok("rp_filter", "not strict")
    } else if status.return_path_masq {
        Finding::ok(
            "rp_filter",
            format!("strict on {}; replies come back the way requests went", strict.join(", ")),
        )
    } else {
        Finding::warning(
            "rp_filter",
            format!(
                "strict on {}, and --return-path-masq is off: what this host sends into the overlay with an address of its own is answered by the underlay, and the answers are dropped",
                strict.join(", ")
            ),
            "switch --return-path-masq on, or set net.ipv4.conf.*.rp_filter to 2",
        )
    }]
}

/// So many destinations are named where there are more.
const NAMED: usize = 3;

const RESTART: &str = "systemctl restart docker, so that it takes --bip and --mtu from the subnet file ('journalctl -u docker' says why it has not); containers of the old subnet must be started again";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_firewall_refuses_is_said_only_if_all_could_be_read() {
        let refusal = || Refusal { by: "a rule".to_owned(), remedy: "accept it".to_owned() };
        let rule = || vec!["a rule".to_owned()];
        let to = vec!["10.1.9.3/32".parse().unwrap()];
        let cut_off = vec![CutOff { to, by: refusal(), more: 0 }];
        let partly = || Findings { partly: rule(), ..Findings::default() };
        for (found, cut_off, level, says_all_clear) in [
            (Findings::default(), vec![], Level::Ok, true),
            (partly(), vec![], Level::Ok, true),
            (partly(), cut_off.clone(), Level::Warning, false),
            (Findings { of_any: vec![refusal()], ..Findings::default() }, vec![], Level::Warning, false),
            (Findings { unread: rule(), ..Findings::default() }, vec![], Level::Warning, false),
            (
                Findings { refusals: vec![refusal()], unread: rule(), ..Findings::default() },
                cut_off,
                Level::Error,
                false,
            ),
        ] {
            let named = found != Findings::default();
            let findings = by_firewall("forwarding", "it", "on", found, cut_off);
            assert_eq!(findings.iter().map(|finding| finding.level).collect::<Vec<_>>(), [level]);
            assert_eq!(findings[0].text.contains("no firewall refuses it"), says_all_clear);
            assert_eq!(findings[0].text.contains("a rule"), named, "{}", findings[0].text);
        }
    }
}
