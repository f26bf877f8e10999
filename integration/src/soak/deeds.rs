//! What is done to the overlay while traffic flows.

use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::process::Signal;

use super::{Ground, Node};
use crate::hostile;
use crate::noise::Noise;
use crate::overlayd::Overlayd;
use crate::site::Site;
use crate::store::Store;

/// Something that happens in operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// A daemon is restarted.
    Restart,
    /// A daemon that goes by sockets is killed and started again. (What is in a ring is lost with its process.)
    Kill,
    /// A daemon stands still for a while.
    Pause,
    /// etcd is restarted.
    EtcdRestart,
    /// etcd is killed, and a daemon restarted before it is back.
    EtcdAway,
    /// Leases come and go.
    Churn,
    /// Somebody writes leases that claim what others have.
    Hostile,
    /// All firewall rules of a host are flushed.
    FlushRules,
    /// A site's script writes iptables' FORWARD anew, and rejects what it does not name.
    RewriteForward,
    /// The overlay device is deleted.
    DeleteDevice,
    /// The cable between a host and its router is pulled and plugged in.
    Cable,
    /// The host's interface is set down and up.
    Interface,
}

impl Deed {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Restart,
        Self::Kill,
        Self::Pause,
        Self::EtcdRestart,
        Self::EtcdAway,
        Self::Churn,
        Self::Hostile,
        Self::FlushRules,
        Self::RewriteForward,
        Self::DeleteDevice,
        Self::Cable,
        Self::Interface,
    ];

    /// Whether packets may be lost: only where there is no way for them, or nobody to keep them.
    #[must_use]
    pub fn may_lose(self) -> bool {
        matches!(self, Self::RewriteForward | Self::DeleteDevice | Self::Cable | Self::Interface)
    }

    /// Whether datagrams may be overtaken: where a link comes back, the kernel sends on what has waited for the
    /// neighbour's address while newer packets pass by (seen without any overlay, too).
    #[must_use]
    pub fn may_reorder(self) -> bool {
        matches!(self, Self::Cable | Self::Interface)
    }

    /// What it is, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart of a daemon",
            Self::Kill => "SIGKILL of a daemon",
            Self::Pause => "SIGSTOP of a daemon, up to 2 s",
            Self::EtcdRestart => "restart of etcd",
            Self::EtcdAway => "restart of a daemon while etcd is away",
            Self::Churn => "20 to 60 leases come and go",
            Self::Hostile => "leases that claim others' addresses",
            Self::FlushRules => "nft flush ruleset",
            Self::RewriteForward => "iptables -F FORWARD, and a REJECT at its end, three times",
            Self::DeleteDevice => "ip link del of the overlay device",
            Self::Cable => "link down on the router, up to 3 s",
            Self::Interface => "ip link set eth0 down, up to 3 s",
        }
    }

    /// Does it. The last node is spared what ends its process, so that one process sees the whole soak.
    #[track_caller]
    pub fn perform<'h>(self, ground: &mut Ground<'h>, noise: &mut Noise) {
        let mut draw = |below: u64| (noise.number() >> 32) % below;
        let any = draw(ground.nodes.len() as u64) as usize;
        let mortal = draw(ground.nodes.len() as u64 - 1) as usize;
        let moment = |milliseconds| Duration::from_millis(200 + milliseconds);
        match self {
            Self::Restart => ground.replace(mortal, Overlayd::stop_for_restart),
            Self::Kill => ground.replace(0, Overlayd::crash),
            Self::Pause => {
                let daemon = ground.nodes[any].daemon();
                daemon.process().signal(Signal::STOP);
                std::thread::sleep(moment(draw(1800)));
                daemon.process().signal(Signal::CONT);
            }
            Self::EtcdRestart => {
                ground.store.server().kill();
                ground.store.server().run();
            }
            Self::EtcdAway => {
                ground.store.server().kill();
                std::thread::sleep(moment(draw(2000)));
                ground.replace(mortal, Overlayd::stop_for_restart);
                ground.store.server().run();
            }
            Self::Churn => churn(&ground.store, 20 + draw(40)),
            Self::Hostile => {
                let nodes = ground.nodes.iter().filter_map(|node| {
                    Some((node.daemon.as_ref()?.env().base_with_length(), node.host.public_ip))
                });
                let leases = hostile::leases(NOWHERE, &nodes.collect::<Vec<_>>());
                hostile::write(&ground.store, &leases);
                // A daemon that starts meanwhile has its own lease all the same.
                ground.replace(mortal, Overlayd::stop_for_restart);
                hostile::remove(&ground.store, &leases);
            }
            Self::FlushRules => _ = ground.nodes[any].host.ns.ok("nft flush ruleset"),
            Self::RewriteForward => {
                for _ in 0..3 {
                    FORWARD.iter().for_each(|rule| drop(ground.nodes[any].host.ns.ok(rule)));
                    std::thread::sleep(moment(draw(300)));
                }
            }
            Self::DeleteDevice => {
                let host = ground.nodes[mortal].host;
                host.ns.ok(&format!("ip link del {}", ground.device));
            }
            Self::Cable => {
                let leg = Site::lan_device(ground.nodes[any].host.public_ip);
                ground.site.router.ip(&format!("link set {leg} down"));
                std::thread::sleep(moment(draw(2800)));
                ground.site.router.ip(&format!("link set {leg} up"));
            }
            Self::Interface => {
                let Node { host, .. } = &ground.nodes[any];
                host.ns.ip("link set eth0 down");
                std::thread::sleep(moment(draw(2800)));
                let [a, b, c, _] = host.public_ip.octets();
                host.ns.ip(&format!("link set eth0 up\nroute add default via {a}.{b}.{c}.1"));
            }
        }
    }
}

/// Other nodes register, and leave again.
#[track_caller]
fn churn(store: &Store, count: u64) {
    let key = |number: u64| format!("10.1.{}.0-24", FIRST + number);
    for number in 0..count {
        let value = format!(
            r#"{{"PublicIP":"172.16.0.{}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{:02x}"}}}}"#,
            1 + number,
            1 + number
        );
        store.put_lease(&key(number), &value);
    }
    for number in 0..count {
        store.delete_lease(&key(number));
    }
}

/// A site's script. It knows nothing of the overlay.
const FORWARD: [&str; 4] = [
    "iptables -w 5 -F FORWARD",
    "iptables -w 5 -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "iptables -w 5 -A FORWARD -p tcp --dport 22 -j ACCEPT",
    "iptables -w 5 -A FORWARD -j REJECT",
];

/// Of who writes what is not to be used.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(172, 16, 9, 66);
/// The third octet of the first subnet that comes and goes; no daemon of the soak has one of these.
pub(super) const FIRST: u64 = 180;
