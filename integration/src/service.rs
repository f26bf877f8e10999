//! A service of a cluster: an address that no host has and that the service proxy's rules turn into a pod's.

use std::net::Ipv4Addr;

use crate::site::{Host, Pod};

/// The address that the rules stand for.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 103);

/// Loads the rules by which a host's service proxy sends `SERVICE:80` to a pod's port 8080, for what the host
/// itself and its pods ask, and masquerades only what it has marked (a pod that asks for itself).
#[track_caller]
pub fn install(host: &Host, pod: &Pod) {
    let pod = pod.address;
    host.ns.feed(
        "iptables-restore --noflush",
        &format!(
            "*nat\n\
             :KUBE-SERVICES - [0:0]\n\
             :KUBE-SVC-WEB - [0:0]\n\
             :KUBE-SEP-WEB - [0:0]\n\
             :KUBE-MARK-MASQ - [0:0]\n\
             :KUBE-POSTROUTING - [0:0]\n\
             -A PREROUTING -j KUBE-SERVICES\n\
             -A OUTPUT -j KUBE-SERVICES\n\
             -A POSTROUTING -j KUBE-POSTROUTING\n\
             -A KUBE-SERVICES -d {SERVICE}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-WEB\n\
             -A KUBE-SVC-WEB -j KUBE-SEP-WEB\n\
             -A KUBE-SEP-WEB -s {pod}/32 -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-WEB -p tcp -m tcp -j DNAT --to-destination {pod}:8080\n\
             -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
             -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\n\
             COMMIT\n"
        ),
    );
}
