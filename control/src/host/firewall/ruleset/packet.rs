//! A packet, or a class of packets, as far as rules ask about it, and whether what a rule asks holds for it.

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
}

impl Device {
    /// The device `name` of this network namespace.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let bridge = std::path::Path::new("/sys/class/net").join(name).join("bridge").is_dir();
        Self { name: name.to_owned(), bridge }
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
    /// Whether its state is one of `wanted`, as `nft` and `iptables` name them.
    #[must_use]
    pub fn is_one_of(self, wanted: &[&str]) -> Holds {
        let has = |name: &str| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
        match (self, has("new"), has("established")) {
            (Self::New, new, _) => Holds::of(new),
            (Self::Established, _, established) => Holds::of(established),
            (Self::Any, new, established) if new == established => Holds::of(new),
            (Self::Any, ..) => Holds::Partly,
        }
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
