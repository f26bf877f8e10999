//! What there is to measure: places, subjects and scenarios.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the hosts are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// Two hosts on one link
    Link,
    /// Two hosts with a router between them
    Routed,
}

/// What the underlay's ports do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wire {
    /// Virtual ports as they are: super-packets pass whole, checksums unfilled
    Veth,
    /// Every port with its offloads off: packets of 1500 bytes with checksums, as on a cable
    Plain,
}

/// What carries the packets from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// No overlay: the underlay knows the way to the pods
    None,
    /// The kernel's own VXLAN device, set up as flanneld does it
    KernelVxlan,
    /// overlayd in flannel's udp format
    OverlaydUdp,
    /// overlayd in VXLAN
    OverlaydVxlan,
    /// overlayd in VXLAN, by AF_XDP: --io=xdp
    OverlaydXdp,
    /// overlayd on the client's host, kernel VXLAN on the server's
    OverlaydKernel,
    /// The program given by --peer
    Peer,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Scenario {
    /// TCP, one stream
    #[value(name = "tcp-1")]
    Tcp1,
    /// TCP, four streams
    #[value(name = "tcp-4")]
    Tcp4,
    /// TCP, sixteen streams
    #[value(name = "tcp-16")]
    Tcp16,
    /// TCP, one stream from the server to the client
    TcpReverse,
    /// TCP, one stream in each direction at once; both together count
    TcpBoth,
    /// UDP of 64 bytes payload as fast as it goes: what arrives
    #[value(name = "udp-64")]
    Udp64,
    /// The same with 512 bytes
    #[value(name = "udp-512")]
    Udp512,
    /// The same with 1400 bytes
    #[value(name = "udp-1400")]
    Udp1400,
    /// UDP of 64 bytes payload, wrapped by us and put on the wire by the client's host as fast as it goes, of one
    /// flow: what arrives
    #[value(name = "wire-64")]
    Wire64,
    /// The same of 64 flows, one datagram each in turn
    #[value(name = "wire-64-flows")]
    Wire64Flows,
    /// UDP of 64 bytes payload at --udp-rate: what is lost
    #[value(name = "loss-64")]
    Loss64,
    /// The same with 512 bytes
    #[value(name = "loss-512")]
    Loss512,
    /// The same with 1400 bytes
    #[value(name = "loss-1400")]
    Loss1400,
    /// TCP request and response of 64 bytes, one after the other
    TcpRtt,
    /// UDP request and response of 64 bytes, one after the other
    UdpRtt,
    /// ICMP echoes by `ping`, a hundred a second: their average
    Ping,
    /// TCP connections opened and closed, four at a time
    Connect,
}

/// The traffic of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// TCP streams with all that they take.
    Streams {
        /// How many.
        count: u32,
        /// Which way the data goes.
        direction: Direction,
    },
    /// UDP datagrams of this payload length, as fast as they can be sent.
    Flood(usize),
    /// UDP datagrams of this payload length, of so many flows, wrapped already: as many as the wire takes.
    Wire {
        /// The length.
        len: usize,
        /// The flows.
        flows: u8,
    },
    /// UDP datagrams of this payload length, at a set rate.
    Paced(usize),
    /// Requests and responses over TCP.
    TcpRequests,
    /// Requests and responses over UDP.
    UdpRequests,
    /// Echoes at a steady pace.
    Echoes,
    /// Connections.
    Connections,
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From client to server.
    Forward,
    /// From server to client.
    Reverse,
    /// Both at once.
    Both,
}

/// What a scenario's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Bits of payload received per second: more is better.
    BitsPerSecond,
    /// Datagrams received per second: more is better.
    DatagramsPerSecond,
    /// Datagrams lost, in per cent: less is better.
    LossPercent,
    /// Median round trip in nanoseconds: less is better.
    RoundTrip,
    /// Average round trip of echoes in nanoseconds: less is better.
    Ping,
    /// Connections opened and closed per second: more is better.
    ConnectionsPerSecond,
}

/// What else the processors have to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostLoad {
    /// Nothing: processors sleep whenever nobody has packets
    #[default]
    Idle,
    /// For each processor a hog of lowest priority (nice 19), so that none ever sleeps
    Awake,
    /// For each processor two ordinary hogs, as containers are
    Busy,
}

/// Where it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How the hosts are joined.
    pub topology: Topology,
    /// What the underlay's ports do.
    pub wire: Wire,
}

/// A choice of everything that can be chosen one by one as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The main scenarios behind a router, kernel VXLAN and overlayd: some minutes
    Short,
    /// Everything: about half an hour
    Full,
}

impl Preset {
    /// Topologies to measure on.
    #[must_use]
    pub fn topologies(self) -> Vec<Topology> {
        match self {
            Self::Short => vec![Topology::Routed],
            Self::Full => Topology::value_variants().to_vec(),
        }
    }

    /// Subjects to measure, besides a peer.
    #[must_use]
    pub fn subjects(self) -> Vec<Subject> {
        match self {
            Self::Short => vec![Subject::KernelVxlan, Subject::OverlaydVxlan],
            Self::Full => Subject::value_variants()
                .iter()
                .copied()
                .filter(|subject| *subject != Subject::Peer)
                .collect(),
        }
    }

    /// Scenarios to run.
    #[must_use]
    pub fn scenarios(self) -> Vec<Scenario> {
        use Scenario::{Ping, Tcp1, Tcp4, TcpReverse, TcpRtt, Udp64, UdpRtt};
        match self {
            Self::Short => vec![Tcp1, Tcp4, TcpReverse, Udp64, TcpRtt, UdpRtt, Ping],
            Self::Full => Scenario::value_variants().to_vec(),
        }
    }
}

impl Subject {
    /// Whether overlayd has a part in it.
    #[must_use]
    pub fn uses_overlayd(self) -> bool {
        matches!(self, Self::OverlaydUdp | Self::OverlaydVxlan | Self::OverlaydXdp | Self::OverlaydKernel)
    }
}

impl Scenario {
    /// Its traffic.
    #[must_use]
    pub fn load(self) -> Load {
        let streams = |count, direction| Load::Streams { count, direction };
        match self {
            Self::Tcp1 => streams(1, Direction::Forward),
            Self::Tcp4 => streams(4, Direction::Forward),
            Self::Tcp16 => streams(16, Direction::Forward),
            Self::TcpReverse => streams(1, Direction::Reverse),
            Self::TcpBoth => streams(1, Direction::Both),
            Self::Udp64 => Load::Flood(64),
            Self::Udp512 => Load::Flood(512),
            Self::Udp1400 => Load::Flood(1400),
            Self::Wire64 => Load::Wire { len: 64, flows: 1 },
            Self::Wire64Flows => Load::Wire { len: 64, flows: 64 },
            Self::Loss64 => Load::Paced(64),
            Self::Loss512 => Load::Paced(512),
            Self::Loss1400 => Load::Paced(1400),
            Self::TcpRtt => Load::TcpRequests,
            Self::UdpRtt => Load::UdpRequests,
            Self::Ping => Load::Echoes,
            Self::Connect => Load::Connections,
        }
    }

    /// What its value is.
    #[must_use]
    pub fn metric(self) -> Metric {
        match self.load() {
            Load::Streams { .. } => Metric::BitsPerSecond,
            Load::Flood(_) | Load::Wire { .. } => Metric::DatagramsPerSecond,
            Load::Paced(_) => Metric::LossPercent,
            Load::TcpRequests | Load::UdpRequests => Metric::RoundTrip,
            Load::Echoes => Metric::Ping,
            Load::Connections => Metric::ConnectionsPerSecond,
        }
    }

    /// How long it runs, in seconds, when streams and floods run for `seconds`: many small events
    /// give a steady figure in half the time. Echoes are few.
    #[must_use]
    pub fn seconds(self, seconds: f64) -> f64 {
        match self.load() {
            Load::Streams { .. } | Load::Flood(_) | Load::Wire { .. } | Load::Echoes => seconds,
            _ => seconds / 2.0,
        }
    }

    /// Whether it takes the client's host, not only a pod there.
    #[must_use]
    pub fn takes_the_host(self) -> bool {
        matches!(self.load(), Load::Wire { .. })
    }

    /// The scenario of a name, as in a record.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::from_str(name, false).ok()
    }
}

impl HostLoad {
    /// How many hogs there are on so many processors.
    #[must_use]
    pub fn hogs(self, processors: usize) -> usize {
        match self {
            Self::Idle => 0,
            Self::Awake => processors,
            Self::Busy => 2 * processors,
        }
    }

    /// Their nice value.
    #[must_use]
    pub fn nice(self) -> i32 {
        if self == Self::Awake { 19 } else { 0 }
    }

    /// It in words, on so many processors.
    #[must_use]
    pub fn describe(self, processors: usize) -> String {
        let hogs = self.hogs(processors);
        match self {
            Self::Idle => "idle: nothing beside the measurement".into(),
            Self::Awake => {
                format!("awake: {hogs} processor hogs of nice 19 keep {processors} processors from sleeping")
            }
            Self::Busy => format!("busy: {hogs} ordinary processor hogs on {processors} processors"),
        }
    }
}

impl Metric {
    /// A value in words, as in `8.12 Gbit/s`.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        match self {
            Self::BitsPerSecond if value >= 1e9 => format!("{:.2} Gbit/s", value / 1e9),
            Self::BitsPerSecond => format!("{:.1} Mbit/s", value / 1e6),
            Self::DatagramsPerSecond | Self::ConnectionsPerSecond => format!("{}/s", thousands(value)),
            Self::LossPercent => format!("{value:.2} %"),
            Self::RoundTrip | Self::Ping => format!("{:.1} µs", value / 1e3),
        }
    }

    /// From one value to another, with the unit once if both have the same.
    #[must_use]
    pub fn show_range(self, min: f64, max: f64) -> String {
        let (min, max) = (self.show(min), self.show(max));
        // A unit begins with a blank or a slash.
        let unit = |text: &str| text.find([' ', '/']).map(|at| text[at..].to_owned());
        match unit(&min) {
            Some(own) if unit(&max).as_ref() == Some(&own) => {
                format!("{} … {max}", min.trim_end_matches(own.as_str()))
            }
            _ => format!("{min} … {max}"),
        }
    }

    /// What it is, for headings.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::BitsPerSecond => "TCP throughput",
            Self::DatagramsPerSecond => "UDP delivered under flood",
            Self::LossPercent => "UDP lost at a set rate",
            Self::RoundTrip => "Round trip, median",
            Self::Ping => "Ping, average",
            Self::ConnectionsPerSecond => "Connections opened and closed",
        }
    }

    /// Whether more is better.
    #[must_use]
    pub fn more_is_better(self) -> bool {
        !matches!(self, Self::LossPercent | Self::RoundTrip | Self::Ping)
    }

    /// Whether single round trips are behind it.
    #[must_use]
    pub fn has_round_trips(self) -> bool {
        matches!(self, Self::RoundTrip | Self::Ping)
    }

    /// All of them, in the order of reports.
    pub const ALL: [Self; 6] = [
        Self::BitsPerSecond,
        Self::DatagramsPerSecond,
        Self::LossPercent,
        Self::RoundTrip,
        Self::Ping,
        Self::ConnectionsPerSecond,
    ];
}

/// Implements `Display` by the name on the command line.
macro_rules! named_as_on_the_command_line {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value().expect("no value is skipped");
                f.pad(value.get_name())
            }
        }
    )*};
}
named_as_on_the_command_line!(Topology, Wire, Subject, Scenario, HostLoad);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topology, self.wire)
    }
}

/// A count with its thousands set apart, as in `181,000`.
#[must_use]
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_found_by_its_name() {
        for scenario in Scenario::value_variants() {
            assert_eq!(Scenario::named(&scenario.to_string()), Some(*scenario));
        }
        assert_eq!(Scenario::named("tcp-2"), None);
    }

    #[test]
    fn values_are_shown_with_their_units() {
        assert_eq!(Metric::BitsPerSecond.show(8.123e9), "8.12 Gbit/s");
        assert_eq!(Metric::BitsPerSecond.show(470e6), "470.0 Mbit/s");
        assert_eq!(Metric::DatagramsPerSecond.show(181_000.4), "181,000/s");
        assert_eq!(Metric::ConnectionsPerSecond.show(999.0), "999/s");
        assert_eq!(Metric::RoundTrip.show(33_100.0), "33.1 µs");
        assert_eq!(Metric::LossPercent.show(0.123), "0.12 %");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
        assert_eq!(Metric::BitsPerSecond.show_range(8.1e9, 9e9), "8.10 … 9.00 Gbit/s");
        assert_eq!(Metric::BitsPerSecond.show_range(470e6, 9e9), "470.0 Mbit/s … 9.00 Gbit/s");
        assert_eq!(Metric::DatagramsPerSecond.show_range(9.0, 1e4), "9 … 10,000/s");
    }
}
