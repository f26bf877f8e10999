//! What a host's firewall says to packets of the overlay: for `overlayctl trace` and `check`, which look and
//! change nothing, and for what the daemon tells.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv4Subnets};

use super::iptables::TUNNEL_IN_TUNNEL;
use super::nft::TABLE_PREFIX;
use super::ruleset::{
    Act, Connection, Device, EBTABLES, Holds, Packet, Place, Protocol, Ruleset, Table, Way, What, Which,
    acts, acts_and_destinations,
};
use crate::command::run;

/// Something that drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The table and chain, with the rule that drops or the word that it is the policy.
    pub by: String,
    /// What to do.
    pub remedy: String,
}

/// What drops all packets to some of their destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutOff {
    /// These.
    pub to: Vec<Ipv4Net>,
    /// The rules of one base chain: the first of them.
    pub by: Refusal,
    /// How many more there are.
    pub more: usize,
}

/// What the rules do to packets that should pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What drops all of them.
    pub refusals: Vec<Refusal>,
    /// What drops some of them, as far as they are described.
    pub partly: Vec<String>,
    /// What drops some of every connection's: by their length, the time or chance.
    pub of_any: Vec<Refusal>,
    /// What may act on them, and cannot be evaluated.
    pub unread: Vec<String>,
}

/// What remedies are made of.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// All pods of all nodes.
    pub network: Ipv4Net,
    /// The overlay device's name.
    pub device: String,
    /// Whether overlayd accepts forwarding in iptables.
    pub forward_rules: bool,
}

/// What the packets are that should pass, as far as a remedy names them.
#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// From pod to pod.
    Pods,
    /// The tunnel's own, to this port.
    Tunnel {
        /// The UDP port of every node.
        port: u16,
    },
}

/// What `ruleset` does to `packets`, each of which should pass.
pub async fn findings(
    ruleset: &Ruleset,
    packets: &[Packet],
    traffic: Traffic,
    overlay: &Overlay,
) -> Findings {
    let deeds = Deeds::of(ruleset, packets);
    deeds.findings(traffic, overlay).await
}

/// What `ruleset` does to all of `packets` that go to some pod of this node's `own` subnet, or to a whole subnet or node of
/// their destinations, but not to those that go to the others.
pub async fn cut_off(
    ruleset: &Ruleset,
    packets: &[Packet],
    own: Ipv4Net,
    traffic: Traffic,
    overlay: &Overlay,
) -> Vec<CutOff> {
    let mut found: Vec<(Vec<Place>, BTreeSet<Ipv4Net>)> = Vec::new();
    for packet in packets {
        for to in told_apart(ruleset, packet, own).into_iter().take(MOST_PARTS) {
            let part = Packet { to, ..packet.clone() };
            for Act { place, .. } in acts(ruleset, &part).into_iter().filter(drops_all) {
                let like = |(places, _): &&mut (Vec<Place>, _)| {
                    (&places[0].table, &places[0].base) == (&place.table, &place.base)
                };
                match found.iter_mut().find(like) {
                    Some((places, to)) => {
                        to.extend(&part.to);
                        if !places.contains(&place) {
                            places.push(place);
                        }
                    }
                    None => found.push((vec![place], part.to.iter().copied().collect())),
                }
            }
        }
    }
    let mut listings = Chains::default();
    let mut all = Vec::new();
    for (places, to) in found {
        let by = listings.describe(&places[0]).await;
        let remedy = remedy(&places[0], traffic, overlay);
        let to = to.into_iter().collect();
        all.push(CutOff { to, by: Refusal { by, remedy }, more: places.len() - 1 });
    }
    all
}

/// The parts of the packet's destinations that rules tell from the others, where some may drop.
fn told_apart(ruleset: &Ruleset, packet: &Packet, own: Ipv4Net) -> Vec<Vec<Ipv4Net>> {
    let (acts, ranges) = acts_and_destinations(ruleset, packet);
    let drops_some = |act: &Act| act.what == What::Drops && act.sure == Holds::Partly && !act.place.is_ours();
    if !acts.iter().any(drops_some) {
        return Vec::new();
    }
    let nets = |first: u32, last: u32| Ipv4Subnets::new(first.into(), last.into(), 0).collect::<Vec<_>>();
    let mut parts: Vec<Vec<Ipv4Net>> = ranges.iter().map(|(first, last)| nets(*first, *last)).collect();
    parts.retain(|part| part.iter().all(|net| own.contains(net) || packet.to.contains(net)));
    // A rule may be about all but these.
    if packet.to == [own] {
        let mut rest = Vec::new();
        let mut next = u32::from(own.network());
        let end = u32::from(own.broadcast()).saturating_add(1);
        for (first, last) in ranges.into_iter().chain([(end, end)]) {
            if first > next {
                rest.extend(nets(next, first - 1));
            }
            next = next.max(last.saturating_add(1));
        }
        parts.extend((!rest.is_empty()).then_some(rest));
    }
    let is_nobodys = |net: &Ipv4Net| [own.network(), own.broadcast()].map(Ipv4Net::from).contains(net);
    parts.retain(|part| !part.iter().all(is_nobodys));
    parts
}

fn drops_all(act: &Act) -> bool {
    act.what == What::Drops && act.sure == Holds::Always && !act.place.is_ours()
}

/// What rules do to several packets.
#[derive(Debug, Default)]
pub struct Deeds {
    deeds: Vec<Deed>,
    unread: Vec<String>,
    /// What the packets carry.
    protocols: Vec<Option<Protocol>>,
}

/// What one rule does, and to packets that carry what.
#[derive(Debug)]
struct Deed {
    act: Act,
    protocols: Vec<Option<Protocol>>,
}

impl Deeds {
    /// What `ruleset` does to `packets`.
    #[must_use]
    pub fn of(ruleset: &Ruleset, packets: &[Packet]) -> Self {
        let mut deeds: Vec<Deed> = Vec::new();
        for packet in packets {
            for act in acts(ruleset, packet) {
                match deeds.iter_mut().find(|deed| deed.act == act) {
                    Some(deed) if deed.protocols.contains(&packet.protocol) => {}
                    Some(deed) => deed.protocols.push(packet.protocol),
                    None => deeds.push(Deed { act, protocols: vec![packet.protocol] }),
                }
            }
        }
        let protocols = packets.iter().map(|packet| packet.protocol).collect();
        Self { deeds, unread: ruleset.unread().to_vec(), protocols }
    }

    /// Whether nothing is done to them, nor may be.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.deeds.is_empty() && self.unread.is_empty()
    }

    /// What is done to them or may be, if anything: the first of it, for people.
    pub async fn first(&self) -> Option<String> {
        match self.deeds.first() {
            Some(deed) => Some(Chains::default().describe(&deed.act.place).await),
            None => self.unread.first().cloned(),
        }
    }

    /// What of it keeps packets from passing.
    pub async fn findings(&self, traffic: Traffic, overlay: &Overlay) -> Findings {
        let mut findings = Findings { unread: self.unread.clone(), ..Findings::default() };
        let mut chains = Chains::default();
        for Deed { act: Act { what, sure, place }, protocols } in &self.deeds {
            let by = match what {
                What::Changes => continue,
                _ => chains.describe(place).await,
            };
            let list = match (what, sure) {
                (What::Drops, Holds::Always) => {
                    let of_all = self.protocols.iter().all(|protocol| protocols.contains(protocol));
                    let names: Vec<&str> =
                        protocols.iter().flatten().map(|protocol| protocol.name()).collect();
                    let by = if of_all { by } else { format!("{by} (of {})", names.join(" and ")) };
                    findings.refusals.push(Refusal { by, remedy: remedy(place, traffic, overlay) });
                    continue;
                }
                // Ours drop what no pod may send.
                (What::Drops, Holds::Partly) if place.is_ours() => continue,
                (What::Drops, Holds::Partly) if place.concerns_any_connection() => {
                    findings.of_any.push(Refusal { by, remedy: remedy(place, traffic, overlay) });
                    continue;
                }
                (What::Drops, Holds::Partly) => &mut findings.partly,
                _ => &mut findings.unread,
            };
            if !list.contains(&by) {
                list.push(by);
            }
        }
        findings
    }
}

/// Packets between pods here, behind `bridge`, and pods elsewhere, behind `device`: of connections that begin on
/// either side, and their replies.
#[must_use]
pub fn between_pods(ours: Ipv4Net, theirs: &[Ipv4Net], bridge: &Device, device: &Device) -> Vec<Packet> {
    let mut packets = Vec::new();
    for protocol in Protocol::ALL {
        for connection in [Connection::New, Connection::Established] {
            let packet = |from: &Device, to: &Device, sources: &[Ipv4Net], destinations: &[Ipv4Net]| Packet {
                way: Way::Forwarded { from: from.clone(), to: to.clone() },
                from: sources.to_vec(),
                to: destinations.to_vec(),
                protocol: Some(protocol),
                source_port: None,
                port: None,
                connection,
            };
            packets.push(packet(bridge, device, &[ours], theirs));
            packets.push(packet(device, bridge, theirs, &[ours]));
        }
    }
    packets
}

/// The tunnel's packets, to and from nodes at `peers`, by the interface `underlay` with the address `own`; from `port`,
/// too, if it is the `only_port`, as flannel's udp has it.
#[must_use]
pub fn of_tunnel(
    own: Ipv4Addr,
    peers: &[Ipv4Addr],
    underlay: &Device,
    port: u16,
    only_port: bool,
) -> [Packet; 2] {
    let peers: Vec<Ipv4Net> = peers.iter().copied().map(Ipv4Net::from).collect();
    let packet = |way, from, to| Packet {
        way,
        from,
        to,
        protocol: Some(Protocol::Udp),
        source_port: only_port.then_some(port),
        port: Some(port),
        // With many ports, what one node sends answers nothing of the other's.
        connection: if only_port { Connection::Any } else { Connection::New },
    };
    let own = vec![Ipv4Net::from(own)];
    [
        packet(Way::Sent { by: underlay.clone(), user: None }, own.clone(), peers.clone()),
        packet(Way::Received { by: underlay.clone() }, peers, own),
    ]
}

/// Chains as `nft` writes them, each listed once.
#[derive(Debug, Default)]
struct Chains(HashMap<(Table, String), String>);

impl Chains {
    /// The table, the chain and the rule, for people.
    async fn describe(&mut self, place: &Place) -> String {
        let Place { table, chain, base, hook, rule } = place;
        let led = if chain == base { String::new() } else { format!(", to which {base} leads") };
        if place.is_of_iptables() {
            let program = table.program.unwrap_or("iptables");
            let of_table =
                if table.name == "filter" { String::new() } else { format!(" table {},", table.name) };
            let what = match rule {
                Which::Text(text) => format!("the rule '-A {chain} {text}'"),
                Which::Handle(handle, json) => self.written(table, chain, *handle, json).await,
                Which::Policy => "its policy is DROP".to_owned(),
            };
            return format!("{program},{of_table} chain {chain}{led}: {what}");
        }
        let what = match rule {
            Which::Text(text) => format!("the rule '{text}'"),
            Which::Handle(handle, json) => self.written(table, chain, *handle, json).await,
            Which::Policy => "its policy is drop".to_owned(),
        };
        format!("nftables, chain {table} {chain} (hook {}{led}): {what}", hook.name())
    }

    /// The rule as `nft` writes it.
    async fn written(&mut self, table: &Table, chain: &str, handle: u64, json: &str) -> String {
        let key = (table.clone(), chain.to_owned());
        if !self.0.contains_key(&key) {
            let listing = run("nft", &["-a", "list", "chain", &table.family, &table.name, chain], "").await;
            self.0.insert(key.clone(), listing.unwrap_or_default());
        }
        let mark = format!(" # handle {handle}");
        let written = self.0[&key].lines().find_map(|line| line.strip_suffix(&mark));
        format!("the rule '{}'", written.unwrap_or(json).trim())
    }
}

impl Place {
    fn is_ours(&self) -> bool {
        let by_iptables = matches!(&self.rule, Which::Text(text) if text.contains(TUNNEL_IN_TUNNEL));
        by_iptables || self.table.name.starts_with(TABLE_PREFIX)
    }

    /// Or of ebtables.
    fn is_of_iptables(&self) -> bool {
        self.table.program.is_some()
            || self.table.is_of_iptables() && self.base.chars().all(|letter| letter.is_ascii_uppercase())
    }
}

/// What lets the packets pass, and nothing else if that can be had.
fn remedy(place: &Place, traffic: Traffic, overlay: &Overlay) -> String {
    let Place { table, chain, base, .. } = place;
    let Overlay { network, device, forward_rules } = overlay;
    let network = network.trunc();
    if table.name == "firewalld" {
        return match traffic {
            Traffic::Pods => format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={device} --add-source={network} && firewall-cmd --reload"
            ),
            Traffic::Tunnel { port } => {
                format!("firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload")
            }
        };
    }
    if place.is_of_iptables() {
        let program = table.program.unwrap_or("iptables");
        let of_table = if table.name == "filter" { String::new() } else { format!("-t {} ", table.name) };
        if program == EBTABLES {
            return format!(
                "{program} {of_table}-I {base} -p IPv4 --ip-source {network} --ip-destination {network} -j ACCEPT"
            );
        }
        let is_ufws = chain.starts_with("ufw-");
        let (rule, by_ufw) = match traffic {
            Traffic::Pods => {
                (format!("-s {network} -d {network}"), format!("ufw route allow from {network} to {network}"))
            }
            Traffic::Tunnel { port } => (format!("-p udp --dport {port}"), format!("ufw allow {port}/udp")),
        };
        let insert = format!("{program} {of_table}-I {base} {rule} -j ACCEPT");
        let is_forward = matches!(traffic, Traffic::Pods) && table.name == "filter" && base == "FORWARD";
        return match (is_ufws, is_forward && !forward_rules) {
            (_, true) => format!("let overlayd accept it (--iptables-forward-rules), or: {insert}"),
            (true, _) => format!("{by_ufw}, or, until the rules are loaded anew: {insert}"),
            (false, _) => insert,
        };
    }
    let rule = match traffic {
        Traffic::Pods => format!("ip saddr {network} ip daddr {network}"),
        Traffic::Tunnel { port } => format!("udp dport {port}"),
    };
    let insert = format!("nft insert rule {table} {base} {rule} accept");
    if table.name == "docker-bridges" {
        return format!(
            "have docker use iptables, where overlayd's rules come first (\"firewall-backend\": \"iptables\" in daemon.json, and restart docker), or, until docker starts again: {insert}"
        );
    }
    insert
}

/// So many parts of a packet's destinations are looked at, each by following the packet through all of the rules.
const MOST_PARTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::iptables::Saved;
    use super::*;

    #[test]
    fn rules_for_one_port_let_a_tunnel_pass_that_has_but_one() {
        let text = "*filter\n:INPUT DROP [0:0]\n\
            -A INPUT -p udp -m udp --sport 8285 --dport 8285 -j ACCEPT\nCOMMIT\n";
        let ruleset = legacy(text.to_owned());
        let (own, peer) = ([192, 168, 1, 12].into(), [192, 168, 1, 13].into());
        for (only_port, sure) in [(true, None), (false, Some(Holds::Partly))] {
            let [sent, received] = of_tunnel(own, &[peer], &device("eth0"), 8285, only_port);
            assert!(acts(&ruleset, &sent).is_empty());
            assert_eq!(acts(&ruleset, &received).first().map(|act| act.sure), sure, "{only_port}");
        }
    }

    fn overlay() -> Overlay {
        Overlay {
            network: "10.1.0.0/16".parse().unwrap(),
            device: "flannel.1".to_owned(),
            forward_rules: true,
        }
    }

    /// Between pods here and on two other nodes.
    fn packets() -> Vec<Packet> {
        let theirs = ["10.1.63.0/24".parse().unwrap(), "10.1.77.0/24".parse().unwrap()];
        between_pods(OURS.parse().unwrap(), &theirs, &device("docker0"), &device("flannel.1"))
    }

    fn device(name: &str) -> Device {
        Device { name: name.to_owned(), bridge: false, below: Vec::new() }
    }

    const OURS: &str = "10.1.9.0/24";

    fn legacy(text: String) -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.add_saved(&Saved { program: "iptables-legacy", legacy: true, text }, true);
        ruleset
    }

    /// As docker 28 and 29 have rules for each container that refuse direct access, in iptables and nftables.
    #[tokio::test]
    async fn single_pods_that_nothing_reaches_are_told() {
        let raw = |rules: &str| legacy(format!("*raw\n:PREROUTING ACCEPT [0:0]\n{rules}COMMIT\n"));
        let docker_29 = |addresses: &[&str]| {
            let rule = |address: &&str| {
                format!(
                    r#",{{"rule":{{"family":"ip","table":"docker-bridges","chain":"raw-PREROUTING","handle":7,"expr":[{{"match":{{"op":"==","left":{{"payload":{{"protocol":"ip","field":"daddr"}}}},"right":"{address}"}}}},{{"match":{{"op":"!=","left":{{"meta":{{"key":"iifname"}}}},"right":"docker0"}}}},{{"counter":{{"packets":0,"bytes":0}}}},{{"drop":null}}],"comment":"DROP DIRECT ACCESS"}}}}"#
                )
            };
            let rules: String = addresses.iter().map(rule).collect();
            let mut ruleset = Ruleset::default();
            ruleset.add_listing(&format!(
                r#"{{"nftables":[{{"chain":{{"family":"ip","table":"docker-bridges","name":"raw-PREROUTING","handle":1,"type":"filter","hook":"prerouting","prio":-300,"policy":"accept"}}}}{rules}]}}"#
            ));
            ruleset
        };
        let direct = "-A PREROUTING -d 10.1.9.3/32 ! -i docker0 -j DROP\n";
        let accept = "-A PREROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j ACCEPT\n";
        let all_but_two = "-A PREROUTING -d 10.1.9.128/25 -j ACCEPT\n-A PREROUTING -d 10.1.9.0/26 -j ACCEPT\n\
             -A PREROUTING ! -i docker0 -j DROP\n";
        for (what, ruleset, told, more) in [
            ("docker 29", docker_29(&["10.1.9.3", "10.1.9.4"]), &["10.1.9.3/32", "10.1.9.4/32"][..], 1),
            ("docker 28", raw(direct), &["10.1.9.3/32"], 0),
            ("ours before it", raw(&format!("{accept}{direct}")), &[], 0),
            ("all but some", raw(all_but_two), &["10.1.9.64/26"], 0),
            ("another node's", raw("-A PREROUTING -d 10.1.63.0/24 -j DROP\n"), &["10.1.63.0/24"], 0),
            ("a pod elsewhere", raw("-A PREROUTING -d 10.1.63.7/32 -j DROP\n"), &[], 0),
            ("a broadcast", raw("-A PREROUTING -d 10.1.9.255/32 -j DROP\n"), &[], 0),
            ("a port", raw("-A PREROUTING -d 10.1.9.3/32 -p tcp -m tcp --dport 22 -j DROP\n"), &[], 0),
            ("all", raw("-A PREROUTING ! -i docker0 -j DROP\n"), &[], 0),
        ] {
            let found = cut_off(&ruleset, &packets(), OURS.parse().unwrap(), Traffic::Pods, &overlay()).await;
            let to: Vec<String> = found.iter().flat_map(|one| &one.to).map(Ipv4Net::to_string).collect();
            assert_eq!(to, told, "{what}");
            assert_eq!(found.iter().map(|one| one.more).sum::<usize>(), more, "{what}");
        }
    }

    #[tokio::test]
    async fn what_drops_some_packets_of_any_connection_is_told_apart() {
        let matches = |left: &str, op: &str, right: &str| {
            format!(r#"{{"match":{{"op":"{op}","left":{left},"right":{right}}}}}"#)
        };
        for (rule, counts) in [
            (matches(r#"{"meta":{"key":"length"}}"#, ">", "1400"), (1, 0)),
            (matches(r#"{"payload":{"protocol":"ip","field":"length"}}"#, ">", "1400"), (1, 0)),
            (matches(r#"{"meta":{"key":"random"}}"#, "<", "4096"), (1, 0)),
            (matches(r#"{"payload":{"protocol":"tcp","field":"dport"}}"#, "==", "22"), (0, 1)),
        ] {
            let mut ruleset = Ruleset::default();
            ruleset.add_listing(&format!(
                r#"{{"nftables":[{{"chain":{{"family":"inet","table":"site","name":"fw","handle":1,"type":"filter","hook":"forward","prio":0,"policy":"accept"}}}},{{"rule":{{"family":"inet","table":"site","chain":"fw","handle":7,"expr":[{rule},{{"drop":null}}]}}}}]}}"#
            ));
            let found = findings(&ruleset, &packets(), Traffic::Pods, &overlay()).await;
            assert_eq!((found.of_any.len(), found.partly.len()), counts, "{rule}: {found:?}");
            assert!(found.refusals.is_empty() && found.unread.is_empty(), "{rule}: {found:?}");
        }
    }

    #[tokio::test]
    async fn what_our_own_rules_drop_is_no_finding() {
        let rule = |comment| {
            let rule =
                format!("-A FORWARD -p udp -m udp --dport 8472 -m comment --comment {comment} -j DROP");
            format!("*mangle\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n")
        };
        for (comment, named) in [("overlayd-tunnel-in-tunnel-flannel.1", 0), ("a-sites-own", 1)] {
            let found = findings(&legacy(rule(comment)), &packets(), Traffic::Pods, &overlay()).await;
            assert_eq!((found.partly.len(), found.unread.len()), (named, 0), "{comment}: {found:?}");
        }
    }
}
