//! What a statement of nftables comes to for a packet; statements as `nft -j` writes them (libnftables-json(5)).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::Value;

use super::act::What;
use super::mark::Mark;
use super::packet::{Connection, Destinations, Holds, Packet, Protocol, Way, within};
use super::rules::Lasts;
use super::step::{Context, Layer, Step, Verdict};

/// What `statement` comes to.
pub(super) fn step(statement: &Value, context: &Context<'_>) -> Step {
    // Newer ones write a statement without arguments as its name.
    let (name, value) = match statement {
        Value::String(name) => (name.as_str(), &Value::Null),
        Value::Object(members) => match members.iter().next() {
            Some((name, value)) => (name.as_str(), value),
            None => return Step::Unclear,
        },
        _ => return Step::Unclear,
    };
    if let Some(verdict) = verdict(name, value) {
        return Step::Verdict(verdict);
    }
    match name {
        "match" => Step::Condition(matches(value, context)),
        "vmap" => verdicts(value, context),
        "counter" | "log" | "flow" | "last" => Step::Nothing,
        "notrack" => Step::Untracks,
        "set" | "map" if value["stmt"].is_null() => Step::Nothing,
        "limit" | "quota" | "ct count" | "meter" | "set" | "map" => Step::Condition(Holds::Unknown),
        "mangle" => mangle(value, context),
        "snat" => {
            let keeps = is_field(&value["addr"], "ip", "saddr") && value["port"].is_null();
            Step::Binds { does: (!keeps).then_some(What::Changes) }
        }
        "masquerade" => Step::Binds { does: Some(What::Changes) },
        "dnat" | "redirect" | "tproxy" | "fwd" => Step::Binds { does: Some(What::Diverts) },
        "dup" | "ct helper" | "ct timeout" | "ct expectation" | "secmark" | "tcp option reset" => {
            Step::Changes
        }
        "queue" => Step::Verdict(Verdict::Unclear),
        _ => Step::Unclear,
    }
}

fn verdict(name: &str, value: &Value) -> Option<Verdict> {
    let target = || value["target"].as_str().unwrap_or_default().to_owned();
    Some(match name {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        _ => return None,
    })
}

fn verdicts(value: &Value, context: &Context<'_>) -> Step {
    let subject = subject(&value["key"], context);
    if subject.is_absent() {
        return Step::Condition(Holds::Never);
    }
    let Some(set) = elements(&value["data"], context) else { return Step::Unclear };
    let mut verdicts = Vec::new();
    let mut otherwise = None;
    let mut none_yet = Holds::Always;
    for pair in set.list {
        let [element, data] = pair.as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Step::Unclear;
        };
        let found = data.as_object().and_then(|data| data.iter().next());
        let Some(verdict) = found.and_then(|(name, value)| verdict(name, value)) else {
            return Step::Unclear;
        };
        if element == "*" {
            otherwise = Some(verdict);
            continue;
        }
        let holds = set.lasts.doubt(subject.is(element));
        if holds != Holds::Never {
            none_yet = none_yet.and(holds.negated());
            verdicts.push((holds, verdict));
        }
    }
    if let Some(verdict) = otherwise.filter(|_| none_yet != Holds::Never) {
        verdicts.push((none_yet, verdict));
    }
    Step::Verdicts(verdicts)
}

fn mangle(value: &Value, context: &Context<'_>) -> Step {
    let key = &value["key"];
    match key["meta"]["key"].as_str() {
        Some("mark") => Step::Mark(new_mark(&value["value"], context)),
        Some("nftrace" | "pkttype" | "rtclassid") => Step::Nothing,
        _ => Step::Changes,
    }
}

/// The mark that an expression comes to.
fn new_mark(expression: &Value, context: &Context<'_>) -> Mark {
    match (expression.as_u64(), subject(expression, context)) {
        (Some(number), _) | (_, Subject::Number(number)) => Mark::is(number as u32),
        (_, Subject::Mark(mark)) => mark,
        _ => Mark::UNKNOWN,
    }
}

fn matches(value: &Value, context: &Context<'_>) -> Holds {
    let subject = subject(&value["left"], context);
    // The expression ends the rule.
    if subject.is_absent() {
        return Holds::Never;
    }
    let right = &value["right"];
    match value["op"].as_str() {
        Some("==" | "in") => is_in(&subject, right, context),
        Some("!=" | "!") => is_in(&subject, right, context).negated(),
        Some(operator @ ("<" | ">" | "<=" | ">=")) => match (subject.number(), &subject, right.as_u64()) {
            (Some(is), _, Some(wanted)) => Holds::of(match operator {
                "<" => is < wanted,
                ">" => is > wanted,
                "<=" => is <= wanted,
                _ => is >= wanted,
            }),
            (_, Subject::Open, Some(_)) => Holds::Partly,
            _ => Holds::Unknown,
        },
        _ => Holds::Unknown,
    }
}

/// What a packet has where an expression asks.
#[derive(Debug)]
enum Subject<'a> {
    Sources(&'a [Ipv4Net]),
    Destinations(Destinations<'a>),
    Number(u64),
    Mark(Mark),
    /// A device's name.
    Device(&'a str),
    /// One of the names that nft has for values.
    Name(&'static str),
    Protocol(Protocol),
    /// A connection's state, and whether there is none.
    State(Connection, Holds),
    /// A connection's flags: nobody has translated the addresses that are described.
    Untranslated,
    Several(Vec<Subject<'a>>),
    /// Something that the description leaves open.
    Open,
    /// What packets of this kind do not have: the rule does not match.
    Absent,
    /// Something that cannot be evaluated.
    Unknown,
}

fn subject<'a>(expression: &Value, context: &Context<'a>) -> Subject<'a> {
    let Some((name, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
        return Subject::Unknown;
    };
    match name.as_str() {
        // Of what a tunnel carries.
        _ if !value["tunnel"].is_null() => Subject::Unknown,
        "payload" => payload(value, context),
        "meta" => meta(value["key"].as_str().unwrap_or_default(), context),
        "ct" => connection(value, context),
        "fib" => route(value, context),
        "concat" => {
            let parts = value.as_array().map(Vec::as_slice).unwrap_or_default();
            Subject::Several(parts.iter().map(|part| subject(part, context)).collect())
        }
        "&" | "|" | "^" | "<<" | ">>" => combined(name, value, context),
        "exthdr" => Subject::Absent,
        "tcp option" | "sctp chunk" | "ip option" => Subject::Open,
        _ => Subject::Unknown,
    }
}

fn combined<'a>(operator: &str, operands: &Value, context: &Context<'a>) -> Subject<'a> {
    let operands = operands.as_array().map(Vec::as_slice).unwrap_or_default();
    let [first, rest @ ..] = operands else { return Subject::Unknown };
    let mut left = subject(first, context);
    for operand in rest {
        let address = operand.as_str().and_then(|text| text.parse::<Ipv4Addr>().ok()).map(u32::from);
        let right = operand.as_u64().or(address.map(u64::from));
        left = match (left, right) {
            (Subject::Number(left), Some(right)) => Subject::Number(match operator {
                "&" => left & right,
                "|" => left | right,
                "^" => left ^ right,
                "<<" => left.checked_shl(right as u32).unwrap_or(0) & u64::from(u32::MAX),
                _ => left.checked_shr(right as u32).unwrap_or(0),
            }),
            (Subject::Mark(mark), Some(right)) => Subject::Mark(match (operator, right as u32) {
                ("&", bits) => mark.and(bits),
                ("|", bits) => mark.or_bits(bits),
                ("^", bits) => mark.xor(bits),
                ("<<", by) => mark.map(|bits| bits.checked_shl(by).unwrap_or(0)),
                (_, by) => mark.map(|bits| bits.checked_shr(by).unwrap_or(0)),
            }),
            (Subject::Absent, _) => Subject::Absent,
            (Subject::Open | Subject::Sources(_) | Subject::Destinations(_) | Subject::Protocol(_), _) => {
                Subject::Open
            }
            _ => Subject::Unknown,
        };
    }
    left
}

fn payload<'a>(value: &Value, context: &Context<'a>) -> Subject<'a> {
    let packet = context.packet;
    let field = value["field"].as_str().unwrap_or_default();
    match value["protocol"].as_str() {
        Some("ip") => match field {
            "saddr" => Subject::Sources(&packet.from),
            "daddr" => Subject::Destinations(context.to),
            "protocol" => protocol(packet),
            "version" => Subject::Number(4),
            _ => Subject::Open,
        },
        Some("ip6" | "icmpv6" | "arp" | "igmp") => Subject::Absent,
        Some("ether") if matches!(context.layer, Layer::Device | Layer::Bridge) && field == "type" => {
            Subject::Name("ip")
        }
        Some("ether") => Subject::Open,
        Some(transport @ ("tcp" | "udp" | "icmp")) => match packet.protocol {
            Some(protocol) if protocol.name() != transport => Subject::Absent,
            Some(_) => port(field, packet),
            None => Subject::Open,
        },
        Some("th") => match packet.protocol {
            Some(Protocol::Tcp | Protocol::Udp) => port(field, packet),
            _ => Subject::Open,
        },
        Some("sctp" | "dccp" | "udplite" | "esp" | "ah" | "comp" | "gre") if packet.protocol.is_some() => {
            Subject::Absent
        }
        Some("sctp" | "dccp" | "udplite" | "esp" | "ah" | "comp" | "gre") => Subject::Open,
        _ => Subject::Unknown,
    }
}

fn port<'a>(field: &str, packet: &Packet) -> Subject<'a> {
    let port = match field {
        "sport" => packet.source_port,
        "dport" => packet.port,
        _ => None,
    };
    port.map_or(Subject::Open, |port| Subject::Number(u64::from(port)))
}

fn protocol<'a>(packet: &Packet) -> Subject<'a> {
    packet.protocol.map_or(Subject::Open, Subject::Protocol)
}

fn meta<'a>(key: &str, context: &Context<'a>) -> Subject<'a> {
    match key {
        // Ports of a bridge, or lower devices: which one is not known.
        "iif" | "iifname" | "oif" | "oifname" if matches!(context.layer, Layer::Bridge | Layer::Below) => {
            Subject::Open
        }
        "iif" | "iifname" => Subject::Device(context.iif),
        "oif" | "oifname" => Subject::Device(context.oif),
        "l4proto" => protocol(context.packet),
        // There may be a VLAN's header before it.
        "protocol" if context.layer == Layer::Below => Subject::Open,
        "protocol" => Subject::Name("ip"),
        "nfproto" => Subject::Name("ipv4"),
        "mark" => Subject::Mark(context.mark),
        "skuid" => match context.packet.way {
            Way::Sent { user: Some(user), .. } => Subject::Number(u64::from(user)),
            // There is no socket yet.
            Way::Forwarded { .. } => Subject::Absent,
            Way::Sent { .. } | Way::Received { .. } => Subject::Unknown,
        },
        "skgid" if matches!(context.packet.way, Way::Forwarded { .. }) => Subject::Absent,
        "length" | "priority" | "hour" | "day" | "time" | "cpu" | "random" => Subject::Open,
        "ipsec" | "secpath" => Subject::Number(0),
        _ => Subject::Unknown,
    }
}

fn connection<'a>(value: &Value, context: &Context<'a>) -> Subject<'a> {
    match (value["key"].as_str(), context.untracked) {
        (Some("state"), untracked) => Subject::State(context.packet.connection, untracked),
        (_, Holds::Always) => Subject::Absent,
        (Some("mark"), _) => Subject::Mark(Mark::UNKNOWN),
        (Some("status"), Holds::Never) => Subject::Untranslated,
        _ => Subject::Unknown,
    }
}

/// `fib`: what kind of address, as far as the way tells.
fn route<'a>(value: &Value, context: &Context<'a>) -> Subject<'a> {
    if value["result"] != "type" {
        return Subject::Unknown;
    }
    let asks = |what: &str| match &value["flags"] {
        Value::Array(flags) => flags.iter().any(|flag| flag == what),
        flag => flag == what,
    };
    let local = match (&context.packet.way, asks("saddr"), asks("daddr")) {
        (Way::Sent { .. }, true, false) | (Way::Received { .. }, false, true) => true,
        (_, true, false) | (_, false, true) => false,
        _ => return Subject::Unknown,
    };
    Subject::Name(if local { "local" } else { "unicast" })
}

impl Subject<'_> {
    fn is_absent(&self) -> bool {
        match self {
            Self::Absent => true,
            Self::Several(parts) => parts.iter().any(Self::is_absent),
            _ => false,
        }
    }

    /// The number that it is, if that is certain.
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Mark(mark) => mark.value().map(u64::from),
            _ => None,
        }
    }

    /// Whether it is what `element`, one value, range or prefix, says.
    fn is(&self, element: &Value) -> Holds {
        if let Some(inner) = element.get("elem") {
            let holds = self.is(inner.get("val").unwrap_or(inner));
            let limited = LIMITS.iter().any(|limit| inner.get(limit).is_some());
            return if limited { holds.and(Holds::Unknown) } else { holds };
        }
        match self {
            Self::Several(parts) => {
                let wanted = element.get("concat").and_then(Value::as_array).map(Vec::as_slice);
                let wanted = wanted.filter(|wanted| wanted.len() == parts.len());
                let Some(wanted) = wanted else { return Holds::Unknown };
                let each = parts.iter().zip(wanted).map(|(part, wanted)| part.is(wanted));
                each.fold(Holds::Always, Holds::and)
            }
            Self::Sources(networks) => match addresses(element) {
                Some((first, last)) => within(networks, first, last),
                None => Holds::Unknown,
            },
            Self::Destinations(networks) => match addresses(element) {
                Some((first, last)) => networks.are_within(first, last),
                None => Holds::Unknown,
            },
            Self::Mark(mark) => match range(element) {
                Some((first, last)) => match (u32::try_from(first), u32::try_from(last)) {
                    (Ok(first), Ok(last)) => mark.is_between(first, last),
                    _ => Holds::Unknown,
                },
                None => Holds::Unknown,
            },
            Self::Number(is) => match range(element) {
                Some((first, last)) => Holds::of((first..=last).contains(is)),
                None => Holds::Unknown,
            },
            Self::Device(is) => match element.as_str() {
                Some(wanted) => Holds::of(is_named(wanted, is)),
                None => Holds::Unknown,
            },
            Self::Name(is) => match element {
                Value::String(wanted) => Holds::of(wanted == is),
                _ => Holds::Unknown,
            },
            Self::Protocol(is) => match element {
                Value::String(wanted) => Holds::of(wanted == is.name()),
                Value::Number(wanted) => Holds::of(wanted.as_u64() == Some(u64::from(is.number()))),
                _ => Holds::Unknown,
            },
            Self::State(is, untracked) => match element.as_str() {
                Some(wanted) => is.is_one_of(&[wanted], *untracked),
                None => Holds::Unknown,
            },
            Self::Untranslated => match element.as_str() {
                Some("snat" | "dnat") => Holds::Never,
                _ => Holds::Unknown,
            },
            Self::Open => Holds::Partly,
            Self::Absent => Holds::Never,
            Self::Unknown => Holds::Unknown,
        }
    }
}

/// Whether `subject` is one of what the right side of a match says.
fn is_in(subject: &Subject<'_>, right: &Value, context: &Context<'_>) -> Holds {
    let Some(set) = elements(right, context) else { return Holds::Unknown };
    if let Subject::State(connection, untracked) = subject {
        let states: Option<Vec<&str>> = set.list.iter().map(Value::as_str).collect();
        let holds = states.map_or(Holds::Unknown, |states| connection.is_one_of(&states, *untracked));
        return set.lasts.doubt(holds);
    }
    set.lasts.doubt(set.list.iter().map(|element| subject.is(element)).fold(Holds::Never, Holds::or))
}

struct Elements<'a> {
    list: &'a [Value],
    lasts: Lasts,
}

/// The elements of a set that is written out, named, or but one value.
fn elements<'a>(value: &'a Value, context: &Context<'a>) -> Option<Elements<'a>> {
    let listed = |value: &'a Value| match value {
        Value::Null => Some(&[][..]),
        Value::Array(list) => Some(list.as_slice()),
        _ => None,
    };
    if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) {
        let set = context.ruleset.set(context.table, name)?;
        return Some(Elements { list: listed(&set.elements)?, lasts: set.lasts });
    }
    let list = match value.get("set") {
        Some(Value::Array(list)) => list,
        Some(one) => std::slice::from_ref(one),
        None => match value {
            Value::Array(list) => list,
            one => std::slice::from_ref(one),
        },
    };
    Some(Elements { list, lasts: Lasts::ForGood })
}

/// The ends of an address, prefix or range.
fn addresses(element: &Value) -> Option<(u32, u32)> {
    let address = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok().map(u32::from);
    if let Some(prefix) = element.get("prefix") {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        let net = Ipv4Net::new(address(&prefix["addr"])?.into(), length).ok()?;
        return Some((net.network().into(), net.broadcast().into()));
    }
    match element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some((address(first)?, address(last)?)),
        Some(_) => None,
        None => address(element).map(|one| (one, one)),
    }
}

/// The ends of a number or range.
fn range(element: &Value) -> Option<(u64, u64)> {
    let number = |value: &Value| match value {
        Value::Bool(set) => Some(u64::from(*set)),
        value => value.as_u64(),
    };
    match element.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some((number(first)?, number(last)?)),
        Some(_) => None,
        None => number(element).map(|one| (one, one)),
    }
}

/// A name that ends in an asterisk stands for all that begin so.
pub(super) fn is_named(wanted: &str, device: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(escaped) if escaped.ends_with('\\') => {
            device.strip_suffix('*').is_some_and(|rest| escaped.strip_suffix('\\') == Some(rest))
        }
        Some(prefix) => device.starts_with(prefix),
        None => wanted == device,
    }
}

fn is_field(expression: &Value, protocol: &str, field: &str) -> bool {
    let payload = &expression["payload"];
    payload["protocol"] == protocol && payload["field"] == field
}

/// What an element of a set may have beside its value, so that it is not always met.
const LIMITS: [&str; 3] = ["limit", "quota", "ct count"];
