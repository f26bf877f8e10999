//! What is said of rules that are really there, as `nft` and iptables of both variants show them: of packets between
//! pods, and of the tunnel's.

mod namespace;

use namespace::Namespace;
use overlay_host::firewall::ruleset::{Act, Device, Holds, Packet, Ruleset, What, acts};
use overlay_host::firewall::verdict::{self, Overlay, Traffic};

/// From a pod here to pods elsewhere, and back.
fn between_pods() -> Vec<Packet> {
    let bridge = Device { name: "docker0".to_owned(), bridge: true, below: vec!["pod0".to_owned()] };
    let overlay = Device { name: "flannel.1".to_owned(), bridge: false, below: Vec::new() };
    verdict::between_pods(net("10.1.9.0/24"), &[net("10.1.0.0/16")], &bridge, &overlay)
}

fn net(text: &str) -> ipnet::Ipv4Net {
    text.parse().unwrap()
}

fn overlay() -> Overlay {
    Overlay { network: net("10.1.0.0/16"), device: "flannel.1".to_owned(), forward_rules: true }
}

/// Puts `script` into an empty ruleset, and reads it.
fn with<T: Send + 'static>(
    host: &Namespace,
    script: &str,
    judge: impl FnOnce(Ruleset) -> T + Send + 'static,
) -> T {
    host.sh("nft flush ruleset");
    host.sh(script);
    host.block_on(move || async move { judge(Ruleset::read().await.expect("the rules can be read")) })
}

/// Docker 29's table, reduced to what decides.
const DOCKER_29: &str = "
nft -f - <<'.'
table ip docker-bridges {
    map filter-forward-in-jumps {
        type ifname : verdict
        elements = { \"docker0\" : jump filter-forward-in__docker0 }
    }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap @filter-forward-in-jumps
    }
    chain filter-forward-in__docker0 {
        ct state established,related counter accept
        iifname \"docker0\" counter accept comment \"ICC\"
        counter drop comment \"UNPUBLISHED PORT DROP\"
    }
}
.";

/// firewalld's, with nothing in the trusted zone, or what `--add-interface` and `--add-source` put there.
fn firewalld(trusted: &str) -> String {
    format!(
        "nft -f - <<'.'
table inet firewalld {{
    chain filter_FORWARD {{
        type filter hook forward priority filter + 10; policy accept;
        ct state {{ established, related }} accept
        ct status dnat accept
        iifname \"lo\" accept
        ct state invalid drop
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }}
    chain filter_FORWARD_ZONES {{
        {trusted}
        goto filter_FWD_public
    }}
    chain filter_FWD_trusted {{
        accept
    }}
    chain filter_FWD_public {{
        jump filter_FWD_public_pre
    }}
    chain filter_FWD_public_pre {{
    }}
}}
."
    )
}

const ADD: &str = "nft add table ip t";

#[test]
fn a_drop_of_pods_packets_is_named_wherever_it_stands() {
    let host = Namespace::new();
    host.sh("ip link add docker0 type bridge
             ip link add flannel.1 type veth peer name far");
    let base = |family: &str, hook: &str, rules: &str| {
        format!(
            "nft -f - <<'.'\ntable {family} t {{\n chain c {{ type filter hook {hook} priority 0; policy accept; {rules} }}\n chain sub {{ counter drop; }}\n}}\n."
        )
    };
    for (script, by) in [
        (DOCKER_29.to_owned(), "ip docker-bridges filter-forward-in__docker0 (hook forward, to which filter-FORWARD leads): the rule 'counter packets 0 bytes 0 drop comment \"UNPUBLISHED PORT DROP\"'"),
        (firewalld(""), "inet firewalld filter_FORWARD (hook forward): the rule 'reject with icmpx admin-prohibited'"),
        (base("ip", "forward", "jump sub;"), "ip t sub (hook forward, to which c leads)"),
        (base("inet", "prerouting", "ip saddr 10.1.0.0/16 drop;"), "inet t c (hook prerouting)"),
        (base("ip", "postrouting", "oifname \"flannel.1\" goto sub;"), "ip t sub (hook postrouting"),
        (base("netdev", "ingress device \"flannel.1\"", "ip protocol tcp drop;"), "netdev t c (hook ingress): the rule 'ip protocol tcp drop' (of tcp)"),
        (base("netdev", "egress device \"flannel.1\"", "meta l4proto { tcp, icmp } drop;"), "netdev t c (hook egress): the rule 'meta l4proto { icmp, tcp } drop' (of tcp and icmp)"),
        (base("bridge", "input", "ip saddr 10.1.9.0/24 drop;"), "bridge t c (hook input)"),
        (format!("{ADD}\nnft 'add chain ip t FORWARD {{ type filter hook forward priority 0; policy drop; }}'"), "ip t FORWARD (hook forward): its policy is drop"),
        (base("ip", "forward", "ip saddr 10.1.9.7 drop; tcp dport 25 drop; counter drop;"), "the rule 'counter packets 0 bytes 0 drop'"),
        (base("ip", "prerouting", "notrack;").replace("priority 0", "priority raw") + "\nnft 'add chain ip t f { type filter hook forward priority 0; policy drop; }; add rule ip t f ct state new,established accept'", "ip t f (hook forward): its policy is drop"),
        (base("ip", "forward", "iifname \"flannel.1\" drop;"), "the rule 'iifname \"flannel.1\" drop'"),
        ("iptables -N ufw-reject-forward; iptables -A ufw-reject-forward -j REJECT; iptables -A FORWARD -j ufw-reject-forward".to_owned(), "iptables, chain ufw-reject-forward, to which FORWARD leads: the rule '-A ufw-reject-forward -j REJECT"),
        ("iptables -A FORWARD -m conntrack --ctstate NEW -j DROP".to_owned(), "iptables, chain FORWARD: the rule '-A FORWARD -m conntrack --ctstate NEW -j DROP'"),
        ("iptables -A FORWARD -i docker0 -j DROP".to_owned(), "the rule '-A FORWARD -i docker0 -j DROP'"),
        ("iptables -A FORWARD ! -i lo -j DROP".to_owned(), "the rule '-A FORWARD ! -i lo -j DROP'"),
        ("iptables -A FORWARD -p icmp -j DROP".to_owned(), "the rule '-A FORWARD -p icmp -j DROP' (of icmp)"),
        ("iptables -A FORWARD -d 10.0.0.0/8 -j REJECT".to_owned(), "the rule '-A FORWARD -d 10.0.0.0/8 -j REJECT"),
        ("iptables -t raw -A PREROUTING -d 10.1.9.0/24 ! -i docker0 -j DROP".to_owned(), "iptables, table raw, chain PREROUTING: the rule"),
        ("iptables -P FORWARD DROP".to_owned(), "iptables, chain FORWARD: its policy is DROP"),
        ("iptables-legacy -A FORWARD -i flannel.1 -j DROP".to_owned(), "iptables-legacy, chain FORWARD: the rule '-A FORWARD -i flannel.1 -j DROP'"),
    ] {
        let packets = between_pods();
        host.sh("nft flush ruleset");
        host.sh(&script);
        let found = host.block_on(move || async move {
            let ruleset = Ruleset::read().await.expect("the rules can be read");
            verdict::findings(&ruleset, &packets, Traffic::Pods, &overlay()).await
        });
        host.sh("! iptables-legacy-save 2>/dev/null | grep -q flannel || iptables-legacy -F");
        assert!(found.refusals.iter().any(|refusal| refusal.by.contains(by)), "{script}\n{by}\n{found:#?}");
        for refusal in &found.refusals {
            assert!(!refusal.remedy.contains("--iptables-forward-rules"), "a flag that is on: {refusal:?}");
        }
    }
}

#[test]
fn what_lets_pods_packets_pass_is_not_said_to_drop_them() {
    let host = Namespace::new();
    for script in [
        firewalld("ip saddr 10.1.0.0/16 goto filter_FWD_trusted"),
        firewalld("iifname { \"flannel.1\", \"docker0\" } goto filter_FWD_trusted"),
        "iptables -P FORWARD DROP; iptables -A FORWARD -s 10.1.0.0/16 -d 10.1.0.0/16 -m comment --comment \"a b\" -j ACCEPT; iptables -A FORWARD -m recent --set".to_owned(),
        "nft 'add table inet t; add chain inet t c { type filter hook forward priority 0; policy drop; }; add set inet t pods { type ipv4_addr; flags interval; elements = { 10.1.0.0-10.1.255.255 }; }; add rule inet t c ip saddr @pods accept'".to_owned(),
        "nft 'add table ip6 t; add chain ip6 t c { type filter hook forward priority 0; policy drop; }'".to_owned(),
        "nft 'add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }'".to_owned(),
        // kube-proxy's, of which none matches.
        "iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP; iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j DROP".to_owned(),
    ] {
        let acts = with(&host, &script, |ruleset| {
            between_pods().iter().flat_map(|packet| acts(&ruleset, packet)).collect::<Vec<Act>>()
        });
        assert!(acts.is_empty(), "{script}\n{acts:#?}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_said_to_be_out_of_sight() {
    let host = Namespace::new();
    host.sh("ip link add pod0 type veth peer name far");
    for script in [
        "iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark; iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j DROP",
        "nft 'add table netdev t; add chain netdev t c { type filter hook ingress device pod0 priority 0; policy drop; }'",
        "nft 'add table ip t; add set ip t s { type ipv4_addr; flags interval,timeout; elements = { 10.1.0.0/16 timeout 1h }; }; add chain ip t c { type filter hook forward priority 0; }; add rule ip t c ip saddr @s drop'",
        "iptables -A FORWARD -m statistic --mode random --probability 0.5 -j DROP",
        "iptables -A FORWARD -m limit --limit 5/min -j ACCEPT; iptables -P FORWARD DROP",
        "nft 'add table ip t; add chain ip t c { type filter hook forward priority 0; }; add rule ip t c ct mark 5 drop'",
        "nft 'add table ip t; add set ip t s { type ipv4_addr; flags dynamic,timeout; timeout 1h; }; add chain ip t c { type filter hook forward priority 0; }; add rule ip t c add @s { ip saddr }; add rule ip t c ip saddr @s drop'",
    ] {
        let mut acts = with(&host, script, |ruleset| {
            between_pods().iter().flat_map(|packet| acts(&ruleset, packet)).collect::<Vec<Act>>()
        });
        acts.retain(|act| act.what != What::Changes);
        assert!(!acts.is_empty(), "{script}");
        assert!(
            acts.iter().all(|act| act.sure == Holds::Unknown && act.what == What::Drops),
            "{script}\n{acts:#?}"
        );
    }
}
