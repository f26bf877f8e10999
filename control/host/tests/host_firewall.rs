//! The rules, by the packets they let through and the sources these arrive with.
//!
//! ```text
//!   pod 10.1.9.2 ── docker0 10.1.9.1   host   flannel.1 10.1.9.0 ── far 10.1.86.2
//!                                      eth0 192.168.1.12
//! ```
//! A veth pair stands for the overlay device, so that what leaves through it can be received. The rules that
//! docker would load are written by hand, as it writes them. What holds for every firewall is asked of each.

mod namespace;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use namespace::{Namespace, source_seen};
use overlay_host::firewall::{self, Firewall};
use overlay_host::{Desired, FirewallKind, HostError, Masquerade, link};

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 2);
const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 0);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);

/// As docker 20.10 writes them when it starts with `--ip-masq=true` and `--bip=10.1.9.1/24`.
const DOCKER: &str = "
    iptables -w 5 -t nat -A POSTROUTING -s 10.1.9.0/24 ! -o docker0 -j MASQUERADE
    iptables -w 5 -P FORWARD DROP
    for chain in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do
        iptables -w 5 -N $chain
    done
    iptables -w 5 -A DOCKER-USER -j RETURN
    iptables -w 5 -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
    iptables -w 5 -A DOCKER-ISOLATION-STAGE-1 -j RETURN
    iptables -w 5 -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
    iptables -w 5 -A DOCKER-ISOLATION-STAGE-2 -j RETURN
    iptables -w 5 -I FORWARD -i docker0 -o docker0 -j ACCEPT
    iptables -w 5 -I FORWARD -i docker0 ! -o docker0 -j ACCEPT
    iptables -w 5 -I FORWARD -o docker0 -j DOCKER
    iptables -w 5 -I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables -w 5 -I FORWARD -j DOCKER-ISOLATION-STAGE-1
    iptables -w 5 -I FORWARD -j DOCKER-USER";

fn desired(masquerade: Masquerade) -> Desired {
    Desired { masquerade, ..namespace::desired() }
}

fn desired_with(firewall: FirewallKind, masquerade: Masquerade) -> Desired {
    Desired { firewall, ..desired(masquerade) }
}

const FIREWALLS: [FirewallKind; 2] = [FirewallKind::Nftables, FirewallKind::Iptables];

const RETURN_PATH: Masquerade = Masquerade { return_path: true, ip_masq: false, fully_random: true };
const NOTHING: Masquerade = Masquerade { return_path: false, ..RETURN_PATH };
const IP_MASQ: Masquerade = Masquerade { ip_masq: true, ..RETURN_PATH };

struct Lab {
    host: Namespace,
    pod: Namespace,
    far: Namespace,
    firewall: RefCell<Option<Firewall>>,
}

impl Lab {
    fn new(masquerade: Masquerade) -> Self {
        Self::with(desired(masquerade))
    }

    fn with(wanted: Desired) -> Self {
        let (host, pod, far) = (Namespace::new(), Namespace::new(), Namespace::new());
        host.join("docker0", &pod, "eth0");
        host.join("flannel.1", &far, "far0");
        host.sh("ip addr add 10.1.9.1/24 dev docker0
             ip link set docker0 up
             ip link add eth0 type bridge
             ip addr add 192.168.1.12/24 dev eth0
             ip link set eth0 up");
        pod.sh("ip addr add 10.1.9.2/24 dev eth0
             ip link set eth0 up
             ip route add default via 10.1.9.1");
        far.sh("ip addr add 10.1.86.2/32 dev far0
             ip addr add 203.0.113.7/32 dev far0
             ip link set far0 up
             ip route add 10.1.9.0/32 dev far0
             ip route add default via 10.1.9.0 onlink dev far0");
        let lab = Self { host, pod, far, firewall: RefCell::default() };
        let link = wanted.clone();
        lab.host.block_on(move || async move { link::apply(&link).await }).unwrap();
        lab.host.sh("ip route add 10.1.0.0/16 dev flannel.1
             sysctl -qw net.ipv4.ip_forward=1");
        lab.want(wanted);
        lab
    }

    /// From now on another state is wanted, as after a restart.
    fn want(&self, desired: Desired) {
        self.firewall.replace(Some(Firewall::new(desired)));
    }

    fn try_sync(&self) -> Result<bool, HostError> {
        let mut firewall = self.firewall.take().expect("a wanted state");
        let (firewall, outcome) = self.host.block_on(|| async move {
            let outcome = firewall.sync().await;
            (firewall, outcome)
        });
        self.firewall.replace(Some(firewall));
        outcome
    }

    fn in_place(&self) -> bool {
        let mut firewall = self.firewall.take().expect("a wanted state");
        let (firewall, outcome) = self.host.block_on(|| async move {
            let outcome = firewall.in_place().await;
            (firewall, outcome)
        });
        self.firewall.replace(Some(firewall));
        outcome.unwrap()
    }

    fn sync(&self) -> bool {
        self.try_sync().unwrap()
    }

    fn nft(&self) -> Value {
        self.host.json("nft -j list table ip overlayd_flannel.1")
    }

    /// The source with which a datagram from `from` (bound in `namespace`) arrives at the far pod.
    fn source_at_far(&self, namespace: &Namespace, from: &str) -> Option<Ipv4Addr> {
        source_seen(&namespace.udp(from), &self.far.udp("10.1.86.2:9999"))
    }
}

#[test]
fn pod_to_pod_keeps_its_source_under_dockers_masquerade() {
    for variant in ["iptables", "iptables-legacy"] {
        let lab = Lab::new(RETURN_PATH);
        lab.host.sh(&DOCKER.replace("iptables ", &format!("{variant} ")));
        assert_eq!(lab.source_at_far(&lab.pod, "10.1.9.2:0"), Some(DEVICE), "docker's rule works here");
        for firewall in FIREWALLS {
            for masquerade in [RETURN_PATH, NOTHING, IP_MASQ] {
                lab.want(desired_with(firewall, masquerade));
                assert!(lab.sync());
                let seen = lab.source_at_far(&lab.pod, "10.1.9.2:0");
                assert_eq!(seen, Some(POD), "{variant}, {firewall:?}: {masquerade:?}");
            }
        }
    }
}

#[test]
fn a_foreign_source_is_masqueraded_with_return_path_and_not_without() {
    let lab = Lab::new(RETURN_PATH);
    for firewall in FIREWALLS {
        for (return_path, fully_random, expected) in
            [(true, true, DEVICE), (true, false, DEVICE), (false, true, OUTSIDE)]
        {
            lab.want(desired_with(firewall, Masquerade { return_path, fully_random, ..NOTHING }));
            lab.sync();
            assert_eq!(lab.source_at_far(&lab.host, "192.168.1.12:0"), Some(expected), "{firewall:?}");
            let rules = match firewall {
                FirewallKind::Nftables => lab.nft().to_string(),
                _ => lab.host.sh("iptables-save -t nat").replace("random-fully", "fully-random"),
            };
            assert_eq!(rules.contains("fully-random"), return_path && fully_random, "{rules}");
        }
    }
}

#[test]
fn kube_proxys_mark_goes_before_everything() {
    for firewall in FIREWALLS {
        kube_proxys_mark_goes_first(&Lab::with(desired_with(firewall, IP_MASQ)));
    }
}

fn kube_proxys_mark_goes_first(lab: &Lab) {
    lab.sync();
    lab.host.sh(DOCKER);
    // Marked with other bits set too, the foreign source passes as it is, and a pod's is left to the later chain.
    lab.host.sh("iptables -w 5 -t mangle -A OUTPUT -p udp --dport 9999 -j MARK --set-mark 0x5000
         iptables -w 5 -t mangle -A PREROUTING -p udp --dport 9999 -j MARK --set-mark 0x4000");
    assert_eq!(lab.source_at_far(&lab.host, "192.168.1.12:0"), Some(OUTSIDE));
    assert_eq!(lab.source_at_far(&lab.pod, "10.1.9.2:0"), Some(DEVICE));
    lab.host.sh("iptables -w 5 -t mangle -F");
    assert_eq!(lab.source_at_far(&lab.host, "192.168.1.12:0"), Some(DEVICE));
    assert_eq!(lab.source_at_far(&lab.pod, "10.1.9.2:0"), Some(POD));
}

#[test]
fn flannels_six_rules_do_as_flannels() {
    for firewall in FIREWALLS {
        six_rules_do_as_flannels(firewall);
    }
}

fn six_rules_do_as_flannels(firewall: FirewallKind) {
    let lab = Lab::with(desired_with(firewall, Masquerade { return_path: false, ..IP_MASQ }));
    let outside = Namespace::new();
    lab.host.join("eth1", &outside, "eth0");
    lab.host.sh("ip addr add 172.20.0.1/24 dev eth1; ip link set eth1 up");
    outside.sh(
        "ip addr add 172.20.0.2/24 dev eth0; ip link set eth0 up; ip route add 10.1.0.0/16 via 172.20.0.1",
    );
    lab.host.sh("ip addr add 10.1.200.1/32 dev eth0");
    // A pod of the network that is reached without the overlay device, as on a node of the same layer 2.
    outside.sh("ip addr add 10.1.50.2/32 dev eth0");
    lab.host.sh("ip route add 10.1.50.2 dev eth1");
    lab.sync();

    let to = |from: &Namespace, source: &str, target: &Namespace, address: &str| {
        source_seen(&from.udp(source), &target.udp(address)).map(|ip| ip.to_string())
    };
    let (pod, far, out) = ("10.1.9.2:7", "10.1.86.2:7", "172.20.0.2:7");
    let any = |address: &str| address.replace(":7", ":0");
    let expect = |ip: &str| Some(ip.to_owned());
    // 2, 3, 4: nothing is done to these.
    assert_eq!(to(&lab.pod, &any(pod), &lab.far, far), expect("10.1.9.2"), "2: pod to network");
    assert_eq!(to(&lab.pod, &any(pod), &outside, "10.1.50.2:7"), expect("10.1.9.2"), "2: elsewhere");
    assert_eq!(to(&lab.far, &any(far), &lab.pod, pod), expect("10.1.86.2"), "3: network to pod");
    assert_eq!(to(&outside, &any(out), &lab.pod, pod), expect("172.20.0.2"), "4: outside to our pod");
    // 5: pods to the outside, and sources of the network that are not our pods'.
    assert_eq!(to(&lab.pod, &any(pod), &outside, out), expect("172.20.0.1"), "5: pod to outside");
    assert_eq!(to(&lab.host, "10.1.200.1:0", &lab.far, far), expect("10.1.9.0"), "5: former subnet");
    // 6: the outside to another node's pods.
    assert_eq!(to(&outside, &any(out), &lab.far, far), expect("10.1.9.0"), "6: outside to network");

    lab.want(desired_with(firewall, NOTHING));
    lab.sync();
    assert_eq!(to(&lab.pod, &any(pod), &outside, out), expect("10.1.9.2"), "without --ip-masq");
    assert_eq!(to(&outside, &any(out), &lab.far, far), expect("172.20.0.2"), "without --ip-masq");
}

#[test]
fn every_rule_says_what_it_is_for() {
    let lab = Lab::new(IP_MASQ);
    lab.sync();
    let listing = lab.nft();
    let rules: Vec<&Value> =
        listing["nftables"].as_array().unwrap().iter().filter_map(|o| o.get("rule")).collect();
    assert_eq!(rules.len(), 10);
    for rule in rules {
        assert!(rule["comment"].as_str().is_some_and(|c| c.len() > 20), "{rule}");
    }
}

#[test]
fn replacing_the_rules_leaves_no_moment_without_them() {
    for firewall in FIREWALLS {
        replacing_leaves_no_moment(firewall, firewall);
    }
}

#[test]
fn nor_does_going_from_one_firewall_to_the_other() {
    replacing_leaves_no_moment(FirewallKind::Nftables, FirewallKind::Iptables);
}

/// Each round one of these firewalls is wanted in turn, with and without the return path's rule.
fn replacing_leaves_no_moment(even: FirewallKind, odd: FirewallKind) {
    let lab = Lab::with(desired_with(odd, NOTHING));
    lab.host.sh(DOCKER);
    lab.sync();
    let far = lab.far.udp("10.1.86.2:9999");

    // Each datagram from a new port is a new connection, which goes through the rules.
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, target) = (Arc::clone(&stop), far.local_addr().unwrap());
    let sending = lab.pod.run(move || {
        thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let socket = UdpSocket::bind((POD, 0)).unwrap();
                socket.send_to(b"new", target).unwrap();
                sent += 1;
            }
            sent
        })
    });
    let receiving = thread::spawn(move || {
        let mut sources = BTreeMap::new();
        while let Ok((_, from)) = far.recv_from(&mut [0; 64]) {
            *sources.entry(from.ip().to_string()).or_insert(0) += 1;
        }
        sources
    });
    for round in 0..40 {
        let (firewall, masquerade) = if round % 2 == 0 { (even, RETURN_PATH) } else { (odd, NOTHING) };
        lab.want(desired_with(firewall, masquerade));
        assert!(lab.sync());
    }
    stop.store(true, Ordering::Relaxed);
    let sent: u32 = sending.join().unwrap();
    let sources = receiving.join().unwrap();
    assert!(sent > 1000, "only {sent} connections while the rules were replaced");
    assert_eq!(sources.keys().collect::<Vec<_>>(), ["10.1.9.2"], "{sources:?}");
}

#[test]
fn sync_changes_nothing_until_somebody_else_does() {
    let nft = &[
        "nft delete table ip overlayd_flannel.1",
        "nft flush chain ip overlayd_flannel.1 postrouting",
        "nft insert rule ip overlayd_flannel.1 postrouting accept",
        "iptables -w 5 -F OVERLAYD-FWD-flannel.1",
        "iptables -w 5 -I OVERLAYD-FWD-flannel.1 -j DROP",
    ];
    let iptables = &[
        "iptables -w 5 -t nat -F",
        "iptables -w 5 -t nat -F; iptables -w 5 -t nat -X",
        "iptables -w 5 -t nat -F POSTROUTING",
        "iptables -w 5 -t nat -F FLANNEL-POSTRTG",
        "iptables -w 5 -t nat -D FLANNEL-POSTRTG 1",
        "iptables -w 5 -t nat -I FLANNEL-POSTRTG -j ACCEPT",
        "iptables -w 5 -t nat -I OVERLAYD-NAT-flannel.1 -j RETURN",
        "iptables -w 5 -t nat -I POSTROUTING -s 10.1.9.0/24 ! -o docker0 -j MASQUERADE",
        "iptables -w 5 -F FLANNEL-FWD",
        "iptables -w 5 -I FLANNEL-FWD -j DROP",
    ];
    for (firewall, own) in FIREWALLS.into_iter().zip([&nft[..], &iptables[..]]) {
        let lab = Lab::with(desired_with(firewall, IP_MASQ));
        assert!(!lab.in_place() && lab.sync());
        let rules = || lab.host.sh("nft list ruleset; iptables-save | grep -v '^#'");
        let before = rules();
        assert!(lab.in_place() && !lab.sync() && lab.in_place());
        assert_eq!(rules(), before);

        let anyhow = [
            "nft flush ruleset",
            "iptables -w 5 -F",
            "iptables -w 5 -F FORWARD",
            "iptables -w 5 -F; iptables -w 5 -X",
            "iptables -w 5 -I FORWARD -j DROP",
        ];
        for damage in anyhow.iter().chain(own) {
            lab.host.sh(damage);
            assert!(!lab.in_place(), "{firewall:?}: {damage}");
            assert!(lab.sync(), "{firewall:?}: {damage}");
            assert!(lab.in_place() && !lab.sync(), "{firewall:?}: {damage}: repaired once");
            assert_eq!(lab.source_at_far(&lab.pod, "10.1.9.2:0"), Some(POD), "{firewall:?}: {damage}");
        }
    }
}

#[test]
fn forwarding_passes_where_docker_drops_whoever_comes_first() {
    let cases = FIREWALLS
        .into_iter()
        .flat_map(|firewall| ["iptables", "iptables-legacy"].map(|variant| (firewall, variant)));
    for (firewall, variant) in cases {
        let docker = DOCKER.replace("iptables ", &format!("{variant} "));
        for docker_first in [true, false] {
            let lab = Lab::with(desired_with(firewall, RETURN_PATH));
            if docker_first {
                lab.host.sh(&docker);
                // Nobody has asked for it, so docker drops it.
                let refused = source_seen(&lab.far.udp("10.1.86.2:0"), &lab.pod.udp("10.1.9.2:9999"));
                assert_eq!(refused, None, "{variant}: docker's policy works here");
                assert!(lab.sync());
            } else {
                assert!(lab.sync() && !lab.sync() && lab.in_place());
                lab.host.sh(&docker);
                lab.sync();
            }
            assert!(!lab.sync());
            let seen = source_seen(&lab.far.udp("10.1.86.2:0"), &lab.pod.udp("10.1.9.2:9999"));
            assert_eq!(seen, Some([10, 1, 86, 2].into()), "{variant}, docker first: {docker_first}");
            let back = lab.source_at_far(&lab.pod, "10.1.9.2:0");
            assert_eq!(back, Some(POD), "{variant}, docker first: {docker_first}");
        }
    }
}

#[test]
fn forwarding_is_accepted_by_source_and_by_destination() {
    let lab = Lab::new(NOTHING);
    lab.host.sh("iptables -w 5 -P FORWARD DROP; ip route add 203.0.113.7 dev flannel.1");
    let outside = || lab.far.udp("203.0.113.7:9999");
    assert_eq!(source_seen(&lab.pod.udp("10.1.9.2:0"), &outside()), None, "the policy works here");
    lab.sync();
    assert_eq!(source_seen(&lab.pod.udp("10.1.9.2:0"), &outside()), Some(POD));
    let seen = source_seen(&outside(), &lab.pod.udp("10.1.9.2:9999"));
    assert_eq!(seen, Some([203, 0, 113, 7].into()));
}

#[test]
fn the_other_variant_is_left_alone_and_unloaded_while_it_drops_nothing() {
    let lab = Lab::new(RETURN_PATH);
    lab.sync();
    assert_eq!(
        lab.host.sh("cat /proc/thread-self/net/ip_tables_names"),
        "",
        "no legacy table by our looking"
    );
    lab.host.sh("iptables-legacy -w 5 -A FORWARD -s 10.99.0.0/16 -j ACCEPT");
    assert!(!lab.sync());
    assert!(!lab.host.sh("iptables-legacy-save").contains("OVERLAYD"));
}

#[test]
fn two_networks_and_a_flanneld_live_on_one_host() {
    let lab = Lab::new(RETURN_PATH);
    lab.host.sh("iptables -w 5 -N FLANNEL-FWD
         iptables -w 5 -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT
         iptables -w 5 -A FORWARD -j FLANNEL-FWD
         nft add table ip mine
         nft add chain ip mine c { type filter hook forward priority 0 \\; }");
    let foreign = lab.host.sh("nft list ruleset; iptables-legacy-save");
    lab.sync();
    let other = Desired {
        device: "flannel.10".to_owned(),
        network: "10.2.0.0/16".parse().unwrap(),
        pod_subnet: "10.2.3.0/24".parse().unwrap(),
        address: [10, 2, 3, 0].into(),
        ..desired(IP_MASQ)
    };
    let first = Firewall::new(desired(RETURN_PATH));
    let second = Firewall::new(other);
    lab.host.block_on(|| async move {
        let (mut first, mut second) = (first, second);
        first.sync().await.unwrap();
        assert!(second.sync().await.unwrap());
        for _ in 0..2 {
            assert!(!first.sync().await.unwrap());
            assert!(!second.sync().await.unwrap());
        }
        assert!(firewall::remove_all("flannel.1").await.unwrap());
        assert!(!second.sync().await.unwrap(), "removing one leaves the other");
        assert!(firewall::remove_all("flannel.10").await.unwrap());
        assert!(!firewall::remove_all("flannel.10").await.expect("nothing there is no failure"));
    });
    assert_eq!(lab.host.sh("nft list ruleset; iptables-legacy-save"), foreign, "nothing is left of ours");
}

#[test]
fn without_forward_rules_an_earlier_lifes_are_removed() {
    let lab = Lab::new(RETURN_PATH);
    lab.sync();
    assert!(lab.host.sh("iptables-save").contains("OVERLAYD-FWD-flannel.1"));
    lab.want(Desired { forward_rules: false, ..desired(RETURN_PATH) });
    lab.sync();
    assert!(!lab.host.sh("iptables-save").contains("OVERLAYD"));
    assert!(!lab.sync());
}

#[test]
fn a_missing_nft_is_named_with_its_package_and_keeps_nobody_from_forwarding() {
    let lab = Lab::with(desired_with(FirewallKind::Nftables, RETURN_PATH));
    lab.host.hide_programs("nft");
    let error = lab.try_sync().unwrap_err().to_string();
    assert_eq!(error, "nft is not installed: install the package nftables, or choose another --firewall");
    assert!(lab.host.sh("iptables-save").contains("OVERLAYD-FWD-flannel.1"));
    lab.host.block_on(|| firewall::remove_all("flannel.1")).expect("nothing there is no failure");
}

#[test]
fn a_kernel_that_cannot_tell_whose_a_source_is_has_all_other_rules() {
    for once in [false, true] {
        let lab = Lab::with(desired_with(FirewallKind::Nftables, RETURN_PATH));
        lab.host.lack_fib(once);
        assert!(lab.sync());
        let rules = lab.host.sh("nft list table ip overlayd_flannel.1");
        assert!(rules.contains("pod to pod") && rules.contains("replies come back"), "{rules}");
        assert_eq!(rules.contains("fib"), once, "what is refused but once is had: {rules}");
        assert!(!lab.sync(), "{rules}");
    }
}

#[test]
fn without_iptables_there_is_nothing_to_accept() {
    let lab = Lab::new(RETURN_PATH);
    lab.host.hide_programs("iptables* xtables*");
    assert!(lab.sync());
    assert!(!lab.sync());
    lab.host.block_on(|| firewall::remove_all("flannel.1")).unwrap();
}

#[test]
fn what_nft_says_is_in_the_error() {
    let lab = Lab::new(RETURN_PATH);
    lab.want(Desired {
        device: "a device's name is never as long as this".to_owned(),
        ..desired(RETURN_PATH)
    });
    let error = lab.try_sync().unwrap_err().to_string();
    assert!(error.contains("nft -j -f -: exit status: 1: ") && error.contains("String exceeds"), "{error}");
}
