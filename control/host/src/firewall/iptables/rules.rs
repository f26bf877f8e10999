//! Which chains and rules iptables should have, spelled as `iptables-save` spells them.
//!
//! Two kinds of chain:
//!
//! - FLANNEL-POSTRTG and FLANNEL-FWD hold, rule by rule, what flannel (0.28, `pkg/trafficmngr/iptables`) puts
//!   there. As with flannel, all daemons of a host share them: ours are the rules that name our network.
//! - OVERLAYD-NAT-`DEVICE` and OVERLAYD-FWD-`DEVICE` hold what flannel does not have. They are one daemon's
//!   own, and the former says which network's rules in the shared chains are that daemon's.
//!
//! nftables keeps sources in a table of its own, and needs of iptables only what it cannot overrule: the drops.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::save::{negated, value};
use crate::Desired;

/// What one table should have.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The table's name.
    pub(super) table: &'static str,
    /// Chains and what is in them.
    pub(super) chains: Vec<Chain>,
    /// Rules in built-in chains, each to be there once.
    pub(super) hooks: Vec<Hook>,
}

/// A chain that is not built in.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Our rules, in order.
    pub(super) rules: Vec<String>,
    /// What the sharing of it needs; `None` if it is ours alone.
    pub(super) shared: Option<Shared>,
}

/// How our rules in a shared chain are told from others'.
#[derive(Debug)]
pub(super) struct Shared {
    /// Ours name this network.
    pub(super) network: String,
    /// The comment of all rules there.
    pub(super) comment: &'static str,
    /// A rule that stands before everybody's.
    pub(super) first: Option<String>,
}

/// A rule in a built-in chain.
#[derive(Debug, Clone)]
pub(super) struct Hook {
    pub(super) chain: &'static str,
    pub(super) rule: String,
    pub(super) place: Place,
}

/// Where in its chain a rule must stand. One that nothing requires to be earlier stays wherever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Anywhere.
    Anywhere,
    /// Before whatever may drop this traffic.
    BeforeDrops(Traffic),
    /// Before what may translate the source of our packets.
    BeforeTranslation,
    /// Before docker's refusal (28 and later) of what is routed to containers; without one, it is not wanted.
    BeforeDockersRefusal,
    /// Before this rule of ours, to which it is an exception.
    Before(String),
}

/// What goes from pod to pod through this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Its sources and destinations lie here.
    network: Ipv4Net,
    /// An interface by which it neither comes nor goes.
    elsewhere: Option<String>,
}

impl Traffic {
    fn of(desired: &Desired) -> Self {
        let through = |name: &String| desired.direct.as_ref() != Some(name);
        Self { network: desired.network.trunc(), elsewhere: Some(desired.underlay.clone()).filter(through) }
    }

    /// Whether a rule of these words may be about it, as far as addresses and interfaces tell.
    pub(super) fn may_match(&self, words: &[&str]) -> bool {
        let parse = |text: &str| {
            text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from)).ok()
        };
        let addresses = ["-s", "-d"].into_iter().all(|option| {
            let inside = value(words, option).and_then(parse);
            let outside = negated(words, option).and_then(parse);
            inside.is_none_or(|net| net.contains(&self.network) || self.network.contains(&net))
                && outside.is_none_or(|net| !net.contains(&self.network))
        });
        let interfaces = ["-i", "-o"].into_iter().all(|option| {
            let name = value(words, option);
            name.is_none() || name != self.elsewhere.as_deref() && name != Some("lo")
        });
        addresses && interfaces
    }
}

/// Sources, as `--firewall=iptables` has them. flannel's rules are only for the default variant, where flannel
/// has them; ours are for each variant that translates.
pub(super) fn nat(desired: &Desired, random_fully: bool, flannels: bool) -> Wanted {
    let Desired { device, masquerade, .. } = desired;
    let (network, bound) = (desired.network.trunc(), desired.bound());
    let target = if masquerade.fully_random && random_fully { MASQUERADE_RANDOMLY } else { "MASQUERADE" };

    // As in nftables (`../nft.rs`), which explains how these agree with flannel's six. A packet that is accepted
    // goes through no further rule of this variant's nat table.
    let mut own = vec![
        format!("-m mark --mark {KUBE_PROXY_MARK} -m comment --comment marked-by-kube-proxy -j RETURN"),
        format!("-s {bound} -d {network} -m comment --comment pod-to-pod -j ACCEPT"),
    ];
    if masquerade.return_path {
        own.push(format!("! -s {network} -m comment --comment from-outside-into-the-overlay -j {target}"));
    }
    let name = nat_chain(device);
    let jump = jump_to_nat(device);
    // By the underlay only what goes from pod to pod is ours to say.
    let mut hooks = vec![format!("-o {device} {jump}")];
    hooks.extend(desired.direct.as_ref().map(|direct| format!("-s {bound} -d {network} -o {direct} {jump}")));
    hooks.extend(from_others_to_a_tunnel(desired));
    let hook = |rule| Hook { chain: "POSTROUTING", rule, place: Place::BeforeTranslation };
    let mut wanted = Wanted {
        table: "nat",
        hooks: hooks.into_iter().map(hook).collect(),
        chains: vec![Chain { name, rules: own, shared: None }],
    };
    if masquerade.ip_masq && flannels {
        wanted.chains.push(flannels_masquerade(network, desired.pod_subnet.trunc(), target));
        wanted.hooks.push(Hook { chain: "POSTROUTING", rule: jump_to_postrtg(), place: Place::Anywhere });
    }
    wanted
}

/// What others send to the tunnel's port of a host keeps its source, as in nftables (`../nft.rs`, which explains it). What
/// kube-proxy has marked is to be translated.
fn from_others_to_a_tunnel(desired: &Desired) -> Option<String> {
    let (device, port) = (&desired.device, desired.tunnel_port.filter(|_| desired.forward_rules)?);
    let comment = tunnel_in_tunnel(device);
    Some(format!(
        "! -o {device} -p udp -m udp --dport {port} -m mark ! --mark {KUBE_PROXY_MARK} -m addrtype ! --src-type LOCAL -m comment --comment {comment} -j ACCEPT"
    ))
}

/// flannel's six rules of `--ip-masq`.
fn flannels_masquerade(network: Ipv4Net, pods: Ipv4Net, target: &str) -> Chain {
    let comment = format!("-m comment --comment \"{MASQ}\"");
    Chain {
        name: POSTRTG.to_owned(),
        rules: vec![
            format!("-s {pods} -d {network} {comment} -j RETURN"),
            format!("-s {network} -d {pods} {comment} -j RETURN"),
            format!("! -s {network} -d {pods} {comment} -j RETURN"),
            format!("-s {network} ! -d {MULTICAST} {comment} -j {target}"),
            format!("! -s {network} -d {network} {comment} -j {target}"),
        ],
        shared: Some(Shared {
            network: network.to_string(),
            comment: MASQ,
            first: Some(format!("-m mark --mark {KUBE_PROXY_MARK} {comment} -j RETURN")),
        }),
    }
}

/// Forwarding under `--firewall=iptables`: flannel's rules, and what docker 28 makes necessary.
pub(super) fn forward_as_flannel(desired: &Desired) -> Wanted {
    let network = desired.network.trunc();
    let comment = format!("-m comment --comment \"{FORWARD}\"");
    let chain = Chain {
        name: FWD.to_owned(),
        rules: vec![format!("-s {network} {comment} -j ACCEPT"), format!("-d {network} {comment} -j ACCEPT")],
        shared: Some(Shared { network: network.to_string(), comment: FORWARD, first: None }),
    };
    forward(desired, chain, jump_to_fwd())
}

/// Forwarding under `--firewall=nftables`: the same in a chain of our own.
pub(super) fn forward_beside_nftables(desired: &Desired) -> Wanted {
    let network = desired.network.trunc();
    let name = forward_chain(&desired.device);
    let jump = jump_to_forward(&desired.device);
    let chain = Chain {
        name,
        // Single words, which every version of iptables lists without quotes.
        rules: vec![
            format!("-s {network} -m comment --comment from-the-overlay-network -j ACCEPT"),
            format!("-d {network} -m comment --comment to-the-overlay-network -j ACCEPT"),
        ],
        shared: None,
    };
    forward(desired, chain, jump)
}

fn forward(desired: &Desired, chain: Chain, jump: String) -> Wanted {
    let mut hooks =
        vec![Hook { chain: "FORWARD", rule: jump, place: Place::BeforeDrops(Traffic::of(desired)) }];
    hooks.extend(before_dockers_refusal("FORWARD", desired));
    Wanted { table: "filter", chains: vec![chain], hooks }
}

/// Docker 28 drops what is routed to a container from elsewhere also before any forwarding.
pub(super) fn raw(desired: &Desired) -> Wanted {
    Wanted {
        table: "raw",
        chains: Vec::new(),
        hooks: before_dockers_refusal("PREROUTING", desired).collect(),
    }
}

/// What pods send to the tunnel's port of a host is dropped, as in nftables (`../nft.rs`, which says what is not). In
/// mangle, since no accept in filter comes before it.
pub(super) fn mangle(desired: &Desired) -> Wanted {
    let hooks = desired.tunnel_port.map_or_else(Vec::new, |port| from_pods_to_a_tunnel(desired, port));
    Wanted { table: "mangle", chains: Vec::new(), hooks }
}

fn from_pods_to_a_tunnel(desired: &Desired, port: u16) -> Vec<Hook> {
    let Desired { device, direct, .. } = desired;
    let (network, pods, bound) = (desired.network.trunc(), desired.pod_subnet.trunc(), desired.bound());
    let (to_port, comment) = (format!("-p udp -m udp --dport {port}"), tunnel_in_tunnel(device));
    let hook = |rule, place| Hook { chain: "FORWARD", rule, place };
    let drop =
        format!("-s {network} ! -d {pods} ! -o {device} {to_port} -m comment --comment {comment} -j DROP");
    let exception = direct.as_ref().map(|direct| {
        let unmarked = format!("-m mark ! --mark {KUBE_PROXY_MARK}");
        let rule = format!(
            "-s {bound} -d {network} -o {direct} {to_port} {unmarked} -m comment --comment {comment} -j ACCEPT"
        );
        hook(rule, Place::Before(drop.clone()))
    });
    // In this order, so that the exception comes first also where a chain cannot be listed and all is put at its head.
    std::iter::once(hook(drop, Place::Anywhere)).chain(exception).collect()
}

fn before_dockers_refusal(chain: &'static str, desired: &Desired) -> impl Iterator<Item = Hook> {
    let hook = move |rule| Hook { chain, rule, place: Place::BeforeDockersRefusal };
    direct(desired).into_iter().map(hook)
}

/// Only what comes by the overlay for our own pods, or from pods by the underlay: docker's word on all else
/// stands.
pub(super) fn direct(desired: &Desired) -> Vec<String> {
    let (Desired { device, direct, .. }, pods) = (desired, desired.pod_subnet.trunc());
    let mut rules = vec![format!("-d {pods} -i {device} -m comment --comment {DIRECT} -j ACCEPT")];
    rules.extend(direct.as_ref().map(|underlay| {
        let (network, comment) = (desired.network.trunc(), direct_by_underlay(device));
        format!("-s {network} -d {pods} -i {underlay} -m comment --comment {comment} -j ACCEPT")
    }));
    rules
}

/// The comment of the rule for what comes by the underlay, whose name does not say whose rule it is.
pub(super) fn direct_by_underlay(device: &str) -> String {
    format!("{DIRECT}-{device}")
}

/// The comment of the rules of [`mangle`].
pub(super) fn tunnel_in_tunnel(device: &str) -> String {
    format!("{TUNNEL_IN_TUNNEL}{device}")
}

/// All chains in which the daemon of `device` may have rules.
pub(super) fn chains_of(device: &str) -> Vec<String> {
    let own = [nat_chain(device), forward_chain(device)];
    own.into_iter().chain(flannels_chains()).collect()
}

/// The rules that lead to them, as far as the device tells what they are.
pub(super) fn jumps_of(device: &str) -> impl Iterator<Item = Hook> {
    let own = [
        ("POSTROUTING", format!("-o {device} {}", jump_to_nat(device))),
        ("FORWARD", jump_to_forward(device)),
    ];
    own.into_iter().map(|(chain, rule)| Hook { chain, rule, place: Place::Anywhere }).chain(flannels_jumps())
}

/// The rules that lead to flannel's chains.
pub(super) fn flannels_jumps() -> impl Iterator<Item = Hook> {
    let jumps = [("POSTROUTING", jump_to_postrtg()), ("FORWARD", jump_to_fwd())];
    jumps.into_iter().map(|(chain, rule)| Hook { chain, rule, place: Place::Anywhere })
}

fn jump_to_postrtg() -> String {
    format!("-m comment --comment \"{MASQ}\" -j {POSTRTG}")
}

fn jump_to_fwd() -> String {
    format!("-m comment --comment \"{FORWARD}\" -j {FWD}")
}

fn jump_to_nat(device: &str) -> String {
    format!("-m comment --comment overlayd-nat -j {}", nat_chain(device))
}

fn jump_to_forward(device: &str) -> String {
    format!("-m comment --comment overlayd-forward -j {}", forward_chain(device))
}

/// flannel's chains, which all daemons share.
pub(super) fn flannels_chains() -> [String; 2] {
    [POSTRTG.to_owned(), FWD.to_owned()]
}

/// The chain of a daemon's own NAT rules. 13 characters and a device's name (15 at most) just make the 28 that
/// iptables allows.
pub(super) fn nat_chain(device: &str) -> String {
    format!("{NAT_PREFIX}{device}")
}

/// The chain of a daemon's own forwarding rules.
pub(super) fn forward_chain(device: &str) -> String {
    format!("OVERLAYD-FWD-{device}")
}

/// An empty chain that says that the table was not there before the first daemon's rules: it goes with the last one's. (A
/// table cannot bear a mark itself, and a file may be lost while the table lives on.)
pub(super) const MADE: &str = "OVERLAYD-MADE";
/// What the comments of the rules in built-in chains begin with, but for flannel's.
pub(super) const COMMENT_PREFIX: &str = "overlayd-";

/// What the comment of the rules of [`mangle`] begins with.
pub(in crate::firewall) const TUNNEL_IN_TUNNEL: &str = "overlayd-tunnel-in-tunnel-";
/// What the names of all daemons' own NAT chains begin with.
pub(super) const NAT_PREFIX: &str = "OVERLAYD-NAT-";

/// flannel's chain in nat.
pub(super) const POSTRTG: &str = "FLANNEL-POSTRTG";
/// flannel's chain in filter.
pub(super) const FWD: &str = "FLANNEL-FWD";
/// The comment of flannel's rules in nat.
pub(super) const MASQ: &str = "flanneld masq";
/// The comment of flannel's rules in filter.
pub(super) const FORWARD: &str = "flanneld forward";

/// The comment of the rules that stand before docker's refusal.
pub(super) const DIRECT: &str = "overlayd-direct";

/// Set by kube-proxy on what it will masquerade (its `--iptables-masquerade-bit`, 14 by default).
const KUBE_PROXY_MARK: &str = "0x4000/0x4000";

/// RFC 5771.
const MULTICAST: &str = "224.0.0.0/4";

const MASQUERADE_RANDOMLY: &str = "MASQUERADE --random-fully";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_device_name_fits() {
        assert_eq!(nat_chain("abcdefghijklmno").len(), 28);
        assert_eq!(forward_chain("abcdefghijklmno").len(), 28);
    }
}
