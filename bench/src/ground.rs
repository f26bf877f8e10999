//! Hosts in network namespaces: what the overlays stand on.

use integration::{Host, Namespace, Site};

use crate::plan::{Place, Topology, Wire};

/// Two hosts and the way between them.
#[derive(Debug)]
pub struct Ground {
    /// Router and files; dropped last.
    pub site: Site,
    /// The client's host.
    pub worker: Host,
    /// The server's host.
    pub master: Host,
    /// What of the wire is not as it was asked for, a line each.
    pub flaws: Vec<String>,
}

impl Ground {
    /// Builds the hosts of a place.
    ///
    /// # Panics
    /// As the harness does, if the machine refuses.
    #[must_use]
    pub fn build(place: Place) -> Self {
        let (site, worker, master) = match place.topology {
            Topology::Routed => Site::two_hosts(),
            Topology::Link => Site::two_hosts_on_one_link(integration::Wire::Virtual),
        };
        let mut flaws = Vec::new();
        if place.wire == Wire::Plain {
            let mut ports = vec![(&worker.ns, "eth0".to_owned()), (&master.ns, "eth0".to_owned())];
            if place.topology == Topology::Routed {
                ports.extend([&worker, &master].map(|host| (&site.router, Site::lan_device(host.public_ip))));
            }
            for (ns, port) in ports {
                flaws.extend(make_plain(ns, &port));
            }
        }
        Self { site, worker, master, flaws }
    }
}

/// Switches a port's offloads off, but for merging on arrival, which a port of a plain wire does
/// too. Returns what it kept.
fn make_plain(ns: &Namespace, port: &str) -> Vec<String> {
    let all: Vec<String> = FEATURES.iter().map(|feature| feature.setting()).collect();
    if !ns.run(&format!("ethtool -K {port} {}", all.join(" "))).status.success() {
        // One that the port does not know must not keep the others from being set.
        for setting in &all {
            ns.run(&format!("ethtool -K {port} {setting}"));
        }
    }
    let shown = ns.ok(&format!("ethtool -k {port}"));
    wrong(&shown).into_iter().map(|what| format!("{} {port}: {what}", ns.name())).collect()
}

/// Which features are not as they are on a plain wire, in what `ethtool -k` shows. One that the
/// port does not have is off.
fn wrong(shown: &str) -> Vec<String> {
    let state = |name: &str| {
        let line = shown.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        line.is_some_and(|state| state.starts_with("on"))
    };
    let is_wrong = |feature: &&Feature| state(feature.shown) != feature.on;
    let show =
        |feature: &Feature| format!("{} stays {}", feature.shown, if feature.on { "off" } else { "on" });
    FEATURES.iter().filter(is_wrong).map(show).collect()
}

/// A feature by its names: what `ethtool -K` takes, and what `ethtool -k` shows.
struct Feature {
    set: &'static str,
    shown: &'static str,
    on: bool,
}

impl Feature {
    const fn off(set: &'static str, shown: &'static str) -> Self {
        Self { set, shown, on: false }
    }

    fn setting(&self) -> String {
        format!("{} {}", self.set, if self.on { "on" } else { "off" })
    }
}

const FEATURES: [Feature; 7] = [
    Feature::off("tso", "tcp-segmentation-offload"),
    Feature::off("gso", "generic-segmentation-offload"),
    Feature::off("tx", "tx-checksumming"),
    Feature::off("tx-udp-segmentation", "tx-udp-segmentation"),
    Feature::off("tx-udp_tnl-segmentation", "tx-udp_tnl-segmentation"),
    Feature::off("tx-udp_tnl-csum-segmentation", "tx-udp_tnl-csum-segmentation"),
    Feature { set: "gro", shown: "generic-receive-offload", on: true },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_is_told() {
        let plain = "Features for eth0:\ntx-checksumming: off\n\ttx-checksum-ipv4: off [fixed]\n\
                     tcp-segmentation-offload: off\n\ttx-tcp-segmentation: off\n\
                     generic-segmentation-offload: off [requested on]\ngeneric-receive-offload: on\n";
        assert_eq!(wrong(plain), [""; 0]);
        let kept = plain.replace("tcp-segmentation-offload: off", "tcp-segmentation-offload: on [fixed]");
        assert_eq!(wrong(&kept), ["tcp-segmentation-offload stays on"]);
        let cut = plain.replace("receive-offload: on", "receive-offload: off [fixed]");
        assert_eq!(wrong(&cut), ["generic-receive-offload stays off"]);
    }
}
