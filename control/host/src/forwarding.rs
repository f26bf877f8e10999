//! Whether this host forwards: for all devices, and for each that pods' packets come in by.
//!
//! The switch for all (`net.ipv4.ip_forward`) sets each device's when it is switched on; each can be switched off by
//! itself afterwards, as systemd-networkd does with `IPForward=no`, and then what comes in there goes nowhere.

use std::fs;

use super::link::set;
use super::netlink::Netlink;
use super::{Desired, HostError, Steps};

/// Has the kernel forward IPv4 packets, from pods and to them. Returns what was not so, for people.
///
/// # Errors
/// [`HostError::Sysctl`] for settings that cannot be written; the others are. [`HostError::Netlink`] if the kernel cannot
/// be asked.
pub async fn apply(desired: &Desired) -> Result<Vec<String>, HostError> {
    let on = "net.ipv4.ip_forward=1: packets between pods and the overlay are forwarded";
    let mut steps = Steps::default();
    steps.took(set(IP_FORWARD.to_owned(), "1").map(|was_off| was_off.then(|| on.to_owned())));
    for device in devices(desired).await? {
        if !is_on(&device) {
            let was_off = set(format!("/proc/sys/{}", key(&device)), "1");
            steps
                .took(was_off.map(|was_off| was_off.then(|| format!("net.ipv4.conf.{device}.forwarding=1"))));
        }
    }
    steps.outcome()
}

/// Whether [`apply`] may do its work, or has none.
///
/// # Errors
/// [`HostError::Sysctl`] if this host does not forward, and cannot be told to.
pub fn can_be_switched_on() -> Result<(), HostError> {
    if is_on_at_all() {
        return Ok(());
    }
    let opened = fs::OpenOptions::new().write(true).open(IP_FORWARD);
    opened.map(drop).map_err(|source| HostError::Sysctl { path: IP_FORWARD.to_owned(), wanted: "1", source })
}

/// Where packets come in that are to go on: the overlay's device, the bridges of our pods, and the underlay's device, if
/// packets to pods come in by it as they are.
async fn devices(desired: &Desired) -> Result<Vec<String>, HostError> {
    let netlink = Netlink::open()?;
    let addresses = netlink.addresses().await?;
    let bridges: Vec<u32> = addresses
        .iter()
        .filter(|address| desired.pod_subnet.contains(&address.address))
        .map(|address| address.index)
        .collect();
    let is_meant = |index: u32, name: &String| {
        bridges.contains(&index) || *name == desired.device || Some(name) == desired.direct.as_ref()
    };
    let links = netlink.links().await?.into_iter();
    Ok(links.filter(|link| is_meant(link.index, &link.name)).map(|link| link.name).collect())
}

/// Whether what comes in by `device` is forwarded. A device that is not there is nobody's.
#[must_use]
pub fn is_on(device: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/{}", key(device))).map_or(true, |value| value.trim() != "0")
}

/// What to do where it is not.
#[must_use]
pub fn remedy(device: &str) -> String {
    format!(
        "sysctl net.ipv4.conf.{device}.forwarding=1, and find out who switched it off (systemd-networkd does with IPForward=no)"
    )
}

/// Whether this host forwards IPv4 packets at all. (If the kernel does not tell, [`apply`] will say so.)
#[must_use]
pub fn is_on_at_all() -> bool {
    fs::read_to_string(IP_FORWARD).is_ok_and(|value| value.trim() == "1")
}

/// A device's setting, below /proc/sys.
fn key(device: &str) -> String {
    format!("net/ipv4/conf/{device}/forwarding")
}

/// Per network namespace, and that of the thread that opens it.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
