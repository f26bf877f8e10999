//! The kernel's part of a check, with a daemon running.

use std::net::Ipv4Addr;

use super::Finding;
use crate::diagnose::kernel::{Kernel, rp_filter, sysctl};
use crate::host::HostError;
use crate::host::docker::{self, Bridge, DOCKERS};
use crate::host::firewall::verdict::{self, Forwarded, Refusal};
use crate::status::{DeviceStatus, Status};

pub(super) async fn findings(status: &Status) -> Result<Vec<Finding>, HostError> {
    let kernel = Kernel::open().await?;
    let mut findings = Vec::new();
    findings.extend(device(status, &kernel));
    findings.extend(forwarding(status).await?);
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

/// Whether packets pass between the pods here and those of others.
async fn forwarding(status: &Status) -> Result<Vec<Finding>, HostError> {
    if sysctl("net/ipv4/ip_forward").as_deref() != Some("1") {
        let remedy =
            "sysctl net.ipv4.ip_forward=1, and find out who switched it off: overlayd switches it on";
        return Ok(vec![Finding::error("forwarding", "net.ipv4.ip_forward is 0", remedy)]);
    }
    let Some(device) = &status.device else { return Ok(vec![Finding::ok("forwarding", "on")]) };
    let own = pod_of(status.lease.subnet.network());
    let others = status.peers.first().map_or(status.network.network(), |peer| peer.subnet.network());
    let out = Forwarded {
        src: own,
        dst: pod_of(others),
        protocol: None,
        port: None,
        from_device: DOCKERS.to_owned(),
        to_device: device.name.clone(),
    };
    let back = Forwarded {
        src: out.dst,
        dst: out.src,
        from_device: out.to_device.clone(),
        to_device: out.from_device.clone(),
        ..out.clone()
    };
    let refusals = async {
        let mut refusals = Vec::new();
        for packet in [out, back] {
            let new = verdict::refusals(&packet, status.network, &device.name).await?;
            refusals
                .extend(new.into_iter().filter(|refusal| !refusals.contains(refusal)).collect::<Vec<_>>());
        }
        Ok::<_, HostError>(refusals)
    };
    Ok(by_firewall(refusals.await))
}

/// What the firewall's word means.
fn by_firewall(refusals: Result<Vec<Refusal>, HostError>) -> Vec<Finding> {
    match refusals {
        // All else can be looked at without being root.
        Err(error) => {
            let text = format!("on, but what the firewall refuses cannot be read: {error}");
            vec![Finding::warning("forwarding", text, "its rules are for root to read: ask as root")]
        }
        Ok(refusals) if refusals.is_empty() => {
            vec![Finding::ok("forwarding", "on, and no firewall refuses it")]
        }
        Ok(refusals) => {
            let refused = refusals.into_iter().map(|refusal| {
                let text = format!("between pods it is dropped by {}", refusal.by);
                Finding::error("forwarding", text, refusal.remedy)
            });
            refused.collect()
        }
    }
}

/// The bridge that the pods are on.
async fn bridge(status: &Status) -> Result<Finding, HostError> {
    let subnet = status.lease.subnet;
    let overlay = status.device.as_ref();
    let device = overlay.map_or("", |device| device.name.as_str());
    Ok(match docker::bridge(&[status.network], subnet, device).await? {
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

/// An address that a pod in the /24 or so at `base` may have.
fn pod_of(base: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(base) + 2)
}

const RESTART: &str = "systemctl restart docker, so that it takes --bip and --mtu from the subnet file (its log says why it has not: journalctl -u docker); containers of the old subnet must be started again";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::check::Level;

    #[test]
    fn who_may_not_read_the_firewall_is_told_so_and_all_else() {
        let level = |refusals| by_firewall(refusals).iter().map(|finding| finding.level).collect::<Vec<_>>();
        let refusal = Refusal { by: "a chain".to_owned(), remedy: "accept it".to_owned() };
        let denied = HostError::Netlink { action: "list".to_owned(), reason: "EPERM".to_owned() };
        assert_eq!(level(Ok(Vec::new())), [Level::Ok]);
        assert_eq!(level(Ok(vec![refusal.clone(), refusal])), [Level::Error; 2]);
        assert_eq!(level(Err(denied)), [Level::Warning]);
    }
}
