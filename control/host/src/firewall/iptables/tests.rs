use super::repair::{drops_forwarded, removal, removal_of_flannels, repair, translates_sources};
use super::*;
use crate::{FirewallKind, Masquerade};

fn desired() -> Desired {
    Desired {
        masquerade: Masquerade { return_path: true, ip_masq: true, fully_random: true },
        firewall: FirewallKind::Iptables,
        ..Desired::example()
    }
}

fn other() -> Desired {
    Desired {
        device: "flannel.10".to_owned(),
        network: "10.2.0.0/16".parse().unwrap(),
        pod_subnet: "10.2.3.0/24".parse().unwrap(),
        ..desired()
    }
}

/// A table with a built-in chain that holds `rules`.
fn table(name: &str, chain: &str, policy: &str, rules: &[&str]) -> Table {
    let rules: Vec<String> = rules.iter().map(|rule| format!("-A {chain} {rule}")).collect();
    restored(name, &format!(":{chain} {policy} [0:0]"), &rules)
}

/// A table as restoring these lines leaves it.
fn restored(name: &str, built_in: &str, lines: &[String]) -> Table {
    let mut chains = vec![built_in.to_owned()];
    let mut rules: Vec<(String, String)> = Vec::new();
    for line in lines {
        if let Some(created) = line.strip_prefix(':') {
            let chain = created.split(' ').next().unwrap();
            rules.retain(|(of, _)| of != chain);
            chains.retain(|other| other != line);
            chains.push(line.clone());
            continue;
        }
        let (command, rest) = line.split_once(' ').unwrap();
        if command == "-N" {
            chains.push(format!(":{rest} - [0:0]"));
            continue;
        }
        let (chain, rule) = rest.split_once(' ').unwrap();
        match command {
            "-A" => rules.push((chain.to_owned(), rule.to_owned())),
            "-D" => {
                let at = rules.iter().position(|(of, other)| of == chain && save::same(other, rule));
                rules.remove(at.expect(line));
            }
            "-I" => {
                let (number, rule) = rule.split_once(' ').unwrap();
                let before: usize = number.parse().unwrap();
                let mut of_chain = rules.iter().enumerate().filter(|(_, (of, _))| of == chain);
                let at = of_chain.nth(before - 1).map_or(rules.len(), |(at, _)| at);
                rules.insert(at, (chain.to_owned(), rule.to_owned()));
            }
            _ => panic!("{line}"),
        }
    }
    let rules: String = rules.iter().map(|(chain, rule)| format!("-A {chain} {rule}\n")).collect();
    Table::parse(name, &format!("*{name}\n{}\n{rules}COMMIT\n", chains.join("\n")))
}

fn fix(table: &Table, wanted: &Wanted) -> Vec<String> {
    repair(table, wanted, &BTreeSet::new())
}

/// The lines about a built-in chain, once the jump and its chain are as they should be but for its place,
/// which is where `rules` says JUMP.
fn moves(wanted: &Wanted, chain: &str, rules: &[&str]) -> Vec<String> {
    let jump = &wanted.hooks[0].rule;
    let mut lines = Vec::new();
    for own in &wanted.chains {
        lines.push(format!(":{} - [0:0]", own.name));
        let first = own.shared.as_ref().and_then(|shared| shared.first.as_ref());
        lines.extend(first.into_iter().chain(&own.rules).map(|rule| format!("-A {} {rule}", own.name)));
    }
    for rule in rules {
        lines.push(match rule.strip_prefix("-N ") {
            Some(name) => format!(":{name} - [0:0]"),
            None if rule.starts_with("-A ") => (*rule).to_owned(),
            None => format!("-A {chain} {}", rule.replace("JUMP", jump)),
        });
    }
    let table = restored(wanted.table, &format!(":{chain} DROP [0:0]"), &lines);
    fix(&table, wanted).into_iter().map(|line| line.replace(jump, "JUMP")).collect()
}

#[test]
fn the_jump_to_the_accepts_stands_before_what_may_drop_and_otherwise_anywhere() {
    for wanted in [rules::forward_as_flannel(&desired()), rules::forward_beside_nftables(&desired())] {
        for (rules, expected) in [
            (&["JUMP"][..], &[][..]),
            (&["-j DOCKER-USER", "JUMP", "-i docker0 -j ACCEPT"], &[]),
            (&["JUMP", "-j REJECT --reject-with icmp-host-prohibited"], &[]),
            (&["-j DOCKER-USER"], &["-A FORWARD JUMP"]),
            (&["-j DOCKER-USER", "-j DROP"], &["-I FORWARD 2 JUMP"]),
            (&["-m comment --comment \"the end\" -j REJECT"], &["-I FORWARD 1 JUMP"]),
            (&["-j A", "-j DROP", "JUMP"], &["-D FORWARD JUMP", "-I FORWARD 2 JUMP"]),
            (&["JUMP", "-j A", "JUMP"], &["-D FORWARD JUMP", "-D FORWARD JUMP", "-A FORWARD JUMP"]),
        ] {
            assert_eq!(moves(&wanted, "FORWARD", rules), expected, "{rules:?}");
        }
        // What may drop something from pod to pod comes after us, by whatever way.
        for drops in [
            &["-N ufw-reject", "-A ufw-reject -j REJECT", "-j ufw-reject"][..],
            &["-N A", "-N B", "-A A -g B", "-A B -i docker0 -j DROP", "-j A"],
            &["-m conntrack --ctstate NEW -j DROP"],
            &["-i docker0 -j DROP"],
            &["! -i lo -j DROP"],
            &["-p icmp -j DROP"],
            &["-d 10.0.0.0/8 -j REJECT"],
            &["-s 10.1.9.2 -j DROP"],
            &["! -s 192.168.0.0/16 -j DROP"],
        ] {
            let after = [drops, &["JUMP"]].concat();
            assert_eq!(
                moves(&wanted, "FORWARD", &after),
                ["-D FORWARD JUMP", "-I FORWARD 1 JUMP"],
                "{drops:?}"
            );
            assert_eq!(moves(&wanted, "FORWARD", drops), ["-I FORWARD 1 JUMP"], "{drops:?}");
        }
        // Others' say on other traffic, and those who have the last word on pods, come where they please.
        for respected in [
            &["-s 10.9.0.0/16 -j DROP"][..],
            &["! -d 10.0.0.0/8 -j DROP"],
            &["-i eth0 -j DROP"],
            &["-o lo -j REJECT"],
            &["-N DOCKER-USER", "-A DOCKER-USER -j DROP", "-j DOCKER-USER"],
            &["-N KUBE-ROUTER-FORWARD", "-A KUBE-ROUTER-FORWARD -j REJECT", "-j KUBE-ROUTER-FORWARD"],
            &["-N cali-FORWARD", "-A cali-FORWARD -j DROP", "-j cali-FORWARD"],
            &["-N A", "-N B", "-A A -s 10.9.0.0/16 -j B", "-A B -j DROP", "-j A"],
            &["-N A", "-A A -j A", "-j A"],
        ] {
            let after = [respected, &["JUMP"]].concat();
            assert!(moves(&wanted, "FORWARD", &after).is_empty(), "{respected:?}");
        }
    }
    let direct = rules::forward_beside_nftables(&Desired { direct: Some("eth0".to_owned()), ..desired() });
    assert!(!moves(&direct, "FORWARD", &["-i eth0 -j DROP", "JUMP"]).is_empty(), "pods' packets come by it");
}

#[test]
fn a_chain_that_cannot_be_read_has_our_rule_first_once() {
    let wanted = rules::forward_beside_nftables(&desired());
    let jump = &wanted.hooks[0].rule;
    let mut table = Table::default();
    table.take_chain("-N OVERLAYD-FWD-flannel.1");
    wanted.chains[0].rules.iter().for_each(|rule| table.found("OVERLAYD-FWD-flannel.1", rule));
    table.leave_unread("FORWARD");
    assert_eq!(fix(&table, &wanted)[0], format!("-I FORWARD 1 {jump}"));
    wanted.hooks.iter().for_each(|hook| table.found("FORWARD", &hook.rule));
    assert!(fix(&table, &wanted).is_empty());

    let read = |forward: &str| {
        let mut table = Table::default();
        for listing in [forward, "-N OVERLAYD-FWD-flannel.1"] {
            table.take_chain(listing);
        }
        wanted.chains[0].rules.iter().for_each(|rule| table.found("OVERLAYD-FWD-flannel.1", rule));
        table.leave_unread("theirs");
        fix(&table, &wanted)
    };
    assert!(
        read(&format!("-P FORWARD DROP\n-A FORWARD {jump}\n-A FORWARD -j theirs"))
            .iter()
            .all(|line| line.contains("overlayd-direct"))
    );
    let first = read("-P FORWARD DROP\n-A FORWARD -j theirs");
    assert_eq!(first[0], format!("-I FORWARD 1 {jump}"), "it may hold anything");
}

#[test]
fn a_table_that_iptables_cannot_list_is_not_an_empty_one() {
    for (saved, withheld) in [
        ("# Table `filter' is incompatible, use 'nft' tool.\n", true),
        ("# Table 'filter' is incompatible, use 'nft' tool.\n", true),
        ("# Table `nat' is incompatible, use 'nft' tool.\n", false),
        (
            "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n*filter\nCOMMIT\n",
            false,
        ),
        ("", false),
    ] {
        assert_eq!(save::is_withheld("filter", saved), withheld, "{saved}");
    }
}

#[test]
fn our_nat_chain_comes_before_what_translates_and_contends_with_nobody_else() {
    let without_tunnel = Desired { tunnel_port: None, ..desired() };
    let wanted = rules::nat(&without_tunnel, true, false);
    let docker = "-s 10.1.9.0/24 ! -o docker0 -j MASQUERADE";
    for (rules, expected) in [
        (&["JUMP", docker][..], &[][..]),
        (&[docker, "JUMP"], &["-D POSTROUTING JUMP", "-I POSTROUTING 1 JUMP"]),
        (&["-d 192.0.2.0/24 -j ACCEPT", docker], &["-I POSTROUTING 2 JUMP"]),
        (
            &["-N A", "-N B", "-A A -j B", "-A B -j SNAT --to-source 192.0.2.1", "-j A"],
            &["-I POSTROUTING 1 JUMP"],
        ),
        (&["-N A", "-A A -j RETURN", "-j A", "JUMP"], &[]),
        (&["-N KUBE-POSTROUTING", "-A KUBE-POSTROUTING -j MASQUERADE", "-j KUBE-POSTROUTING", "JUMP"], &[]),
        (&["-o eth1 -j MASQUERADE", "JUMP"], &[]),
        (
            &[
                "-N OVERLAYD-NAT-flannel.10",
                "-A OVERLAYD-NAT-flannel.10 ! -s 10.2.0.0/16 -j MASQUERADE",
                "-o flannel.10 -m comment --comment overlayd-nat -j OVERLAYD-NAT-flannel.10",
                "JUMP",
            ],
            &[],
        ),
    ] {
        assert_eq!(moves(&wanted, "POSTROUTING", rules), expected, "{rules:?}");
    }
}

/// By whatever device, unlike what leaves by the overlay's.
#[test]
fn what_others_send_to_a_tunnel_keeps_its_source_before_whatever_translates() {
    let mut wanted = rules::nat(&desired(), true, false);
    wanted.hooks.remove(0);
    for (rules, expected) in [
        (&["JUMP", "-o eth1 -j MASQUERADE"][..], &[][..]),
        (&["-o eth1 -j MASQUERADE", "JUMP"], &["-D POSTROUTING JUMP", "-I POSTROUTING 1 JUMP"]),
        (&["-N OVERLAYD-NAT-flannel.10", "-o flannel.10 -j OVERLAYD-NAT-flannel.10", "JUMP"], &[]),
    ] {
        assert_eq!(moves(&wanted, "POSTROUTING", rules), expected, "{rules:?}");
    }
    let forward_rules = false;
    assert_eq!(rules::nat(&Desired { forward_rules, ..desired() }, true, false).hooks.len(), 1);
}

#[test]
fn docker_28s_refusals_are_preceded_by_what_comes_over_the_overlay_for_our_pods() {
    let direct = "-d 10.1.9.0/24 -i flannel.1 -m comment --comment overlayd-direct -j ACCEPT";
    let raw = rules::raw(&desired());
    let refusal = "-d 10.1.9.2/32 ! -i docker0 -j DROP";
    let fixed = |rules: &[&str]| fix(&table("raw", "PREROUTING", "ACCEPT", rules), &raw);
    assert!(fixed(&[]).is_empty() && fixed(&["-d 10.1.9.2/32 ! -i docker0 -p tcp -j DROP"]).is_empty());
    assert_eq!(fixed(&["-i lo -j ACCEPT", refusal]), [format!("-I PREROUTING 2 {direct}")]);
    assert!(fixed(&[direct, refusal]).is_empty());
    assert_eq!(fixed(&[direct]), [format!("-D PREROUTING {direct}")], "docker has gone");

    let forward = rules::forward_as_flannel(&desired());
    let docker = &[
        "-N DOCKER-BRIDGE",
        "-N DOCKER",
        "-A DOCKER-BRIDGE -o docker0 -j DOCKER",
        "-A DOCKER ! -i docker0 -o docker0 -j DROP",
        "-j DOCKER-USER",
        "-j DOCKER-BRIDGE",
        "JUMP",
    ];
    assert_eq!(moves(&forward, "FORWARD", docker), [format!("-I FORWARD 2 {direct}")]);
}

#[test]
fn what_comes_and_goes_by_the_underlay_has_rules_of_its_own_and_leaves_none() {
    let desired = Desired { direct: Some("eth0".to_owned()), ..desired() };
    let by_underlay =
        "-s 10.1.0.0/16 -d 10.1.9.0/24 -i eth0 -m comment --comment overlayd-direct-flannel.1 -j ACCEPT";
    let before = table("raw", "PREROUTING", "ACCEPT", &["-d 10.1.9.2/32 ! -i docker0 -j DROP"]);
    let lines = fix(&before, &rules::raw(&desired));
    assert!(lines.iter().any(|line| line.ends_with(by_underlay)), "{lines:#?}");
    let rules = [by_underlay, "-d 10.1.9.2/32 ! -i docker0 -j DROP"];
    let there = table("raw", "PREROUTING", "ACCEPT", &rules);
    let none = BTreeSet::new();
    assert_eq!(removal(&there, "flannel.1", &none, &[]), [format!("-D PREROUTING {by_underlay}")]);
    assert!(removal(&there, "flannel.10", &none, &[]).is_empty());
    assert!(removal(&there, "flannel.1", &none, &rules::direct(&desired)).is_empty());

    // What others translate on the underlay comes after what is ours to say there.
    let nat = table("nat", "POSTROUTING", "ACCEPT", &["-o eth0 -j MASQUERADE"]);
    let lines = fix(&nat, &rules::nat(&desired, true, false));
    assert!(
        lines.iter().any(|line| line.starts_with("-I POSTROUTING 1 ") && line.contains("-o eth0")),
        "{lines:#?}"
    );
}

#[test]
fn what_goes_from_pod_to_pod_by_the_underlay_is_let_pass_before_the_drop_of_tunnels_in_the_tunnel() {
    let desired = Desired { direct: Some("eth0".to_owned()), ..desired() };
    let mangle = rules::mangle(&desired);
    let [drop, exception] = [0, 1].map(|number| mangle.hooks[number].rule.as_str());
    assert!(drop.ends_with("-j DROP") && exception.ends_with("-j ACCEPT"), "{mangle:?}");
    for there in [
        &[][..],
        &[drop],
        &[exception],
        &[drop, exception],
        &["-j SITES", drop, "-j OTHERS", exception, exception],
    ] {
        let before = table("mangle", "FORWARD", "ACCEPT", there);
        let mut lines: Vec<String> =
            before.rules("FORWARD").map(|rule| format!("-A FORWARD {rule}")).collect();
        lines.extend(fix(&before, &mangle));
        let after = restored("mangle", ":FORWARD ACCEPT [0:0]", &lines);
        let ours: Vec<&str> = after.rules("FORWARD").filter(|rule| rule.contains("tunnel")).collect();
        assert_eq!(ours, [exception, drop], "{there:?}");
        assert!(fix(&after, &mangle).is_empty(), "{there:?}");
    }
    assert_eq!(
        rules::mangle(&Desired { direct: None, ..desired.clone() }).hooks.len(),
        1,
        "without a direct way"
    );
    assert!(rules::mangle(&Desired { tunnel_port: None, ..desired }).hooks.is_empty());
}

#[test]
fn two_networks_share_flannels_chains() {
    let (ours, theirs) = (rules::nat(&desired(), true, true), rules::nat(&other(), true, true));
    let empty = ":POSTROUTING ACCEPT [0:0]";
    let alone = fix(&restored("nat", empty, &[]), &ours);
    let table = restored("nat", empty, &alone);
    assert!(fix(&table, &ours).is_empty());

    let repair_theirs = |table: &Table| repair(table, &theirs, &BTreeSet::new());
    let mut both = alone.clone();
    both.extend(repair_theirs(&table));
    let table = restored("nat", empty, &both);
    assert_eq!(table.rules("FLANNEL-POSTRTG").count(), 1 + 5 + 5);
    assert!(fix(&table, &ours).is_empty() && repair_theirs(&table).is_empty());

    let networks = networks_to_remove(&[("nat", table)], "flannel.1");
    assert_eq!(networks.into_iter().collect::<Vec<_>>(), ["10.1.0.0/16"]);
    let table = restored("nat", empty, &both);
    let lines = removal(&table, "flannel.1", &BTreeSet::from(["10.1.0.0/16".to_owned()]), &[]);
    assert!(!lines.iter().any(|line| line.contains("10.1.0.0") && !line.starts_with("-D ")), "{lines:#?}");
    assert!(
        !lines.iter().any(|line| line.contains("10.2.0.0/16")),
        "the others' are not touched: {lines:#?}"
    );
    let mut less = both.clone();
    less.extend(lines.into_iter().filter(|line| line.starts_with("-D FLANNEL")));
    assert_eq!(restored("nat", empty, &less).rules("FLANNEL-POSTRTG").count(), 1 + 5);
}

#[test]
fn what_is_nobodys_goes_from_a_shared_chain_and_so_does_a_former_network() {
    let wanted = rules::forward_as_flannel(&desired());
    let rule = |network: &str| {
        format!("-A FLANNEL-FWD -s {network} -m comment --comment \"flanneld forward\" -j ACCEPT")
    };
    for (stray, stays) in [
        ("-A FLANNEL-FWD -j DROP".to_owned(), false),
        (rule("10.3.0.0/16"), false),
        (rule("10.2.0.0/16"), true),
    ] {
        let mut lines = vec![":FLANNEL-FWD - [0:0]".to_owned(), stray.clone()];
        lines.extend(wanted.chains[0].rules.iter().map(|rule| format!("-A FLANNEL-FWD {rule}")));
        lines.push(format!("-A FORWARD {}", wanted.hooks[0].rule));
        let table = restored("filter", ":FORWARD DROP [0:0]", &lines);
        let repaired = repair(&table, &wanted, &BTreeSet::from(["10.3.0.0/16".to_owned()]));
        assert_eq!(repaired.is_empty(), stays, "{stray}");
        assert!(!repaired.contains(&stray), "{repaired:#?}");
    }
}

#[test]
fn a_flannelds_rules_go_whatever_its_age_and_an_overlayds_stay() {
    let old = table(
        "nat",
        "POSTROUTING",
        "ACCEPT",
        &[
            "-s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN",
            "-s 10.5.0.0/16 -j MASQUERADE",
        ],
    );
    let lines = removal_of_flannels(&old, &BTreeSet::new());
    assert_eq!(
        lines,
        ["-D POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN"]
    );

    let ours = fix(&restored("nat", ":POSTROUTING ACCEPT [0:0]", &[]), &rules::nat(&desired(), true, true));
    let table = restored("nat", ":POSTROUTING ACCEPT [0:0]", &ours);
    let owned = repair::networks_of_all(&table);
    assert!(removal_of_flannels(&table, &owned).is_empty());
    let all = removal_of_flannels(&table, &BTreeSet::new());
    assert_eq!(all[1..], ["-F FLANNEL-POSTRTG", "-X FLANNEL-POSTRTG"], "{all:#?}");
}

#[test]
fn only_drops_of_forwarded_packets_and_others_translations_count() {
    for (policy, rules, drops) in [
        ("DROP", &[][..], true),
        ("ACCEPT", &["-s 10.0.0.0/8 -j REJECT --reject-with x"], true),
        ("ACCEPT", &["-j ACCEPT"], false),
    ] {
        assert_eq!(drops_forwarded(&table("filter", "FORWARD", policy, rules)), drops, "{rules:?}");
    }
    assert!(!drops_forwarded(&table("filter", "INPUT", "DROP", &["-j DROP"])));
    assert!(translates_sources(&table("nat", "POSTROUTING", "ACCEPT", &["-j MASQUERADE"])));
    assert!(!translates_sources(&table(
        "nat",
        "PREROUTING",
        "ACCEPT",
        &["-j DNAT --to-destination 10.1.9.2"]
    )));
    assert!(!translates_sources(&table("nat", "FLANNEL-POSTRTG", "-", &["-j MASQUERADE"])));
}
