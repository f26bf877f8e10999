//! What `--firewall` puts where, by the text of the rules, and what it removes.

mod namespace;

use namespace::Namespace;
use overlay_host::firewall::{self, Firewall};
use overlay_host::{Desired, FirewallKind, HostError, Masquerade};

/// As flannel 0.28 runs it (`pkg/trafficmngr/iptables`, `masqRules` and `forwardRules`), for the network
/// 10.1.0.0/16 and the subnet 10.1.9.0/24, with `--random-fully` where it says RANDOM.
const FLANNEL: &str = r#"
    iptables -w 5 -t nat -N FLANNEL-POSTRTG
    iptables -w 5 -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
    iptables -w 5 -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
    iptables -w 5 -t nat -A FLANNEL-POSTRTG -s 10.1.9.0/24 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j RETURN
    iptables -w 5 -t nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.9.0/24 -m comment --comment "flanneld masq" -j RETURN
    iptables -w 5 -t nat -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.9.0/24 -m comment --comment "flanneld masq" -j RETURN
    iptables -w 5 -t nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE RANDOM
    iptables -w 5 -t nat -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE RANDOM
    iptables -w 5 -N FLANNEL-FWD
    iptables -w 5 -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
    iptables -w 5 -A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
    iptables -w 5 -A FLANNEL-FWD -d 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
"#;

/// What `iptables-save` writes of it.
const SAVED: &str = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.9.0/24 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.9.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.9.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
"#;

fn desired(firewall: FirewallKind) -> Desired {
    Desired {
        masquerade: Masquerade { return_path: true, ip_masq: true, fully_random: true },
        firewall,
        ..namespace::desired()
    }
}

fn try_sync(host: &Namespace, desired: Desired) -> Result<bool, HostError> {
    host.block_on(|| async move { Firewall::new(desired).sync().await })
}

fn sync(host: &Namespace, desired: Desired) -> bool {
    try_sync(host, desired).unwrap()
}

fn without_random(script: &str) -> String {
    script.replace(" RANDOM", "").replace(" --random-fully", "")
}

/// All of iptables and nftables, in an order of its own: that in which chains were made does not matter.
fn all_rules(host: &Namespace) -> String {
    let rules = host.sh("iptables-save; iptables-legacy-save; nft list ruleset");
    let mut lines: Vec<&str> = rules.lines().filter(|line| !line.starts_with('#')).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// `iptables-save` of nat and filter, cut down to what flannel puts there: byte for byte what it says of it.
fn flannels_part(host: &Namespace, program: &str) -> String {
    let save = |table: &str| host.sh(&format!("{program}-save -t {table}"));
    let keep = |line: &&str| line.starts_with('*') || line.contains("FLANNEL-");
    let saved = save("nat") + &save("filter");
    saved.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}

#[test]
fn rules_in_iptables_are_flannels_to_the_byte() {
    let flannel = Namespace::new();
    flannel.sh(&FLANNEL.replace("RANDOM", "--random-fully"));
    assert_eq!(flannels_part(&flannel, "iptables"), SAVED, "what flannel's own commands make");

    let host = Namespace::new();
    assert!(sync(&host, desired(FirewallKind::Iptables)));
    assert_eq!(flannels_part(&host, "iptables"), SAVED);
    assert!(!sync(&host, desired(FirewallKind::Iptables)), "a restart changes nothing");

    let mut plain = desired(FirewallKind::Iptables);
    plain.masquerade.fully_random = false;
    sync(&host, plain.clone());
    assert_eq!(flannels_part(&host, "iptables"), without_random(SAVED));

    // Nothing but flannel's chains, one of ours, and a rule.
    let nat = host.sh("iptables-save -t nat");
    let rest: Vec<&str> =
        nat.lines().filter(|line| line.starts_with("-A ") && !line.contains("FLANNEL-")).collect();
    assert_eq!(
        rest,
        [
            "-A POSTROUTING -o flannel.1 -m comment --comment overlayd-nat -j OVERLAYD-NAT-flannel.1",
            "-A POSTROUTING ! -o flannel.1 -p udp -m udp --dport 8472 -m mark ! --mark 0x4000/0x4000 -m addrtype ! --src-type LOCAL -m comment --comment \"overlayd-tunnel-in-tunnel-flannel.1\" -j ACCEPT",
            "-A OVERLAYD-NAT-flannel.1 -m mark --mark 0x4000/0x4000 -m comment --comment marked-by-kube-proxy -j RETURN",
            "-A OVERLAYD-NAT-flannel.1 -s 10.1.9.0/24 -d 10.1.0.0/16 -m comment --comment pod-to-pod -j ACCEPT",
            "-A OVERLAYD-NAT-flannel.1 ! -s 10.1.0.0/16 -m comment --comment from-outside-into-the-overlay -j MASQUERADE",
        ]
    );
    assert!(!host.sh("nft list tables").contains("overlayd"));
}

#[test]
fn they_are_in_the_variant_that_is_called_iptables_whichever_that_is() {
    let host = Namespace::new();
    host.make_legacy_the_default();
    assert!(sync(&host, desired(FirewallKind::Iptables)));
    assert_eq!(flannels_part(&host, "iptables-legacy"), SAVED);
    assert!(!host.sh("nft list ruleset").contains("FLANNEL"));
    assert!(!sync(&host, desired(FirewallKind::Iptables)));
    host.sh("iptables -w 5 -t nat -F FLANNEL-POSTRTG");
    assert!(sync(&host, desired(FirewallKind::Iptables)), "the legacy variant has no generation to go by");
    assert_eq!(flannels_part(&host, "iptables-legacy"), SAVED);
    host.block_on(|| firewall::remove_all("flannel.1")).unwrap();
    assert!(!host.sh("iptables-legacy-save").contains("flannel"));
}

#[test]
fn a_flanneld_before_and_after_finds_its_rules() {
    let host = Namespace::new();
    host.sh(&FLANNEL.replace("RANDOM", "--random-fully"));
    sync(&host, desired(FirewallKind::Iptables));
    assert_eq!(flannels_part(&host, "iptables"), SAVED, "taken over as they are");
    for rule in FLANNEL.replace("RANDOM", "--random-fully").lines().filter(|line| line.contains(" -A ")) {
        host.sh(&rule.replace(" -A ", " -C "));
    }
    assert!(!host.block_on(firewall::remove_flannels).unwrap(), "they are ours now");
    assert!(host.block_on(|| firewall::remove_all("flannel.1")).unwrap());
    assert!(!all_rules(&host).contains("flannel"), "{}", all_rules(&host));
}

#[test]
fn what_a_stopped_flanneld_left_is_removed_and_nothing_else() {
    let host = Namespace::new();
    let foreign = r#"
        iptables -w 5 -t nat -A POSTROUTING -s 10.9.0.0/16 -m comment --comment "not a flanneld masq" -j MASQUERADE
        iptables -w 5 -A FORWARD -s 10.9.0.0/16 -j ACCEPT
        ip6tables -w 5 -A FORWARD -s fd00::/8 -j ACCEPT
        nft add table ip flannel-ipv4-look-alike"#;
    host.sh(foreign);
    let before = all_rules(&host);
    host.sh(&FLANNEL.replace("RANDOM", ""));
    host.sh(r#"ip6tables -w 5 -N FLANNEL-FWD
        ip6tables -w 5 -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
        ip6tables -w 5 -A FLANNEL-FWD -s fd00:12::/48 -m comment --comment "flanneld forward" -j ACCEPT
        nft add table ip flannel-ipv4
        nft add chain ip flannel-ipv4 postrtg '{ type nat hook postrouting priority srcnat; }'
        nft add table ip6 flannel-ipv6"#);
    assert!(host.block_on(firewall::remove_flannels).unwrap());
    assert_eq!(all_rules(&host), before);
    assert!(!host.sh("ip6tables-save").contains("FLANNEL"));
    assert!(!host.block_on(firewall::remove_flannels).unwrap(), "once");
}

#[test]
fn a_flannelds_rules_beside_a_running_overlayd_are_removed_and_its_own_stay() {
    let host = Namespace::new();
    sync(&host, desired(FirewallKind::Iptables));
    let before = all_rules(&host);
    host.sh(&FLANNEL
        .replace("RANDOM", "")
        .replace("10.1.", "10.5.")
        .replace("-N FLANNEL-POSTRTG", "-F OUTPUT")
        .replace("-N FLANNEL-FWD", "-F OUTPUT"));
    assert_ne!(all_rules(&host), before);
    assert!(
        !sync(&host, desired(FirewallKind::Iptables)) || flannels_part(&host, "iptables").contains("10.5.")
    );
    assert!(host.block_on(firewall::remove_flannels).unwrap());
    sync(&host, desired(FirewallKind::Iptables));
    assert_eq!(flannels_part(&host, "iptables"), SAVED);
}

#[test]
fn going_from_one_to_the_other_leaves_nothing_of_the_first() {
    let host = Namespace::new();
    sync(&host, desired(FirewallKind::Iptables));
    let iptables = all_rules(&host);
    sync(&host, desired(FirewallKind::Nftables));
    let nftables = all_rules(&host);
    assert!(nftables.contains("overlayd_flannel.1") && nftables.contains("OVERLAYD-FWD-flannel.1"));
    assert!(!nftables.contains("FLANNEL-") && !nftables.contains("OVERLAYD-NAT"), "{nftables}");
    sync(&host, desired(FirewallKind::Iptables));
    assert_eq!(all_rules(&host), iptables);

    sync(&host, desired(FirewallKind::None));
    let nothing = all_rules(&host);
    assert!(!nothing.contains("flannel.1") && !nothing.contains("FLANNEL"), "{nothing}");
    assert!(!sync(&host, desired(FirewallKind::None)));
}

#[test]
fn another_network_or_subnet_leaves_nothing_of_the_earlier_one() {
    for firewall in [FirewallKind::Iptables, FirewallKind::Nftables] {
        let host = Namespace::new();
        sync(&host, desired(firewall));
        let moved = Desired {
            network: "10.2.0.0/16".parse().unwrap(),
            pod_subnet: "10.2.9.0/24".parse().unwrap(),
            ..desired(firewall)
        };
        sync(&host, moved.clone());
        assert!(!all_rules(&host).contains("10.1."), "{}", all_rules(&host));
        let mut less = moved;
        less.masquerade.ip_masq = false;
        less.forward_rules = false;
        sync(&host, less);
        let rules = all_rules(&host);
        assert!(!rules.contains("FLANNEL") && !rules.contains("OVERLAYD-FWD"), "{rules}");
    }
}

#[test]
fn two_daemons_share_flannels_chains_and_part_without_a_trace() {
    let host = Namespace::new();
    sync(&host, desired(FirewallKind::Iptables));
    let other = Desired {
        device: "flannel.10".to_owned(),
        network: "10.2.0.0/16".parse().unwrap(),
        pod_subnet: "10.2.3.0/24".parse().unwrap(),
        ..desired(FirewallKind::Iptables)
    };
    assert!(sync(&host, other.clone()));
    for _ in 0..2 {
        assert!(!sync(&host, desired(FirewallKind::Iptables)), "neither undoes the other's rules");
        assert!(!sync(&host, other.clone()));
    }
    let chain = host.sh("iptables -w 5 -t nat -S FLANNEL-POSTRTG");
    assert_eq!(chain.matches("0x4000/0x4000").count(), 1, "{chain}");
    assert_eq!(host.sh("iptables -w 5 -t nat -S POSTROUTING").matches("FLANNEL-POSTRTG").count(), 1);

    host.block_on(|| firewall::remove_all("flannel.10")).unwrap();
    assert_eq!(flannels_part(&host, "iptables"), SAVED);
    assert!(!sync(&host, desired(FirewallKind::Iptables)));
    host.block_on(|| firewall::remove_all("flannel.1")).unwrap();
    assert!(!all_rules(&host).contains("FLANNEL"));
}

#[test]
fn what_would_be_removed_is_listed() {
    let host = Namespace::new();
    assert!(host.block_on(|| firewall::list_all("flannel.1")).unwrap().is_empty());
    sync(&host, desired(FirewallKind::Iptables));
    let iptables = host.block_on(|| firewall::list_all("flannel.1")).unwrap();
    for part in ["OVERLAYD-NAT-flannel.1", "FLANNEL-POSTRTG", "FLANNEL-FWD"] {
        assert!(
            iptables.iter().any(|line| line.starts_with("iptables -t ") && line.contains(part)),
            "{iptables:#?}"
        );
    }
    sync(&host, desired(FirewallKind::Nftables));
    let nftables = host.block_on(|| firewall::list_all("flannel.1")).unwrap();
    assert!(nftables.contains(&"nft delete table ip overlayd_flannel.1".to_owned()), "{nftables:#?}");
}

#[test]
fn auto_takes_what_works_and_says_what_to_install_otherwise() {
    let has = |host: &Namespace| {
        let rules = host.sh("iptables-save 2>&1 || true; nft list ruleset 2>&1 || true");
        (rules.contains("overlayd_flannel.1"), rules.contains("FLANNEL-POSTRTG"))
    };
    let both = Namespace::new();
    sync(&both, desired(FirewallKind::Auto));
    assert_eq!(has(&both), (true, false), "nftables where there is a choice");

    let no_nft = Namespace::new();
    no_nft.hide_programs("nft");
    sync(&no_nft, desired(FirewallKind::Auto));
    assert_eq!(has(&no_nft), (false, true));

    let neither = Namespace::new();
    neither.hide_programs("nft iptables* xtables*");
    let error = try_sync(&neither, desired(FirewallKind::Auto)).unwrap_err().to_string();
    for part in ["package nftables or iptables", "--firewall=none"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!sync(&neither, desired(FirewallKind::None)));
    let error = try_sync(&neither, desired(FirewallKind::Iptables)).unwrap_err().to_string();
    assert_eq!(
        error,
        "iptables is not installed: install the package iptables, or choose another --firewall"
    );
}
