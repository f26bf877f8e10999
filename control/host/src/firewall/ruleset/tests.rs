use ipnet::Ipv4Net;

use super::super::iptables::Saved;
use super::{Act, Connection, Device, Holds, Packet, Protocol, Ruleset, Way, What, Which, acts};

/// From a pod behind docker0 to TCP port 80 of one elsewhere.
fn forwarded() -> Packet {
    let device = |name: &str, below: &[&str]| Device {
        name: name.to_owned(),
        bridge: name == "docker0",
        below: below.iter().copied().map(str::to_owned).collect(),
    };
    Packet {
        way: Way::Forwarded { from: device("docker0", &["veth1", "veth2"]), to: device("flannel.1", &[]) },
        from: vec![net("10.1.9.0/24")],
        to: vec![net("10.1.63.2/32")],
        protocol: Some(Protocol::Tcp),
        source_port: None,
        port: Some(80),
        connection: Connection::New,
    }
}

/// The tunnel's, to two nodes.
fn outer() -> Packet {
    Packet {
        way: Way::Sent {
            by: Device { name: "eth0.7".to_owned(), bridge: false, below: vec!["eth0".to_owned()] },
            user: Some(998),
        },
        from: vec![net("192.168.1.12/32")],
        to: vec![net("192.168.199.238/32"), net("192.168.199.7/32")],
        protocol: Some(Protocol::Udp),
        source_port: None,
        port: Some(8472),
        connection: Connection::Any,
    }
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// What iptables-legacy's rules in `table` do to `packet`.
fn by_iptables(packet: &Packet, table: &str, policy: &str, rules: &[&str]) -> Vec<Act> {
    let chain = if packet.connection == Connection::Any { "POSTROUTING" } else { "FORWARD" };
    let rules: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
    let text = format!(
        "*{table}\n:{chain} {policy} [0:0]\n:OUTPUT ACCEPT [0:0]\n:ONE - [0:0]\n:TWO - [0:0]\n{rules}COMMIT\n"
    );
    let mut ruleset = Ruleset::default();
    ruleset.add_saved(&Saved { program: "iptables-legacy", legacy: true, text }, true);
    acts(&ruleset, packet)
}

/// What nftables' `rules` do to `packet`, each given with its chain: `base`, of that hook, or `one` or `two`.
fn by_nft(packet: &Packet, hook: &str, policy: &str, rules: &[(&str, &str)]) -> Vec<Act> {
    let chain = |name: &str, base: &str| {
        format!(r#"{{"chain":{{"family":"inet","table":"t","name":"{name}","handle":1{base}}}}}"#)
    };
    let base = format!(r#","type":"filter","hook":"{hook}","prio":0,"policy":"{policy}""#);
    let set = |kind: &str, name: &str, elements: &str| {
        let (name, flags) = name.split_once(' ').unwrap_or((name, ""));
        format!(r#"{{"{kind}":{{"family":"inet","name":"{name}","table":"t"{flags},"elem":{elements}}}}}"#)
    };
    let mut objects = vec![
        r#"{"metainfo":{"version":"1.0.6"}}"#.to_owned(),
        set(
            "set",
            "pods",
            r#"[{"range":["10.1.0.0","10.1.255.255"]},{"elem":{"val":"10.2.0.1","comment":"x"}}]"#,
        ),
        set("set", "seen", r#"["10.1.63.2"]"#),
        set(
            "set",
            r#"for_an_hour ,"flags":["timeout"]"#,
            r#"[{"elem":{"val":"10.1.63.2","timeout":3600,"expires":9}}]"#,
        ),
        set("set", r#"each_for_an_hour ,"timeout":3600"#, r#"[{"elem":{"val":"10.1.63.2","expires":9}}]"#),
        set("set", "limited", r#"[{"elem":{"val":"10.1.63.2","quota":{"val":100,"val_unit":"bytes"}}}]"#),
        set("map", r#"verdicts_for_an_hour ,"flags":"timeout""#, r#"[["10.1.63.2",{"drop":null}]]"#),
        set(
            "map",
            "ways",
            r#"[["docker0",{"jump":{"target":"one"}}],["flannel.1",{"goto":{"target":"two"}}]]"#,
        ),
        set("map", "services", r#"[[{"concat":["10.1.63.2","tcp",80]},{"goto":{"target":"one"}}]]"#),
        chain("early", r#","type":"filter","hook":"prerouting","prio":-300,"policy":"accept""#),
        chain("late", r#","type":"filter","hook":"prerouting","prio":-150,"policy":"accept""#),
        chain("base", &base),
        chain("one", ""),
        chain("two", ""),
    ];
    for (handle, (chain, expressions)) in rules.iter().enumerate() {
        objects.push(format!(
            r#"{{"rule":{{"family":"inet","table":"t","chain":"{chain}","handle":{handle},"expr":[{expressions}]}}}}"#
        ));
    }
    let mut ruleset = Ruleset::default();
    ruleset.add_listing(&format!(r#"{{"nftables":[{}]}}"#, objects.join(",")));
    assert!(ruleset.unread().is_empty(), "{:?}", ruleset.unread());
    acts(&ruleset, packet)
}

/// A match of nft's.
fn is(left: &str, op: &str, right: &str) -> String {
    let left = match left.split_once(' ') {
        Some(("meta", key)) => format!(r#"{{"meta":{{"key":"{key}"}}}}"#),
        Some(("ct", key)) => format!(r#"{{"ct":{{"key":"{key}"}}}}"#),
        Some((protocol, field)) => format!(r#"{{"payload":{{"protocol":"{protocol}","field":"{field}"}}}}"#),
        None => panic!("{left}"),
    };
    format!(r#"{{"match":{{"op":"{op}","left":{left},"right":{right}}}}}"#)
}

const DROP: &str = r#"{"drop":null}"#;
const ACCEPT: &str = r#"{"accept":null}"#;
const RETURN: &str = r#"{"return":null}"#;
const LIMIT: &str = r#"{"limit":{"rate":5,"burst":5,"per":"second"}}"#;
const JUMP: &str = r#"{"jump":{"target":"one"}}"#;
const GOTO: &str = r#"{"goto":{"target":"one"}}"#;

/// Whether there is something that drops all of the packets.
fn drops_all(acts: &[Act]) -> bool {
    acts.iter().any(|act| (act.what, act.sure) == (What::Drops, Holds::Always))
}

/// What is found, shortly: nothing, or what is done first and how surely.
fn shortly(acts: &[Act]) -> Option<(What, Holds)> {
    acts.first().map(|act| (act.what, act.sure))
}

const DROPS: Option<(What, Holds)> = Some((What::Drops, Holds::Always));
const DROPS_SOME: Option<(What, Holds)> = Some((What::Drops, Holds::Partly));
const MAY_DROP: Option<(What, Holds)> = Some((What::Drops, Holds::Unknown));

#[test]
fn nftables_matches_are_evaluated() {
    let pods = r#"{"prefix":{"addr":"10.1.0.0","len":16}}"#;
    let (part, set) = (r#"{"prefix":{"addr":"10.1.9.0","len":25}}"#, r#"{"set":[22,{"range":[80,90]}]}"#);
    for (conditions, holds) in [
        (vec![is("ip saddr", "==", pods)], DROPS),
        (vec![is("ip saddr", "!=", pods)], None),
        (vec![is("ip saddr", "==", part)], DROPS_SOME),
        (vec![is("ip saddr", "==", "\"@pods\""), is("ip daddr", "!=", "\"10.1.63.2\"")], None),
        (vec![is("ip saddr", "==", "\"@pods\""), is("tcp dport", "==", set)], DROPS),
        (vec![is("tcp dport", ">", "80")], None),
        (vec![is("tcp sport", "==", "1024")], DROPS_SOME),
        (vec![is("udp dport", "!=", "53")], None),
        (vec![is("ip6 saddr", "!=", "\"::1\"")], None),
        (vec![is("meta l4proto", "==", r#"{"set":["tcp","udp"]}"#)], DROPS),
        (vec![is("meta iifname", "==", "\"docker*\""), is("meta oifname", "!=", "\"flannel.1\"")], None),
        (vec![is("meta nfproto", "==", "\"ipv6\"")], None),
        (vec![is("ct state", "in", r#"["established","related"]"#)], None),
        (vec![is("ct state", "!", r#""established""#)], DROPS),
        (vec![is("ct status", "in", r#""dnat""#)], None),
        (vec![is("ct mark", "==", "1")], MAY_DROP),
        (vec![is("ip daddr", "==", "\"@for_an_hour\"")], MAY_DROP),
        (vec![is("ip daddr", "==", "\"@each_for_an_hour\"")], MAY_DROP),
        (vec![is("ip daddr", "!=", "\"@for_an_hour\"")], MAY_DROP),
        (vec![is("ip saddr", "==", "\"@for_an_hour\"")], None),
        (vec![is("ip daddr", "==", "\"@limited\"")], MAY_DROP),
        (
            vec![
                r#"{"match":{"op":"==","left":{"payload":{"tunnel":"vxlan","protocol":"ip","field":"daddr"}},"right":"10.9.9.9"}}"#
                    .to_owned(),
            ],
            MAY_DROP,
        ),
        (
            vec![
                r#"{"match":{"op":"==","left":{"&":[{"meta":{"key":"mark"}},16384]},"right":16384}}"#
                    .to_owned(),
            ],
            None,
        ),
        (
            vec![
                r#"{"match":{"op":"==","left":{"fib":{"result":"type","flags":["daddr"]}},"right":"local"}}"#
                    .to_owned(),
            ],
            None,
        ),
        (vec![LIMIT.to_owned()], MAY_DROP),
        (vec![r#"{"xt":{"type":"match","name":"recent"}}"#.to_owned()], Some((What::Unclear, Holds::Always))),
        (vec![r#"{"something":"new"}"#.to_owned()], Some((What::Unclear, Holds::Always))),
    ] {
        let rule = [conditions.join(","), DROP.to_owned()].join(",");
        let found = by_nft(&forwarded(), "forward", "accept", &[("base", &rule)]);
        assert_eq!(shortly(&found), holds, "{rule}");
    }
}

#[test]
fn chains_are_followed_and_doubt_is_carried_along() {
    let doubtful = |verdict: &str| format!("{LIMIT},{verdict}");
    let (accepts, returns, jumps, goes) =
        (doubtful(ACCEPT), doubtful(RETURN), doubtful(JUMP), doubtful(GOTO));
    let vmap = |key: &str, map: &str| format!(r#"{{"vmap":{{"key":{key},"data":{map}}}}}"#);
    let device = |which: &str| format!(r#"{{"meta":{{"key":"{which}"}}}}"#);
    let named = vmap(&device("iifname"), "\"@ways\"");
    let state =
        vmap(r#"{"ct":{"key":"state"}}"#, r#"{"set":[["established",{"accept":null}],["*",{"drop":null}]]}"#);
    let timed = vmap(r#"{"payload":{"protocol":"ip","field":"daddr"}}"#, "\"@verdicts_for_an_hour\"");
    let service = vmap(
        r#"{"concat":[{"payload":{"protocol":"ip","field":"daddr"}},{"meta":{"key":"l4proto"}},{"payload":{"protocol":"th","field":"dport"}}]}"#,
        "\"@services\"",
    );
    let adds = r#"{"set":{"op":"add","elem":{"payload":{"protocol":"ip","field":"daddr"}},"set": "@seen"}}"#;
    let seen = format!("{},{DROP}", is("ip daddr", "==", "\"@seen\""));
    for (what, policy, rules, found) in [
        ("a policy", "drop", vec![], DROPS),
        ("an accept before it", "drop", vec![("base", ACCEPT)], None),
        ("a jump", "accept", vec![("base", JUMP), ("one", DROP)], DROPS),
        (
            "a jump that comes back",
            "drop",
            vec![("base", JUMP), ("base", ACCEPT), ("one", RETURN), ("one", DROP)],
            None,
        ),
        ("a goto that does not", "drop", vec![("base", GOTO), ("base", ACCEPT)], DROPS),
        (
            "a circle",
            "accept",
            vec![("base", JUMP), ("one", r#"{"jump":{"target":"two"}}"#), ("two", JUMP)],
            Some((What::Unclear, Holds::Always)),
        ),
        ("a map of devices", "accept", vec![("base", &named), ("one", DROP)], DROPS),
        ("a map of states", "accept", vec![("base", &state)], DROPS),
        ("a map whose elements go", "accept", vec![("base", &timed)], MAY_DROP),
        ("a map of services", "accept", vec![("base", &service), ("one", DROP)], DROPS),
        ("a set that packets change", "accept", vec![("base", adds), ("base", &seen)], MAY_DROP),
        ("a doubtful accept", "drop", vec![("base", &accepts)], MAY_DROP),
        ("a doubtful accept in a chain", "drop", vec![("base", JUMP), ("one", &accepts)], MAY_DROP),
        ("a doubtful return", "accept", vec![("base", JUMP), ("one", &returns), ("one", DROP)], MAY_DROP),
        (
            "what follows a doubtful return",
            "accept",
            vec![("base", JUMP), ("base", DROP), ("one", &returns)],
            DROPS,
        ),
        (
            "who returned before a sure accept",
            "drop",
            vec![("base", JUMP), ("one", &returns), ("one", ACCEPT)],
            MAY_DROP,
        ),
        ("a doubtful jump", "accept", vec![("base", &jumps), ("one", DROP)], MAY_DROP),
        ("what follows a doubtful goto", "accept", vec![("base", &goes), ("base", DROP)], MAY_DROP),
        ("a reject", "accept", vec![("base", r#"{"reject":{"type":"icmpx"}}"#)], DROPS),
        ("a queue", "accept", vec![("base", r#"{"queue":{"num":3}}"#)], Some((What::Unclear, Holds::Always))),
        (
            "a counter and a log",
            "accept",
            vec![("base", r#"{"counter":{"packets":0,"bytes":0}},{"log":null}"#)],
            None,
        ),
    ] {
        assert_eq!(shortly(&by_nft(&forwarded(), "forward", policy, &rules)), found, "{what}");
    }
}

#[test]
fn what_drops_some_hides_nothing_that_drops_all() {
    let some = |verdict: &str| format!("{},{verdict}", is("ip saddr", "==", "\"10.1.9.7\""));
    let (drops, jumps, goes, accepts) = (some(DROP), some(JUMP), some(GOTO), some(ACCEPT));
    let doubtful = format!("{LIMIT},{DROP}");
    let map = r#"{"vmap":{"key":{"payload":{"protocol":"ip","field":"saddr"}},"data":{"set":[["10.1.9.7",{"drop":null}]]}}}"#;
    for (what, policy, rules, all) in [
        ("a policy", "drop", vec![("base", drops.as_str())], true),
        ("a policy behind a doubtful drop", "drop", vec![("base", &doubtful)], true),
        ("a policy behind a map", "drop", vec![("base", map)], true),
        ("a reject", "accept", vec![("base", &drops), ("base", r#"{"reject":null}"#)], true),
        ("a policy behind a jump", "drop", vec![("base", JUMP), ("one", &drops)], true),
        ("a policy behind a jump of some", "drop", vec![("base", &jumps), ("one", DROP)], true),
        ("a policy behind a goto of some", "drop", vec![("base", &goes), ("one", DROP)], true),
        ("the last of a chain", "accept", vec![("base", JUMP), ("one", &drops), ("one", DROP)], true),
        ("an accept", "drop", vec![("base", &drops), ("base", ACCEPT)], false),
        ("an accept of some", "drop", vec![("base", &accepts), ("base", &drops)], false),
        (
            "an accept of some in a chain",
            "drop",
            vec![("base", JUMP), ("one", &accepts), ("one", DROP)],
            false,
        ),
        ("an accept of all that come", "drop", vec![("base", &jumps), ("one", ACCEPT), ("one", DROP)], false),
    ] {
        let found = by_nft(&forwarded(), "forward", policy, &rules);
        assert_eq!(drops_all(&found), all, "{what}: {found:#?}");
        assert!(found.iter().any(|act| act.sure != Holds::Always) || what == "the last of a chain", "{what}");
    }
}

/// In raw, before conntrack; what comes later is ignored.
#[test]
fn what_conntrack_leaves_out_is_in_no_state() {
    let (notrack, some) =
        (r#"{"notrack":null}"#, format!("{},{{\"notrack\":null}}", is("ip saddr", "==", "\"10.1.9.7\"")));
    let known = format!("{},{ACCEPT}", is("ct state", "in", r#"["new","established"]"#));
    let untracked = format!("{},{DROP}", is("ct state", "in", r#""untracked""#));
    let mark = format!("{},{DROP}", is("ct mark", "==", "1"));
    for (early, policy, rule, found) in [
        (("early", notrack), "drop", &known, DROPS),
        (("late", notrack), "drop", &known, None),
        (("early", &some), "drop", &known, DROPS_SOME),
        (("early", notrack), "accept", &untracked, DROPS),
        (("late", notrack), "accept", &untracked, None),
        (("early", notrack), "accept", &mark, None),
    ] {
        let acts = by_nft(&forwarded(), "forward", policy, &[early, ("base", rule)]);
        assert_eq!(shortly(&acts), found, "{early:?} {policy} {rule}");
    }
    for (target, found) in [("CT --notrack", DROPS), ("NOTRACK", DROPS), ("CT --zone 3", None)] {
        let text = format!(
            "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i docker0 -j {target}\nCOMMIT\n\
             *filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\nCOMMIT\n"
        );
        let mut ruleset = Ruleset::default();
        ruleset.add_saved(&Saved { program: "iptables-legacy", legacy: true, text }, true);
        assert_eq!(shortly(&acts(&ruleset, &forwarded())), found, "{target}");
    }
}

/// An ingress or egress chain of a device above, below or beside those that packets are routed by.
#[test]
fn hooks_of_ports_and_lower_devices_may_act() {
    let below = Some((What::Drops, Holds::Unknown));
    for (hook, devices, packet, found) in [
        ("ingress", r#""docker0""#, forwarded(), DROPS),
        ("ingress", r#""docker*""#, forwarded(), DROPS),
        ("ingress", r#"["eth9","docker0"]"#, forwarded(), DROPS),
        ("ingress", r#""docker\\*""#, forwarded(), None),
        ("ingress", r#""veth2""#, forwarded(), below),
        ("ingress", r#""veth*""#, forwarded(), below),
        ("ingress", r#""veth3""#, forwarded(), None),
        ("egress", r#""veth2""#, forwarded(), None),
        ("egress", r#""flannel.1""#, forwarded(), DROPS),
        ("egress", r#""eth0""#, outer(), below),
        ("egress", r#""eth0.7""#, outer(), DROPS),
        ("egress", r#""eth1""#, outer(), None),
        ("ingress", r#""eth0""#, outer(), None),
    ] {
        let mut ruleset = Ruleset::default();
        ruleset.add_listing(&format!(
            r#"{{"nftables":[{{"chain":{{"family":"netdev","table":"t","name":"c","handle":1,"dev":{devices},"type":"filter","hook":"{hook}","prio":0,"policy":"drop"}}}}]}}"#
        ));
        assert_eq!(shortly(&acts(&ruleset, &packet)), found, "{hook} {devices}");
    }
}

#[test]
fn rules_of_ebtables_legacy_act_on_what_crosses_a_bridge() {
    let chain = |name: &str, policy: &str, rules: &str| {
        format!("Bridge chain: {name}, entries: 1, policy: {policy}\n{rules}\n\n")
    };
    let listing = |chains: &[String]| format!("Bridge table: x\n\n{}", chains.concat());
    for (table, chains, found) in [
        ("filter", vec![chain("INPUT", "DROP", "")], DROPS),
        ("filter", vec![chain("INPUT", "ACCEPT", "-j DROP")], DROPS),
        ("filter", vec![chain("INPUT", "DROP", "-p IPv4 -j ACCEPT")], None),
        ("filter", vec![chain("INPUT", "ACCEPT", "-p ARP -j DROP")], None),
        ("filter", vec![chain("INPUT", "ACCEPT", "-p IPv4 -i veth2 -j DROP")], MAY_DROP),
        ("filter", vec![chain("FORWARD", "DROP", "")], None),
        (
            "filter",
            vec![chain("INPUT", "ACCEPT", "-j site"), chain("site", "RETURN", "-p ARP -j ACCEPT")],
            None,
        ),
        (
            "filter",
            vec![chain("INPUT", "ACCEPT", "-j site"), chain("site", "DROP", "-p ARP -j ACCEPT")],
            DROPS,
        ),
        (
            "nat",
            vec![chain("PREROUTING", "ACCEPT", "-s 1:2:3:4:5:6 -j dnat")],
            Some((What::Unclear, Holds::Unknown)),
        ),
        ("broute", vec![chain("BROUTING", "ACCEPT", "-j DROP")], Some((What::Unclear, Holds::Always))),
    ] {
        let mut ruleset = Ruleset::default();
        ruleset.add_ebtables(table, Some(&listing(&chains)));
        assert_eq!(shortly(&acts(&ruleset, &forwarded())), found, "{table} {chains:?}");
        assert!(acts(&ruleset, &outer()).is_empty(), "no bridge there");
    }
    let mut ruleset = Ruleset::default();
    ruleset.add_ebtables("filter", None);
    assert_eq!(ruleset.unread().len(), 1);
}

#[test]
fn every_hook_of_the_way_is_asked_and_no_other() {
    for (hook, packet, asked) in [
        ("prerouting", forwarded(), true),
        ("forward", forwarded(), true),
        ("postrouting", forwarded(), true),
        ("input", forwarded(), false),
        ("output", forwarded(), false),
        ("output", outer(), true),
        ("postrouting", outer(), true),
        ("prerouting", outer(), false),
        ("forward", outer(), false),
    ] {
        let found = by_nft(&packet, hook, "drop", &[]);
        assert_eq!(shortly(&found), if asked { DROPS } else { None }, "{hook}");
        assert!(found.iter().all(|act| act.place.rule == Which::Policy));
    }
}

#[test]
fn iptables_rules_are_evaluated() {
    for (policy, rules, found) in [
        ("DROP", &[][..], DROPS),
        ("DROP", &["FORWARD -s 10.1.0.0/16 -m comment --comment \"a b\" -j ACCEPT"], None),
        ("DROP", &["FORWARD ! -s 10.1.0.0/16 -j ACCEPT"], DROPS),
        ("DROP", &["FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], DROPS),
        ("ACCEPT", &["FORWARD -j ONE", "ONE -i docker0 -p tcp -m tcp --dport 1:99 -j DROP"], DROPS),
        ("ACCEPT", &["FORWARD -p udp -j DROP", "FORWARD ! -i docker+ -j REJECT"], None),
        ("ACCEPT", &["FORWARD -p tcp -m multiport --dports 443,8080:8090 -j DROP"], None),
        ("ACCEPT", &["FORWARD -p tcp -m multiport --dports 22,80 -j DROP"], DROPS),
        ("ACCEPT", &["FORWARD -s 10.1.9.7/32 -j DROP"], DROPS_SOME),
        ("ACCEPT", &["FORWARD -m iprange --src-range 10.1.9.0-10.1.9.255 -j DROP"], DROPS),
        ("ACCEPT", &["FORWARD -m addrtype --dst-type LOCAL -j DROP"], None),
        ("ACCEPT", &["FORWARD -m mark --mark 0x1/0x1 -j DROP"], None),
        ("ACCEPT", &["FORWARD -m owner --uid-owner 0 -j DROP"], None),
        ("ACCEPT", &["FORWARD -m set --match-set bad src -j DROP"], MAY_DROP),
        (
            "ACCEPT",
            &["FORWARD -m recent --rcheck --name x --mask 255.255.255.255 --rsource -j DROP"],
            MAY_DROP,
        ),
        ("DROP", &["FORWARD -m limit --limit 3/min -j ACCEPT"], MAY_DROP),
        ("ACCEPT", &["FORWARD -m limit --limit 3/min -j LOG --log-prefix \"-j DROP\""], None),
        (
            "DROP",
            &["FORWARD -j ONE", "FORWARD -j ACCEPT", "ONE -d 10.1.63.0/24 -j RETURN", "ONE -j DROP"],
            None,
        ),
        ("DROP", &["FORWARD -g ONE", "FORWARD -j ACCEPT", "ONE -s 10.9.0.0/16 -j DROP"], DROPS),
        ("ACCEPT", &["FORWARD -j NFQUEUE --queue-num 1"], Some((What::Unclear, Holds::Always))),
        ("ACCEPT", &["FORWARD -j SOMETHING"], Some((What::Unclear, Holds::Always))),
    ] {
        assert_eq!(shortly(&by_iptables(&forwarded(), "filter", policy, rules)), found, "{rules:?}");
    }
}

/// Docker's, kube-proxy's and what else is usual does nothing to the tunnel's packets; what would, counts.
#[test]
fn what_could_act_on_the_tunnels_packets_is_told_from_what_could_not() {
    let changes = Some((What::Changes, Holds::Always));
    let kube_proxy = [
        "POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j ONE",
        "ONE -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "ONE -j MARK --set-xmark 0x4000/0x0",
        "ONE -j MASQUERADE --random-fully",
    ];
    for (table, rules, found) in [
        (
            "nat",
            &[
                "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
                "OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j TWO",
                "TWO -j DNAT --to-destination 172.17.0.2:80",
            ][..],
            None,
        ),
        ("nat", &kube_proxy, None),
        (
            "nat",
            &["OUTPUT -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.1.9.2:6443"],
            None,
        ),
        ("mangle", &["OUTPUT -j MARK --set-xmark 0x0/0xf0000"], None),
        (
            "filter",
            &[
                "OUTPUT -p udp -m udp --dport 4789 -j DROP",
                "OUTPUT -m owner --uid-owner 1000 -j DROP",
                "OUTPUT -j ACCEPT",
            ],
            None,
        ),
        ("raw", &["OUTPUT -p udp -m udp --dport 8472 -j CT --notrack"], None),
        ("nat", &["POSTROUTING -o eth0.7 -j MASQUERADE"], changes),
        ("nat", &["POSTROUTING -o eth1 -j MASQUERADE"], None),
        ("mangle", &["OUTPUT -p udp -m udp --dport 8472 -j DSCP --set-dscp 0x2e"], changes),
        ("mangle", &["POSTROUTING -j MARK --set-xmark 0x1/0xffffffff"], changes),
        ("mangle", &["OUTPUT -j CONNMARK --restore-mark"], changes),
        ("mangle", &["OUTPUT -d 192.168.199.7/32 -j TTL --ttl-set 9"], Some((What::Changes, Holds::Partly))),
        ("filter", &["OUTPUT -m owner --uid-owner 998 -j DROP"], DROPS),
        ("filter", &["OUTPUT -m cgroup --path x -j DROP"], MAY_DROP),
        (
            "filter",
            &["OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", "OUTPUT -p udp -j DROP"],
            DROPS_SOME,
        ),
    ] {
        assert_eq!(shortly(&by_iptables(&outer(), table, "ACCEPT", rules)), found, "{rules:?}");
    }
    // A mark that one rule sets, another may ask for.
    let marked = ["OUTPUT -p udp -j MARK --set-xmark 0x4000/0x4000"];
    assert_eq!(
        shortly(&by_iptables(&outer(), "nat", "ACCEPT", &[&marked[..], &kube_proxy].concat())),
        changes
    );
    let found = by_iptables(&outer(), "nat", "ACCEPT", &[&marked[..], &kube_proxy].concat());
    assert_eq!(found.len(), 3, "it is masqueraded then, and the mark taken off: {found:#?}");
}

/// Those that come back with the connection, or from a set; those of other bits are not.
#[test]
fn marks_that_nobody_here_knows_may_be_any() {
    for (restores, found) in [
        ("CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", MAY_DROP),
        ("CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", None),
        ("CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", None),
        ("HMARK --hmark-tuple src --hmark-mod 9", MAY_DROP),
        ("SET --map-set x src --map-mark", MAY_DROP),
        ("SET --add-set x src", None),
    ] {
        let restores = format!("OUTPUT -j {restores}");
        let rules = [restores.as_str(), "OUTPUT -m mark --mark 0x4000/0x4000 -j DROP"];
        let found_all = by_iptables(&outer(), "mangle", "ACCEPT", &rules);
        let dropped: Vec<Act> = found_all.into_iter().filter(|act| act.what == What::Drops).collect();
        assert_eq!(shortly(&dropped), found, "{restores}");
    }
    let restores = r#"{"mangle":{"key":{"meta":{"key":"mark"}},"value":{"&":[{"ct":{"key":"mark"}},255]}}}"#;
    for (wanted, found) in [("1", MAY_DROP), ("256", None)] {
        let asks = format!(
            r#"{{"match":{{"op":"==","left":{{"&":[{{"meta":{{"key":"mark"}}}},{wanted}]}},"right":{wanted}}}}},{DROP}"#
        );
        let mut acts = by_nft(&forwarded(), "forward", "accept", &[("early", restores), ("base", &asks)]);
        acts.retain(|act| act.what == What::Drops);
        assert_eq!(shortly(&acts), found, "{wanted}");
    }
}

#[test]
fn what_is_not_understood_is_said_to_be_unread() {
    let mut ruleset = Ruleset::default();
    ruleset.add_listing("no JSON");
    ruleset.add_saved(&Saved { program: "iptables-legacy", legacy: true, text: String::new() }, true);
    assert_eq!(ruleset.unread().len(), 2);
}
