//! Rules beside those of others, who write at the same time, or by other means.

mod namespace;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use control::host::firewall::{self, Firewall};
use control::host::{Desired, FirewallKind, HostError, Masquerade};
use namespace::{Namespace, source_seen};

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

#[test]
fn what_pods_send_to_the_tunnels_port_of_a_host_is_dropped_whoever_masquerades() {
    for firewall in FIREWALLS {
        let (host, pod, peer) = (Namespace::new(), Namespace::new(), Namespace::new());
        host.join("docker0", &pod, "eth0");
        host.join("eth0", &peer, "eth0");
        host.sh("sysctl -qw net.ipv4.ip_forward=1
            ip addr add 10.1.9.1/24 dev docker0; ip link set docker0 up
            ip addr add 192.168.1.12/24 dev eth0; ip link set eth0 up
            iptables -w 5 -t nat -A POSTROUTING -s 10.1.9.0/24 ! -o docker0 -j MASQUERADE
            iptables -w 5 -A FORWARD -i docker0 ! -o docker0 -j ACCEPT");
        pod.sh("ip addr add 10.1.9.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.1.9.1");
        peer.sh("ip addr add 192.168.1.13/24 dev eth0; ip link set eth0 up
            ip addr add 10.1.63.2/32 dev lo");
        host.sh("ip route add 10.1.63.0/24 via 192.168.1.13");
        let seen = |from: &Namespace, source: &str, port: u16, at: &str| {
            source_seen(&from.udp(source), &peer.udp(&format!("{at}:{port}"))).map(|ip| ip.to_string())
        };
        let host_address = Some("192.168.1.12".to_owned());
        assert_eq!(
            seen(&pod, "10.1.9.2:0", 8472, "192.168.1.13"),
            host_address,
            "it would pass as the host's"
        );

        for (forward_rules, expected) in [(true, None), (false, host_address.clone())] {
            let (_, outcome) = sync(&host, Firewall::new(Desired { forward_rules, ..desired(firewall) }));
            outcome.unwrap();
            let found = seen(&pod, "10.1.9.2:0", 8472, "192.168.1.13");
            assert_eq!(found, expected, "{firewall:?}, forward rules: {forward_rules}");
            assert_eq!(
                seen(&pod, "10.1.9.2:0", 8473, "192.168.1.13"),
                host_address,
                "{firewall:?}: other ports"
            );
            assert_eq!(
                seen(&host, "192.168.1.12:0", 8472, "192.168.1.13"),
                host_address,
                "{firewall:?}: the host's own"
            );
            let to_pod = seen(&pod, "10.1.9.2:0", 8472, "10.1.63.2");
            assert!(to_pod.is_some(), "{firewall:?}: a pod may have that port");
        }
        host.block_on(|| firewall::remove_all("flannel.1")).unwrap();
        assert!(!host.sh("nft list ruleset").contains("tunnel"), "{firewall:?}");
    }
}
