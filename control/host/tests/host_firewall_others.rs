//! Rules beside those of others, who write at the same time, or by other means.

mod namespace;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use namespace::{Namespace, source_seen};
use overlay_host::firewall::{self, Firewall};
use overlay_host::{Desired, FirewallKind, HostError, Masquerade};

const FIREWALLS: [FirewallKind; 2] = [FirewallKind::Nftables, FirewallKind::Iptables];

fn desired(firewall: FirewallKind) -> Desired {
    Desired { firewall, ..namespace::desired() }
}

/// The nth of several daemons on one host, each with a network of its own.
fn nth(firewall: FirewallKind, number: usize) -> Desired {
    Desired {
        device: format!("flannel.{number}"),
        network: format!("10.{number}.0.0/16").parse().unwrap(),
        pod_subnet: format!("10.{number}.9.0/24").parse().unwrap(),
        masquerade: Masquerade { ip_masq: true, ..namespace::desired().masquerade },
        ..desired(firewall)
    }
}

fn sync(host: &Namespace, mut firewall: Firewall) -> (Firewall, Result<bool, HostError>) {
    host.block_on(|| async move {
        let outcome = firewall.sync().await;
        (firewall, outcome)
    })
}

/// What iptables has no words for, in a chain of its tables.
const NATIVE: [&str; 4] = [
    "filter { chain INPUT { type filter hook input priority 0; ct state vmap { established : accept, invalid : drop }; }; }",
    "filter { chain INPUT { type filter hook input priority 0; meta mark set ct mark; }; }",
    "filter { chain FORWARD { type filter hook forward priority 0; ct state vmap { invalid : drop }; }; }",
    "nat { chain POSTROUTING { type nat hook postrouting priority 100; fib saddr type local accept; }; }",
];

#[test]
fn a_table_that_iptables_cannot_list_gets_each_rule_once_and_keeps_none() {
    for firewall in FIREWALLS {
        for native in NATIVE {
            let host = Namespace::new();
            host.sh(&format!("nft 'table ip {native}'"));
            let before = host.sh("nft list ruleset");
            let (kept, outcome) = sync(&host, Firewall::new(desired(firewall)));
            assert!(outcome.unwrap(), "{firewall:?}: {native}");
            let rules = host.sh("nft list ruleset");
            let chain =
                if firewall == FirewallKind::Iptables { "FLANNEL-FWD" } else { "OVERLAYD-FWD-flannel.1" };
            assert_eq!(rules.matches(&format!("jump {chain}")).count(), 1, "{rules}");

            let mut again = kept;
            for _ in 0..2 {
                let (kept, outcome) = sync(&host, again);
                assert!(!outcome.unwrap(), "{firewall:?}: {native}: nothing is to be done");
                again = kept;
            }
            assert_eq!(host.sh("nft list ruleset"), rules);

            // As a version that took the table for an empty one has left them.
            if chain.starts_with("OVERLAYD") {
                let jump =
                    format!("iptables -w 5 -A FORWARD -m comment --comment overlayd-forward -j {chain}\n");
                host.sh(&jump.repeat(8));
                let (_, outcome) = sync(&host, again);
                assert!(outcome.is_ok());
                host.sh(&jump);
            }
            assert!(host.block_on(|| firewall::remove_all("flannel.1")).unwrap());
            let rules = host.sh("nft list ruleset");
            assert!(!rules.contains("overlayd") && !rules.contains("OVERLAYD"), "{native}: {rules}");
            assert!(rules.len() >= before.len());
        }
    }
}

/// As sites have it: all of FORWARD is written anew, again and again.
const SITES_SCRIPT: &str = "
    iptables -w 5 -F FORWARD
    for port in 22 53 80 443 8080; do iptables -w 5 -A FORWARD -p tcp --dport $port -j ACCEPT; done
    iptables -w 5 -A FORWARD -d 10.0.0.0/8 -j REJECT";

#[test]
fn a_start_is_not_ended_by_a_script_that_writes_forward_anew() {
    let host = Namespace::new();
    host.sh(SITES_SCRIPT);
    let done = Arc::new(AtomicBool::new(false));
    let script = {
        let done = Arc::clone(&done);
        host.run(move || {
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // It may find the table changed by us, as we by it.
                    let _ = Command::new("sh").args(["-c", SITES_SCRIPT]).output();
                }
            })
        })
    };
    for firewall in FIREWALLS {
        for number in 0..6 {
            let (_, outcome) = sync(&host, Firewall::new(desired(firewall)));
            outcome.unwrap_or_else(|error| panic!("{firewall:?}, start {number}: {error}"));
        }
    }
    done.store(true, Ordering::Relaxed);
    script.join().unwrap();
    let (_, outcome) = sync(&host, Firewall::new(desired(FirewallKind::Nftables)));
    outcome.unwrap();
    let forward = host.sh("iptables -S FORWARD");
    let at = |what: &str| forward.lines().position(|line| line.contains(what));
    assert!(at("OVERLAYD-FWD-flannel.1") < at("REJECT"), "{forward}");
}

#[test]
fn many_daemons_at_once_start_and_then_are_quiet() {
    for firewall in FIREWALLS {
        for same in [false, true] {
            let host = Namespace::new();
            let daemons: Vec<Firewall> =
                (1..=8).map(|number| Firewall::new(nth(firewall, if same { 1 } else { number }))).collect();
            let rounds = host.block_on(|| async move {
                let mut daemons = daemons;
                let mut rounds = Vec::new();
                for _ in 0..5 {
                    let all = futures::future::join_all(daemons.iter_mut().map(Firewall::sync)).await;
                    rounds.push(all);
                }
                rounds
            });
            for outcome in rounds.iter().flatten() {
                assert!(outcome.is_ok(), "{firewall:?}: {outcome:?}");
            }
            let quiet =
                |round: &Vec<Result<bool, HostError>>| round.iter().all(|one| matches!(one, Ok(false)));
            assert!(quiet(&rounds[4]), "{firewall:?}, one network: {same}: {rounds:?}");
        }
    }
}

#[test]
fn what_somebody_undoes_for_ever_is_put_back_less_and_less_often() {
    let host = Namespace::new();
    let (mut kept, outcome) = sync(&host, Firewall::new(desired(FirewallKind::Nftables)));
    assert!(outcome.unwrap());
    let mut outcomes = Vec::new();
    for _ in 0..30 {
        host.sh("nft flush chain ip overlayd_flannel.1 postrouting");
        let (firewall, outcome) = sync(&host, kept);
        outcomes.push(outcome);
        kept = firewall;
    }
    assert!(outcomes[..15].iter().all(|outcome| matches!(outcome, Ok(true))), "{outcomes:?}");
    assert!(matches!(outcomes.last(), Some(Err(HostError::Contested))), "{outcomes:?}");
}

/// A host with a pod, one of an earlier subnet, and a node beside it.
///
/// ```text
///   pod 10.1.9.2, 10.1.8.2 ── docker0   host   flannel.1 ── far 10.1.86.2
///                                       eth0 LAN.12 ── LAN.13 peer 10.1.63.2
/// ```
struct Pods {
    host: Namespace,
    pod: Namespace,
    peer: Namespace,
    far: Namespace,
}

impl Pods {
    fn new(lan: &'static str) -> Self {
        let [host, pod, peer, far] = [(); 4].map(|()| Namespace::new());
        host.join("docker0", &pod, "eth0");
        host.join("eth0", &peer, "eth0");
        host.join("flannel.1", &far, "eth0");
        host.sh(&format!(
            "sysctl -qw net.ipv4.ip_forward=1
             ip addr add 10.1.9.1/24 dev docker0; ip addr add 10.1.8.1/24 dev docker0; ip link set docker0 up
             ip addr add {lan}.12/24 dev eth0; ip link set eth0 up
             ip addr add 10.1.9.0/32 dev flannel.1; ip link set flannel.1 up
             ip route add 10.1.86.0/24 dev flannel.1; ip route add 10.1.63.0/24 via {lan}.13
             iptables -w 5 -t nat -A POSTROUTING -s 10.1.8.0/23 ! -o docker0 -j MASQUERADE
             iptables -w 5 -A FORWARD -i docker0 ! -o docker0 -j ACCEPT"
        ));
        pod.sh("ip addr add 10.1.9.2/24 dev eth0; ip addr add 10.1.8.2/24 dev eth0; ip link set eth0 up
             ip route add default via 10.1.9.1");
        peer.sh(&format!(
            "ip addr add {lan}.13/24 dev eth0; ip link set eth0 up; ip addr add 10.1.63.2/32 dev lo"
        ));
        far.sh("ip addr add 10.1.86.2/24 dev eth0; ip link set eth0 up
            ip route add default via 10.1.9.0 dev eth0 onlink");
        Self { host, pod, peer, far }
    }

    /// The source with which what `from` sends arrives at `to`; `None` if the host's own, sent afterwards, is there
    /// before.
    fn seen(&self, (from, source): (&Namespace, &str), (at, to): (&Namespace, &str)) -> Option<String> {
        let (listener, later) = (at.udp(to), self.host.udp("0.0.0.0:0"));
        from.udp(&format!("{source}:0")).send_to(b"this", to).expect("send");
        later.send_to(b"later", to).expect("send");
        let mut word = [0; 8];
        let (length, source) = listener.recv_from(&mut word).expect("the host's own datagram");
        (&word[..length] == b"this").then(|| source.ip().to_string())
    }
}

/// What this host masquerades would pass as a packet of this node's. The hosts may be in the network, as in flannel's
/// own example of 10.0.0.0/8.
#[test]
fn what_pods_send_to_the_tunnels_port_of_a_host_never_has_this_nodes_address() {
    for (network, lan) in [("10.1.0.0/16", "192.168.1"), ("10.0.0.0/8", "10.200.1")] {
        let pods = Pods::new(lan);
        let (pod, earlier) = ((&pods.pod, "10.1.9.2"), (&pods.pod, "10.1.8.2"));
        let (node, other_port) = (format!("{lan}.13:8472"), format!("{lan}.13:8473"));
        let (node, other_port) = ((&pods.peer, node.as_str()), (&pods.peer, other_port.as_str()));
        let own = Some(format!("{lan}.12"));
        assert_eq!(pods.seen(pod, node), own, "it would pass as the host's");

        for (firewall, direct, ip_masq) in each() {
            let masquerade = Masquerade { ip_masq, ..namespace::desired().masquerade };
            let direct = direct.then(|| "eth0".to_owned());
            let network = network.parse().unwrap();
            let wanted = Desired { network, direct, masquerade, ..desired(firewall) };
            let bound = wanted.direct.is_some() && lan == "10.200.1";
            let what = format!("{firewall:?}, {wanted:?}");
            let forward_rules = false;
            sync(&pods.host, Firewall::new(Desired { forward_rules, ..wanted.clone() })).1.unwrap();
            let from_pod = if bound { Some("10.1.9.2".to_owned()) } else { own.clone() };
            assert_eq!(pods.seen(pod, node), from_pod, "without rules for forwarding: {what}");

            sync(&pods.host, Firewall::new(wanted.clone())).1.unwrap();
            let with_own = |source: &str| bound.then(|| source.to_owned());
            assert_eq!(pods.seen(pod, node), with_own("10.1.9.2"), "{what}");
            assert_eq!(pods.seen(earlier, node), with_own("10.1.8.2").filter(|_| !ip_masq), "{what}");
            assert_eq!(pods.seen(pod, other_port), from_pod, "another port: {what}");
            assert_eq!(pods.seen((&pods.host, &format!("{lan}.12")), node), own, "the host's own: {what}");

            // Pods may have that port.
            let directly = wanted.direct.is_some().then(|| "10.1.9.2".to_owned());
            assert_eq!(pods.seen(pod, (&pods.peer, "10.1.63.2:8472")), directly, "{what}");
            let ends = [(&pods.pod, "10.1.9.2"), (&pods.far, "10.1.86.2")];
            for [(from, source), (to, at)] in [ends, [ends[1], ends[0]]] {
                let seen = source_seen(&from.udp(&format!("{source}:0")), &to.udp(&format!("{at}:8472")));
                assert_eq!(seen, source.parse().ok(), "through the overlay: {what}");
            }
        }
        pods.host.block_on(|| firewall::remove_all("flannel.1")).unwrap();
        assert!(!pods.host.sh("nft list ruleset").contains("tunnel"));
    }
}

/// Each firewall, with plain routes to other nodes and without, with `--ip-masq` and without.
fn each() -> impl Iterator<Item = (FirewallKind, bool, bool)> {
    let options = [false, true].map(|direct| [false, true].map(|ip_masq| (direct, ip_masq)));
    FIREWALLS.into_iter().flat_map(move |firewall| {
        options.into_iter().flatten().map(move |(direct, ip_masq)| (firewall, direct, ip_masq))
    })
}
