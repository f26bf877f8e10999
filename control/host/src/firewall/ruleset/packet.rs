//! A packet, or a class of packets, as far as rules ask about it, and whether what a rule asks holds for it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ipnet::Ipv4Net;

/// Whether a condition holds for the described packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// For all of them.
    Always,
    /// For some of them, as far as they are described.
    Partly,
    /// It cannot be told: the condition is one that nobody here can evaluate.
    Unknown,
    /// For none of them.
    Never,
}

impl Holds {
    /// Of a plain fact.
    #[must_use]
    pub fn of(fact: bool) -> Self {
        if fact { Self::Always } else { Self::Never }
    }

    /// Both conditions.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Never, _) | (_, Self::Never) => Self::Never,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Partly, _) | (_, Self::Partly) => Self::Partly,
            _ => Self::Always,
        }
    }

    /// One of both conditions.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.negated().and(other.negated()).negated()
    }

    /// The opposite condition.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Always => Self::Never,
            Self::Never => Self::Always,
            doubtful => doubtful,
        }
    }
}

/// Packets that go the same way through this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which way.
    pub way: Way,
    /// Their sources: all addresses of these networks.
    pub from: Vec<Ipv4Net>,
    /// Their destinations, likewise.
    pub to: Vec<Ipv4Net>,
    /// What they carry; `None` for anything.
    pub protocol: Option<Protocol>,
    /// The source port, if it is one.
    pub source_port: Option<u16>,
    /// The destination port, if it is one.
    pub port: Option<u16>,
    /// What conntrack says of their connections.
    pub connection: Connection,
}

/// Through which hooks of netfilter packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// In by one device and out by another.
    Forwarded {
        /// The device that they come in by.
        from: Device,
        /// The device that they go out by.
        to: Device,
    },
    /// From a socket of this host's.
    Sent {
        /// The device that they go out by.
        by: Device,
        /// The socket's user, if that is known.
        user: Option<u32>,
    },
    /// For a socket of this host's.
    Received {
        /// The device that they come in by.
        by: Device,
    },
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether it is a bridge, with hooks of its own.
    pub bridge: bool,
    /// The devices that carry its packets: a bridge's ports, those of a bond or a VLAN, and theirs.
    pub below: Vec<String>,
}

impl Device {
    /// The device `name` of this network namespace.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::of(Path::new("/sys/class/net"), name)
    }

    /// As the directory `all` of all devices shows it.
    fn of(all: &Path, name: &str) -> Self {
        let lower = |name: &str| -> Vec<String> {
            let entries = fs::read_dir(all.join(name)).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter_map(|name| name.strip_prefix("lower_").map(str::to_owned)).collect()
        };
        let mut below = lower(name);
        let mut at = 0;
        while at < below.len() {
            for next in lower(&below[at]) {
                if !below.contains(&next) {
                    below.push(next);
                }
            }
            at += 1;
        }
        Self { name: name.to_owned(), bridge: all.join(name).join("bridge").is_dir(), below }
    }
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
}

impl Protocol {
    /// All that packets between pods are made of, nearly.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];

    /// Its name, as `nft` and `iptables` write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp => 1,
        }
    }
}

/// What conntrack says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It is the first of its connection.
    New,
    /// It belongs to a connection that was seen in both directions.
    Established,
    /// One or the other.
    Any,
}

impl Connection {
    /// Whether its state is one of `wanted`, as `nft` and `iptables` name them. If `untracked` holds, there is none.
    #[must_use]
    pub fn is_one_of(self, wanted: &[&str], untracked: Holds) -> Holds {
        let has = |name: &str| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
        let tracked = match (self, has("new"), has("established")) {
            (Self::New, new, _) => Holds::of(new),
            (Self::Established, _, established) => Holds::of(established),
            (Self::Any, new, established) if new == established => Holds::of(new),
            (Self::Any, ..) => Holds::Partly,
        };
        match (untracked, Holds::of(has("untracked"))) {
            (Holds::Never, _) => tracked,
            (Holds::Always, without) => without,
            (_, without) if without == tracked => tracked,
            (doubt, _) => doubt,
        }
    }
}

/// The destinations of packets, and what rules ask of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destinations<'a> {
    networks: &'a [Ipv4Net],
    /// The parts that rules tell from the others: first and last address.
    told_apart: &'a RefCell<BTreeSet<(u32, u32)>>,
}

impl<'a> Destinations<'a> {
    pub(super) fn new(networks: &'a [Ipv4Net], told_apart: &'a RefCell<BTreeSet<(u32, u32)>>) -> Self {
        Self { networks, told_apart }
    }

    /// As [`within`].
    pub(super) fn are_within(&self, first: u32, last: u32) -> Holds {
        let holds = within(self.networks, first, last);
        if holds == Holds::Partly {
            let ends = self.networks.iter().map(|net| (net.network().into(), net.broadcast().into()));
            let parts = ends.map(|(lowest, highest): (u32, u32)| (first.max(lowest), last.min(highest)));
            self.told_apart.borrow_mut().extend(parts.filter(|(first, last)| first <= last));
        }
        holds
    }
}

/// Whether all `networks` are inside what `contains` an address range, given by its ends, or touch it at all.
pub fn within(networks: &[Ipv4Net], first: u32, last: u32) -> Holds {
    let ends = |net: &Ipv4Net| (u32::from(net.network()), u32::from(net.broadcast()));
    let inside = |net: &Ipv4Net| ends(net).0 >= first && ends(net).1 <= last;
    let touches = |net: &Ipv4Net| ends(net).0 <= last && ends(net).1 >= first;
    if !networks.is_empty() && networks.iter().all(inside) {
        Holds::Always
    } else if networks.iter().any(touches) {
        Holds::Partly
    } else {
        Holds::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_kept_and_certainty_wins() {
        use Holds::{Always, Never, Partly, Unknown};
        for doubt in [Partly, Unknown] {
            assert_eq!((Always.and(doubt), Never.and(doubt)), (doubt, Never));
            assert_eq!((Always.or(doubt), Never.or(doubt), doubt.negated()), (Always, doubt, doubt));
        }
        assert_eq!((Partly.and(Unknown), Partly.or(Unknown)), (Unknown, Unknown));
    }

    #[test]
    fn an_untracked_packet_is_in_no_other_state() {
        use Holds::{Always, Never, Partly, Unknown};
        for (wanted, tracked, untracked, maybe) in [
            (&["new", "established"][..], Always, Never, Unknown),
            (&["untracked"], Never, Always, Unknown),
            (&["new", "untracked"], Always, Always, Always),
            (&["invalid"], Never, Never, Never),
        ] {
            let found = [Never, Always, Unknown].map(|holds| Connection::New.is_one_of(wanted, holds));
            assert_eq!(found, [tracked, untracked, maybe], "{wanted:?}");
        }
        assert_eq!(Connection::Any.is_one_of(&["new"], Partly), Partly);
    }

    #[test]
    fn the_devices_below_one_are_found_through_others() {
        let all = tempfile::tempdir().unwrap();
        for (name, parts) in [
            ("br0", &["bridge", "lower_bond0.7", "lower_veth1", "upper_vlan9"][..]),
            ("bond0.7", &["lower_bond0"]),
            ("bond0", &["lower_eth0", "lower_eth1"]),
            ("eth0", &["upper_bond0"]),
        ] {
            for part in parts {
                fs::create_dir_all(all.path().join(name).join(part)).unwrap();
            }
        }
        let of = |name| {
            let mut device = Device::of(all.path(), name);
            device.below.sort();
            (device.bridge, device.below)
        };
        let names = |names: &[&str]| names.iter().copied().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of("br0"), (true, names(&["bond0", "bond0.7", "eth0", "eth1", "veth1"])));
        assert_eq!(of("bond0"), (false, names(&["eth0", "eth1"])));
        assert_eq!(of("flannel.1"), (false, Vec::new()));
    }

    #[test]
    fn networks_are_inside_a_range_or_touch_it_or_not() {
        let nets = |text: &[&str]| text.iter().map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let range = |net: &str| {
            let net: Ipv4Net = net.parse().unwrap();
            (u32::from(net.network()), u32::from(net.broadcast()))
        };
        for (networks, wanted, holds) in [
            (&["10.1.9.0/24"][..], "10.1.0.0/16", Holds::Always),
            (&["10.1.9.0/24", "10.2.0.0/16"], "10.1.0.0/16", Holds::Partly),
            (&["10.1.0.0/16"], "10.1.9.7/32", Holds::Partly),
            (&["10.1.0.0/16"], "10.2.0.0/16", Holds::Never),
            (&[], "0.0.0.0/0", Holds::Never),
        ] {
            let (first, last) = range(wanted);
            assert_eq!(within(&nets(networks), first, last), holds, "{networks:?} in {wanted}");
        }
    }
}
