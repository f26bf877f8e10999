//! What a rule of iptables comes to for a packet; rules as `iptables-save` writes them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::act::What;
use super::mark::Mark;
use super::packet::{Holds, Packet, Protocol, Way, within};
use super::step::{Context, Step, Verdict};
use crate::firewall::iptables::{value, words};

/// Whether all that `rule` asks for holds.
pub(super) fn holds(rule: &str, context: &Context<'_>) -> Holds {
    let words = words(rule);
    let mut all = Holds::Always;
    let mut module = "";
    let mut at = 0;
    while at < words.len() && !matches!(words[at], "-j" | "-g") {
        let negated = words[at] == "!";
        at += usize::from(negated);
        let Some(option) = words.get(at).copied() else { break };
        // A module's own options follow its name, and end with the next one's.
        let value = words.get(at + 1).copied().unwrap_or_default();
        let (length, one) = match option {
            "-m" => {
                module = value;
                (2, if MODULES.contains(&value) { Holds::Always } else { Holds::Unknown })
            }
            _ => condition(module, option, value, context),
        };
        all = all.and(if negated { one.negated() } else { one });
        at += length;
    }
    all
}

/// Modules of which at least some options are understood.
const MODULES: [&str; 14] = [
    "addrtype",
    "comment",
    "conntrack",
    "icmp",
    "iprange",
    "mark",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "state",
    "tcp",
    "udp",
    "udplite",
];

/// How many words an option takes, and whether what it asks for holds.
fn condition(module: &str, option: &str, wanted: &str, context: &Context<'_>) -> (usize, Holds) {
    let packet = context.packet;
    let two = |holds| (2, holds);
    match option {
        "-s" => two(is_in_network(wanted, |first, last| within(&packet.from, first, last))),
        "-d" => two(is_in_network(wanted, |first, last| context.to.are_within(first, last))),
        "-i" => two(Holds::of(is_named(wanted, context.iif))),
        "-o" => two(Holds::of(is_named(wanted, context.oif))),
        "-p" => two(is_protocol(wanted, packet.protocol)),
        // Later fragments.
        "-f" => (1, Holds::Partly),
        "--comment" => two(Holds::Always),
        "--ctstate" | "--state" => two(is_in_state(wanted, context)),
        "--mark" if module == "mark" => two(is_marked(wanted, context.mark)),
        "--sport" | "--source-port" | "--sports" | "--source-ports" => {
            two(is_port(wanted, packet, packet.source_port))
        }
        "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
            two(is_port(wanted, packet, packet.port))
        }
        "--ports" => {
            let of = |port| is_port(wanted, packet, port);
            two(of(packet.source_port).or(of(packet.port)))
        }
        "--src-type" => two(is_kind(wanted, &packet.way, true)),
        "--dst-type" => two(is_kind(wanted, &packet.way, false)),
        "--limit-iface-in" | "--limit-iface-out" => (1, Holds::Always),
        "--src-range" => two(is_in_range(wanted, |first, last| within(&packet.from, first, last))),
        "--dst-range" => two(is_in_range(wanted, |first, last| context.to.are_within(first, last))),
        "--uid-owner" => two(match packet.way {
            Way::Sent { user, .. } => is_owner(wanted, user),
            _ => Holds::Never,
        }),
        "--tcp-flags" => (3, Holds::Partly),
        "--syn" => (1, Holds::Partly),
        "--icmp-type" | "--pkt-type" => two(Holds::Partly),
        // What this host routes is not bridged.
        "--physdev-is-bridged" => (1, Holds::Never),
        "--physdev-is-in" | "--physdev-is-out" => (1, Holds::Unknown),
        // Options of other modules, each of which is unknown already; their values are no options.
        _ => (1, Holds::Unknown),
    }
}

fn is_in_network(wanted: &str, are_within: impl Fn(u32, u32) -> Holds) -> Holds {
    let network = wanted.parse::<Ipv4Net>().or_else(|_| wanted.parse::<Ipv4Addr>().map(Ipv4Net::from));
    match network {
        Ok(network) => are_within(network.network().into(), network.broadcast().into()),
        Err(_) => Holds::Unknown,
    }
}

fn is_in_range(wanted: &str, are_within: impl Fn(u32, u32) -> Holds) -> Holds {
    let (first, last) = wanted.split_once('-').unwrap_or((wanted, wanted));
    match (first.parse::<Ipv4Addr>(), last.parse::<Ipv4Addr>()) {
        (Ok(first), Ok(last)) => are_within(first.into(), last.into()),
        _ => Holds::Unknown,
    }
}

/// A name that ends in `+` stands for all that begin so.
fn is_named(wanted: &str, device: &str) -> bool {
    wanted.strip_suffix('+').map_or(wanted == device, |prefix| device.starts_with(prefix))
}

fn is_protocol(wanted: &str, protocol: Option<Protocol>) -> Holds {
    match protocol {
        _ if matches!(wanted, "all" | "0") => Holds::Always,
        None => Holds::Partly,
        Some(protocol) => Holds::of(wanted == protocol.name() || wanted.parse() == Ok(protocol.number())),
    }
}

fn is_in_state(wanted: &str, context: &Context<'_>) -> Holds {
    context.packet.connection.is_one_of(&wanted.split(',').collect::<Vec<_>>(), context.untracked)
}

/// One user, or a range of them.
fn is_owner(wanted: &str, user: Option<u32>) -> Holds {
    let (first, last) = wanted.split_once('-').unwrap_or((wanted, wanted));
    match (first.parse::<u32>(), last.parse::<u32>(), user) {
        (Ok(first), Ok(last), Some(user)) => Holds::of((first..=last).contains(&user)),
        _ => Holds::Unknown,
    }
}

/// A value with a mask, or without.
fn masked(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn is_marked(wanted: &str, mark: Mark) -> Holds {
    masked(wanted).map_or(Holds::Unknown, |(value, mask)| mark.has(value, mask))
}

fn is_port(wanted: &str, packet: &Packet, port: Option<u16>) -> Holds {
    if packet.protocol == Some(Protocol::Icmp) {
        return Holds::Never;
    }
    let Some(port) = port else { return Holds::Partly };
    let one = |range: &str| {
        let (from, to) = range.split_once(':').unwrap_or((range, range));
        let limit = |text: &str, open| if text.is_empty() { Ok(open) } else { text.parse::<u16>() };
        match (limit(from, 0), limit(to, u16::MAX)) {
            (Ok(from), Ok(to)) => Holds::of((from..=to).contains(&port)),
            _ => Holds::Unknown,
        }
    };
    wanted.split(',').map(one).fold(Holds::Never, Holds::or)
}

/// Whether the source or the destination is of the kind that `addrtype` asks for.
fn is_kind(wanted: &str, way: &Way, source: bool) -> Holds {
    let local = matches!((way, source), (Way::Sent { .. }, true) | (Way::Received { .. }, false));
    let kind = if local { "LOCAL" } else { "UNICAST" };
    Holds::of(wanted.split(',').any(|wanted| wanted == kind))
}

/// What `rule` does to packets for which it holds.
pub(super) fn target(rule: &str, context: &Context<'_>) -> Step {
    let words = words(rule);
    if let Some(chain) = value(&words, "-g") {
        return Step::Verdict(Verdict::Goto(chain.to_owned()));
    }
    let Some(target) = value(&words, "-j") else { return Step::Nothing };
    match target {
        "ACCEPT" => Step::Verdict(Verdict::Accept),
        "DROP" | "REJECT" => Step::Verdict(Verdict::Drop),
        "RETURN" => Step::Verdict(Verdict::Return),
        "QUEUE" | "NFQUEUE" | "SYNPROXY" => Step::Verdict(Verdict::Unclear),
        "NOTRACK" => Step::Untracks,
        "CT" if words.contains(&"--notrack") => Step::Untracks,
        "SET" if words.contains(&"--map-mark") => Step::Mark(Mark::UNKNOWN),
        "SET" if words.iter().any(|word| word.starts_with("--map-") && *word != "--map-set") => Step::Changes,
        // With CT, in a zone of its own.
        "LOG" | "NFLOG" | "ULOG" | "TRACE" | "AUDIT" | "LED" | "RATEEST" | "SET" | "IDLETIMER" | "CT" => {
            Step::Nothing
        }
        "MARK" => Step::Mark(new_mark(&words, context.mark)),
        "CONNMARK" if words.contains(&"--restore-mark") => Step::Mark(restored(&words, context.mark)),
        "HMARK" => Step::Mark(Mark::UNKNOWN),
        "CONNMARK" | "CONNSECMARK" | "SECMARK" | "DSCP" | "TOS" | "TTL" | "ECN" | "TCPMSS"
        | "TCPOPTSTRIP" | "CLASSIFY" | "CHECKSUM" | "TEE" => Step::Changes,
        "SNAT" | "MASQUERADE" | "SAME" => Step::Binds { does: Some(What::Changes) },
        "DNAT" | "REDIRECT" | "NETMAP" | "TPROXY" => Step::Binds { does: Some(What::Diverts) },
        chain => Step::Verdict(Verdict::Jump(chain.to_owned())),
    }
}

/// What the mark becomes.
fn new_mark(words: &[&str], mark: Mark) -> Mark {
    let set = |option: &str| value(words, option).and_then(masked);
    if let Some((value, mask)) = set("--set-xmark") {
        return mark.and(!mask).xor(value);
    }
    if let Some((value, mask)) = set("--set-mark") {
        return mark.and(!mask).or_bits(value);
    }
    let (and, or, xor) = (set("--and-mark"), set("--or-mark"), set("--xor-mark"));
    match (and, or, xor) {
        (Some((bits, _)), ..) => mark.and(bits),
        (_, Some((bits, _)), _) => mark.or_bits(bits),
        (.., Some((bits, _))) => mark.xor(bits),
        _ => Mark::UNKNOWN,
    }
}

/// What the mark becomes that is the connection's from now on, but for the bits that are left out.
fn restored(words: &[&str], mark: Mark) -> Mark {
    let mask = |option: &str| value(words, option).and_then(masked).map_or(u32::MAX, |(mask, _)| mask);
    let shifts = words.iter().any(|word| word.ends_with("-shift-mark"));
    mark.opened(if shifts { u32::MAX } else { mask("--nfmask") | mask("--ctmask") })
}
