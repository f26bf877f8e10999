//! A status as tests of what is made of one need it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::reach::{Routed, Way};
use crate::status::*;
use overlay::stats::Totals;
use overlay_wire::drops::DropReason;

/// A VXLAN node with a peer, rings, drops and things to complain of.
#[must_use]
pub fn example() -> Status {
    let mut ingress = drops(&Totals::default(), &DropReason::INGRESS);
    ingress.insert("wrong_vni".to_owned(), 7);
    Status {
        version: "0.1.0".to_owned(),
        device: Some(DeviceStatus {
            name: "flannel.1".to_owned(),
            mtu: 1450,
            queues: 2,
            address: Ipv4Addr::new(10, 1, 9, 0),
        }),
        backend: BackendStatus::Vxlan {
            port: 8472,
            vni: 1,
            vtep_mac: "02:00:00:00:00:01".to_owned(),
            direct_routing: false,
        },
        network: "10.1.0.0/16".parse().unwrap(),
        lease: LeaseStatus {
            subnet: "10.1.9.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 168, 1, 12),
            state: LeaseState::Held,
        },
        store: StoreStatus { kind: "etcd".into(), r#where: "http://127.0.0.1:2379".into(), connected: true },
        peers: vec![PeerStatus {
            subnet: "10.1.63.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 168, 199, 238),
            vtep_mac: Some("02:00:00:00:00:09".to_owned()),
            way: Way::Tunnel,
            problem: None,
            mtu: None,
        }],
        ignored_leases: 0,
        garbage_leases: 1,
        refused_leases: 12,
        refused: vec!["10.1.66.0-24 of 127.0.0.1: no host's".to_owned(); 12],
        conflicts: vec!["two nodes".to_owned()],
        offloads: [("gso", true), ("tso", true), ("uso", false)]
            .map(|(name, on)| (name.to_owned(), on))
            .into(),
        offloads_held: BTreeMap::from([("tunnel-gso".to_owned(), "a rule could act".to_owned())]),
        io: Some(IoStatus {
            rings: Some(RingStatus {
                interface: "eth0".to_owned(),
                mode: "native".to_owned(),
                queues: 1,
                datagrams: Directions { egress: 5, ingress: 6 },
                drops: [("ring_full".to_owned(), 2)].into(),
                ..RingStatus::default()
            }),
            fallback: None,
        }),
        source_check: Some("strict".to_owned()),
        priority: None,
        return_path_masq: true,
        forward_rules: true,
        counters: Directions {
            egress: Counters { packets: 12, bytes: 5 << 20 },
            ingress: Counters { packets: 3_000, bytes: 900 },
        },
        drops: Directions { egress: drops(&Totals::default(), &DropReason::EGRESS), ingress },
        icmp_sent: 0,
        routed: Some(Routed { whole: true, ..Routed::default() }),
        host: HostStatus { restored: 2, problems: vec!["nft: broken".to_owned()] },
    }
}
