//! What the fuzz targets share: a small network, a device and a wire in memory, and a way to make
//! packets of a fuzzer's bytes that are wrong in one place only, so that it gets past the first check.

pub mod egress;
pub mod fakes;
pub mod ingress;
pub mod input;
pub mod packets;
pub mod rings;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use overlay::MacAddr;
use overlay::admit::SourceCheck;
use overlay::answers::Answers;
use overlay::drops::DropReason;
use overlay::echo::Echoes;
use overlay::egress::Egress;
use overlay::ingress::Ingress;
use overlay::offload::{Offload, Offloads};
use overlay::stats::{Totals, WorkerStats};
use overlay::table::{Local, Peer, PeerTable, SharedTable};
use overlay::wire::ip::Version;
use overlay::wire::{Addresses, Format, MacAddrs, Subnets, vxlan};

use fakes::{FakeDevice, FakeIcmp, FakeWire};

/// The VTEP of this node.
pub const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// The VTEP of every peer.
pub const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
/// The format with frames.
pub const VXLAN: Format = Format::Vxlan { vni: 1, vtep_mac: OURS };
/// The overlay's MTU.
pub const MTU: u32 = 1450;
/// The port that every node listens on.
pub const PORT: u16 = 8472;
/// This node's overlay address.
pub const OVERLAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 9, 0);

/// The same of IPv6.
pub const OVERLAY_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 9, 0, 0, 0, 0);

/// Subnets of peers and their public addresses; two are behind one NAT.
pub const PEERS: [(&str, &str); 4] = [
    ("10.1.63.0/24", "192.168.199.238"),
    ("10.1.7.0/24", "192.168.199.7"),
    ("10.1.8.0/24", "192.168.199.7"),
    ("10.1.64.0/25", "192.168.199.64"),
];

/// The IPv6 subnet of the peer with that IPv4 one; the last has none.
fn v6_subnet(subnet: &str) -> Option<&'static str> {
    match subnet {
        "10.1.63.0/24" => Some("fd00:0:0:3f::/64"),
        "10.1.7.0/24" => Some("fd00:0:0:7::/64"),
        "10.1.8.0/24" => Some("fd00:0:0:8::/64"),
        _ => None,
    }
}

fn subnets(v4: &str, v6: Option<&str>) -> Subnets {
    let v4 = v4.parse().expect("a subnet");
    v6.map_or(Subnets::V4(v4), |v6| Subnets::Both(v4, v6.parse().expect("a subnet")))
}

/// The network as every target sees it.
#[must_use]
pub fn table(format: Format) -> SharedTable {
    let local = Local {
        network: subnets("10.1.0.0/16", Some("fd00::/48")),
        subnets: subnets("10.1.9.0/24", Some("fd00:0:0:9::/64")),
        overlay_addresses: Addresses::Both(OVERLAY_ADDRESS, OVERLAY_ADDRESS_V6),
        public: Ipv4Addr::new(192, 168, 1, 12).into(),
        addresses: vec![Ipv4Addr::new(192, 168, 1, 12).into(), OVERLAY_ADDRESS.into()],
        mtu: MTU,
        format,
        port: PORT,
    };
    let peers = PEERS.map(|(subnet, public_ip)| Peer {
        subnets: subnets(subnet, v6_subnet(subnet)),
        public: public_ip.parse::<Ipv4Addr>().expect("an address").into(),
        vtep_macs: Some(MacAddrs::V4(THEIRS)),
    });
    SharedTable::new(PeerTable::new(local, peers.to_vec()))
}

/// An ingress worker between a wire and a device in memory.
pub struct IngressRig {
    /// The worker.
    pub worker: Ingress<FakeDevice, FakeWire>,
    /// What it writes to.
    pub device: FakeDevice,
    /// What it receives from.
    pub wire: FakeWire,
    /// The ICMP errors it sends.
    pub icmp: FakeIcmp,
    /// The echoes it answers.
    pub echoes: FakeIcmp,
    stats: Arc<WorkerStats>,
}

impl IngressRig {
    /// With what is asked of sources, and with or without the offloads of the device.
    #[must_use]
    pub fn new(format: Format, check: SourceCheck, offload: bool) -> Self {
        let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), FakeIcmp::default());
        let stats = Arc::new(WorkerStats::default());
        let echoes = FakeIcmp::default();
        let answers = Answers::new(Box::new(icmp.clone()), Arc::default())
            .with_echoes(Echoes::new(Box::new(echoes.clone()), Arc::new(|_| ())));
        let offloads = Offloads::new(if offload { &Offload::ALL } else { &[] });
        let worker = Ingress::new(
            device.clone(),
            wire.clone(),
            check,
            table(format).reader(),
            answers,
            Arc::clone(&stats),
            Arc::new(offloads),
        );
        Self { worker, device, wire, icmp, echoes, stats }
    }

    /// The worker's counters.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.stats.totals()
    }
}

/// An egress worker between a device and a wire in memory.
pub struct EgressRig {
    /// The worker.
    pub worker: Egress<FakeDevice, FakeWire>,
    /// What it reads from.
    pub device: FakeDevice,
    /// What it sends by.
    pub wire: FakeWire,
    /// What it answers.
    pub icmp: FakeIcmp,
    stats: Arc<WorkerStats>,
}

impl EgressRig {
    /// In that format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let (device, wire, icmp) = (FakeDevice::default(), FakeWire::default(), FakeIcmp::default());
        let stats = Arc::new(WorkerStats::default());
        let answers = Answers::new(Box::new(icmp.clone()), Arc::default());
        let worker =
            Egress::new(device.clone(), wire.clone(), table(format).reader(), answers, Arc::clone(&stats));
        Self { worker, device, wire, icmp, stats }
    }

    /// The worker's counters.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.stats.totals()
    }
}

/// All that was dropped, whatever the reason.
#[must_use]
pub fn dropped(totals: &Totals) -> u64 {
    DropReason::ALL.iter().map(|reason| totals.drops(*reason)).sum()
}

/// The headers in front of a peer's packet of that version to this node.
#[must_use]
pub fn encapsulation(format: Format, version: u8) -> Vec<u8> {
    let version = if version == 6 { Version::V6 } else { Version::V4 };
    match format {
        Format::FlannelUdp => Vec::new(),
        Format::Vxlan { vni, vtep_mac } => vxlan::header(version, vni, THEIRS, vtep_mac).to_vec(),
    }
}
