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

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::save::{negated, value};
use crate::Desired;
use crate::firewall::policy::{self, Action, Is, KUBE_PROXY_MARK as MARK, Match};

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
    let device = &desired.device;
    let masquerade =
        if desired.masquerade.fully_random && random_fully { MASQUERADE_RANDOMLY } else { "MASQUERADE" };
    // A packet that is accepted goes through no further rule of this variant's nat table. The jump says by which
    // interface it leaves.
    let rules =
        [Some(policy::left_to_kube_proxy()), Some(policy::pod_to_pod(desired)), policy::return_path(desired)];
    let inside = |rule: policy::Rule| policy::Rule { when: Match { leaves: None, ..rule.when }, ..rule };
    let rules = rules.into_iter().flatten().map(inside).map(|rule| line(&rule, rule.word, masquerade));
    let (name, jump) = (nat_chain(device), jump_to_nat(device));
    // By the underlay only what goes from pod to pod is ours to say.
    let by_device = Match { leaves: Some(Is::This(device.clone())), ..Match::default() };
    let mut hooks = vec![format!("{} {jump}", condition(&by_device))];
    hooks
        .extend(policy::pod_to_pod_directly(desired).map(|rule| format!("{} {jump}", condition(&rule.when))));
    let comment = tunnel_in_tunnel(device);
    hooks.extend(policy::from_others_to_a_tunnel(desired).map(|rule| line(&rule, &comment, masquerade)));
    let hook = |rule| Hook { chain: "POSTROUTING", rule, place: Place::BeforeTranslation };
    let mut wanted = Wanted {
        table: "nat",
        hooks: hooks.into_iter().map(hook).collect(),
        chains: vec![Chain { name, rules: rules.collect(), shared: None }],
    };
    let of_flannel = policy::flannels_masquerade(desired);
    if flannels && !of_flannel.is_empty() {
        wanted.chains.push(Chain {
            name: POSTRTG.to_owned(),
            rules: of_flannel.iter().map(|rule| line(rule, MASQ, masquerade)).collect(),
            shared: Some(Shared {
                network: desired.network.trunc().to_string(),
                comment: MASQ,
                first: Some(line(&policy::left_to_kube_proxy(), MASQ, masquerade)),
            }),
        });
        wanted.hooks.push(Hook { chain: "POSTROUTING", rule: jump_to_postrtg(), place: Place::Anywhere });
    }
    wanted
}

/// Forwarding under `--firewall=iptables`: flannel's rules, and what docker 28 makes necessary.
pub(super) fn forward_as_flannel(desired: &Desired) -> Wanted {
    let chain = Chain {
        name: FWD.to_owned(),
        rules: policy::forwarded(desired).iter().map(|rule| filter_line(rule, FORWARD)).collect(),
        shared: Some(Shared { network: desired.network.trunc().to_string(), comment: FORWARD, first: None }),
    };
    forward(desired, chain, jump_to_fwd())
}

/// Forwarding under `--firewall=nftables`: the same in a chain of our own.
pub(super) fn forward_beside_nftables(desired: &Desired) -> Wanted {
    let name = forward_chain(&desired.device);
    let jump = jump_to_forward(&desired.device);
    let rules = policy::forwarded(desired).iter().map(|rule| filter_line(rule, rule.word)).collect();
    forward(desired, Chain { name, rules, shared: None }, jump)
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

/// What pods send to the tunnel's port of a host is dropped. In mangle, since no accept in filter comes before it.
pub(super) fn mangle(desired: &Desired) -> Wanted {
    let comment = tunnel_in_tunnel(&desired.device);
    let rules = policy::from_pods_to_a_tunnel(desired);
    let mut lines: Vec<String> = rules.iter().map(|rule| filter_line(rule, &comment)).collect();
    let hook = |rule, place| Hook { chain: "FORWARD", rule, place };
    // The drop first, so that the exception comes before it also where a chain cannot be listed and all is put at its
    // head.
    let hooks = lines.pop().map_or_else(Vec::new, |drop| {
        let exceptions = lines.into_iter().map(|rule| hook(rule, Place::Before(drop.clone())));
        std::iter::once(hook(drop.clone(), Place::Anywhere)).chain(exceptions).collect()
    });
    Wanted { table: "mangle", chains: Vec::new(), hooks }
}

fn before_dockers_refusal(chain: &'static str, desired: &Desired) -> impl Iterator<Item = Hook> {
    let hook = move |rule| Hook { chain, rule, place: Place::BeforeDockersRefusal };
    direct(desired).into_iter().map(hook)
}

/// Only what comes by the overlay for our own pods, or from pods by the underlay: docker's word on all else
/// stands.
pub(super) fn direct(desired: &Desired) -> Vec<String> {
    let comments = [DIRECT.to_owned(), direct_by_underlay(&desired.device)];
    let rules = policy::for_our_pods(desired).into_iter().zip(comments);
    rules.map(|(rule, comment)| filter_line(&rule, &comment)).collect()
}

/// A rule in the words of iptables, in the order in which `iptables-save` has them, with this comment. `masquerade` is the
/// target that gives packets this host's address.
fn line(rule: &policy::Rule, comment: &str, masquerade: &str) -> String {
    let target = match rule.then {
        Action::Return => "RETURN",
        Action::KeepSource | Action::Accept => "ACCEPT",
        Action::Masquerade => masquerade,
        Action::Drop => "DROP",
    };
    let quote = if comment.contains(' ') { "\"" } else { "" };
    let condition = condition(&rule.when);
    let space = if condition.is_empty() { "" } else { " " };
    format!("{condition}{space}-m comment --comment {quote}{comment}{quote} -j {target}")
}

/// One that translates nothing.
fn filter_line(rule: &policy::Rule, comment: &str) -> String {
    line(rule, comment, "MASQUERADE")
}

/// Which packets, in the words of iptables.
fn condition(when: &Match) -> String {
    let Match { source, destination, arrives, leaves, udp_port, marked, from_this_host } = when;
    let not = |is: bool| if is { "" } else { "! " };
    let words = [
        source.as_ref().map(|is| option("-s", is)),
        destination.as_ref().map(|is| option("-d", is)),
        arrives.as_ref().map(|is| option("-i", is)),
        leaves.as_ref().map(|is| option("-o", is)),
        udp_port.map(|port| format!("-p udp -m udp --dport {port}")),
        marked.map(|is| format!("-m mark {}--mark {MARK:#x}/{MARK:#x}", not(is))),
        from_this_host.map(|is| format!("-m addrtype {}--src-type LOCAL", not(is))),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn option<T: fmt::Display>(name: &str, is: &Is<T>) -> String {
    match is {
        Is::This(value) => format!("{name} {value}"),
        Is::Not(value) => format!("! {name} {value}"),
    }
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
    let own = [nat_chain(device), forward_chain(device), MADE.to_owned()];
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
/// file could be lost while the table lives on.)
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
