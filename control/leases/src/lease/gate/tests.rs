use tokio::time::Instant;

use super::*;
use crate::backend::BackendKind;
use crate::store::parse_key;
use crate::store::{Entry, Event, Listing};

const OURS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);
const NOTHING_ELSE: HostFacts = HostFacts {
    kept: BTreeSet::new(),
    vital: BTreeSet::new(),
    gateways: BTreeSet::new(),
    broadcasts: BTreeSet::new(),
};

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

fn vxlan(network: &str) -> NetworkConfig {
    config(&format!(r#"{{"Network":"{network}","SubnetLen":24,"Backend":{{"Type":"vxlan"}}}}"#))
}

fn value(public_ip: &str, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}}}"#
    )
}

/// A lease of `public_ip`, the `created`th of the store. Its MAC follows from the address.
fn put((key, public_ip, created): (&str, &str, i64)) -> Event {
    let mac = public_ip.rsplit('.').next().unwrap().parse().unwrap_or(1);
    let value = value(public_ip, mac).into();
    let subnet = parse_key(key).unwrap();
    Event::Put(Entry { key: key.to_owned(), subnet, value, revision: created, created, expiry: None })
}

fn set(leases: &[(&str, &str, i64)]) -> LeaseSet {
    let mut set = LeaseSet::default();
    for lease in leases {
        set.apply_event(&put(*lease));
    }
    set
}

fn judge(own: &str, leases: &[(&str, &str, i64)]) -> Judgement {
    let config = vxlan("10.1.0.0/16");
    Ground { config: &config, own: Some(net(own)), public_ip: OURS, host: &NOTHING_ELSE }.judge(&set(leases))
}

fn peers(judgement: &Judgement) -> Vec<String> {
    judgement.peers.iter().map(|lease| format!("{} {}", lease.subnet, lease.attrs.public_ip)).collect()
}

#[test]
fn one_lease_by_itself() {
    const GOOD: &str = "192.168.1.66";
    let table = [
        ("10.1.66.0-24", GOOD, None),
        ("10.1.66.7-32", GOOD, None),
        ("10.1.128.0-17", GOOD, None),
        ("8.8.8.0-24", GOOD, Some("not inside the network 10.1.0.0/16")),
        ("192.168.199.238-32", GOOD, Some("not inside the network")),
        ("0.0.0.0-0", GOOD, Some("not inside the network")),
        ("10.0.0.0-8", GOOD, Some("not inside the network")),
        ("10.1.0.0-16", GOOD, Some("the whole network")),
        ("10.1.80.0-25", GOOD, Some("belong to the lease 10.1.80.0-24 of 192.168.1.12")),
        ("10.1.80.128-25", GOOD, Some("belong to the lease 10.1.80.0-24")),
        ("10.1.80.7-32", GOOD, Some("belong to the lease 10.1.80.0-24")),
        ("10.1.80.0-23", GOOD, Some("belong to the lease 10.1.80.0-24")),
        ("10.1.0.0-17", GOOD, Some("belong to the lease 10.1.80.0-24")),
        ("10.1.80.0-24&fd00::-64", GOOD, Some("belong to the lease 10.1.80.0-24")),
        ("10.1.66.0-24", "127.0.0.2", Some("loopback")),
        ("10.1.66.0-24", "0.1.2.3", Some("0.0.0.0/8")),
        ("10.1.66.0-24", "240.0.0.1", Some("240.0.0.0/4")),
        ("10.1.66.0-24", "169.254.3.4", Some("link-local")),
        ("10.1.66.0-24", "10.1.66.9", Some("lies in its own subnet")),
        ("10.1.66.0-24", "10.1.80.9", Some("lies in the subnet of the lease 10.1.80.0-24")),
    ];
    for (key, public_ip, reason) in table {
        let judgement = judge("10.1.80.0/24", &[("10.1.80.0-24", "192.168.1.12", 5), (key, public_ip, 3)]);
        match reason {
            None => {
                assert_eq!(judgement.refused, [], "{key} {public_ip}");
                assert_eq!(judgement.peers.len(), 1, "{key} {public_ip}");
            }
            Some(reason) => {
                assert!(judgement.peers.is_empty(), "{key} {public_ip} is used");
                let said = judgement.refused[0].reason.to_string();
                assert!(said.contains(reason), "{key} {public_ip}: {said}");
                assert_eq!(judgement.held, [net("10.1.80.0/24")]);
            }
        }
    }
}

#[test]
fn what_a_parser_would_not_pass_is_refused_here_too() {
    let config = vxlan("10.1.0.0/16");
    let ground = Ground { config: &config, own: None, public_ip: OURS, host: &NOTHING_ELSE };
    let refused = |public_ip: [u8; 4], mac: MacAddr| {
        let backend = LeaseBackend::Vxlan { vni: 1, vtep_mac: mac };
        ground
            .reason_against(net("10.1.66.0/24"), &LeaseAttrs { public_ip: public_ip.into(), backend })
            .is_some()
    };
    let unicast = MacAddr([2, 0, 0, 0, 0, 1]);
    assert!(!refused([192, 168, 1, 66], unicast));
    for address in [[0, 0, 0, 0], [224, 0, 0, 1], [239, 1, 2, 3], [255, 255, 255, 255]] {
        assert!(refused(address, unicast), "{address:?}");
    }
    for mac in [MacAddr([0; 6]), MacAddr([0xff; 6]), MacAddr([1, 0, 0, 0, 0, 1])] {
        assert!(refused([192, 168, 1, 66], mac), "{mac}");
    }
}

#[test]
fn hosts_that_are_link_local_themselves_may_be_peers() {
    let config = vxlan("10.1.0.0/16");
    let public_ip = Ipv4Addr::new(169, 254, 7, 7);
    let ground = Ground { config: &config, own: None, public_ip, host: &NOTHING_ELSE };
    assert_eq!(ground.judge(&set(&[("10.1.66.0-24", "169.254.3.4", 1)])).peers.len(), 1);
}

#[test]
fn a_broadcast_address_of_this_hosts_networks_is_no_host() {
    let config = vxlan("10.1.0.0/16");
    let broadcasts = [[192, 168, 1, 255], [172, 17, 255, 255]].map(Ipv4Addr::from).into();
    let host = HostFacts { broadcasts, ..HostFacts::default() };
    let ground = Ground { config: &config, own: None, public_ip: OURS, host: &host };
    for (address, is_host) in [
        ("192.168.1.255", false),
        ("172.17.255.255", false),
        ("192.168.0.255", true),
        ("192.168.2.255", true),
    ] {
        let judgement = ground.judge(&set(&[("10.1.66.0-24", address, 1)]));
        assert_eq!(judgement.peers.len(), usize::from(is_host), "{address}: {:?}", judgement.refused);
    }
}

#[test]
fn of_an_overlap_the_earlier_lease_keeps_its_addresses_whatever_their_length() {
    let neighbour = ("10.1.39.0-24", "192.168.199.238", 7);
    for hostile in ["10.1.39.0-25", "10.1.39.2-32", "10.1.38.0-23", "10.1.32.0-20", "10.1.39.0-24&fd00::-64"]
    {
        let judgement = judge("10.1.80.0/24", &[neighbour, (hostile, "192.168.1.66", 8)]);
        assert_eq!(peers(&judgement), ["10.1.39.0/24 192.168.199.238"], "{hostile}");
        let told = judgement.conflicts[0].to_string();
        for part in ["10.1.39.0-24", hostile, "192.168.199.238", "192.168.1.66"] {
            assert!(told.contains(part), "no {part} in: {told}");
        }
    }
    let judgement = judge("10.1.80.0/24", &[("10.1.38.0-23", "192.168.1.66", 6), neighbour]);
    assert_eq!(peers(&judgement), ["10.1.38.0/23 192.168.1.66"]);
}

#[test]
fn who_is_in_use_stays_in_use_until_it_is_deleted() {
    let config = vxlan("10.1.0.0/16");
    let ground =
        Ground { config: &config, own: Some(net("10.1.80.0/24")), public_ip: OURS, host: &NOTHING_ELSE };
    // The wide one is refused for the sake of the first. When that goes, it must not take the second's addresses.
    let mut set = set(&[("10.1.1.0-24", "192.168.1.1", 1), ("10.1.0.0-18", "192.168.1.66", 2)]);
    set.apply_event(&put(("10.1.2.0-24", "192.168.1.2", 3)));
    set.note_use(&ground.judge(&set));
    set.apply_event(&Event::Delete("10.1.1.0-24".to_owned()));
    assert_eq!(peers(&ground.judge(&set)), ["10.1.2.0/24 192.168.1.2"]);

    // Nor must another owner who takes over its key.
    set.apply_event(&put(("10.1.2.0-24", "192.168.1.3", 3)));
    assert_eq!(peers(&ground.judge(&set)), ["10.1.0.0/18 192.168.1.66"]);

    // Nor does a restart change who is in use.
    let mut again =
        super::tests::set(&[("10.1.0.0-18", "192.168.1.66", 2), ("10.1.2.0-24", "192.168.1.2", 3)]);
    let attrs = LeaseAttrs::from_json(value("192.168.1.2", 2).as_bytes()).unwrap();
    again.expect(vec![Lease { subnet: net("10.1.2.0/24"), attrs }], Instant::now());
    assert_eq!(peers(&ground.judge(&again)), ["10.1.2.0/24 192.168.1.2"]);

    // A store that has lost its data has not lost the nodes.
    let mut set = super::tests::set(&[("10.1.1.0-24", "192.168.1.1", 1)]);
    set.note_use(&ground.judge(&set));
    set.apply(&Listing::default(), Instant::now());
    set.apply_event(&put(("10.1.1.0-25", "192.168.1.66", 1)));
    set.apply_event(&put(("10.1.1.0-24", "192.168.1.1", 9)));
    assert_eq!(peers(&ground.judge(&set)), ["10.1.1.0/24 192.168.1.1"]);
}

#[test]
fn without_an_order_the_length_that_the_network_has_counts() {
    let leases = [("10.1.0.0-17", "192.168.1.66", 0), ("10.1.39.0-24", "192.168.1.1", 0)];
    assert_eq!(peers(&judge("10.1.80.0/24", &leases)), ["10.1.39.0/24 192.168.1.1"]);
    let leases = [("10.1.39.0-25", "192.168.1.66", 0), ("10.1.39.0-24", "192.168.1.1", 0)];
    assert_eq!(peers(&judge("10.1.200.0/24", &leases)), ["10.1.39.0/24 192.168.1.1"]);
}

#[test]
fn a_network_around_its_nodes_keeps_them_but_leases_no_node_away() {
    let config = vxlan("10.0.0.0/8");
    let ours = Ipv4Addr::new(10, 200, 1, 12);
    let ground =
        Ground { config: &config, own: Some(net("10.10.0.0/24")), public_ip: ours, host: &NOTHING_ELSE };
    let node = ("10.10.1.0-24", "10.200.2.238", 1);
    assert_eq!(ground.judge(&set(&[node])).peers.len(), 1);
    for (key, public_ip) in [
        ("10.200.1.0-24", "10.200.3.66"),
        ("10.200.1.12-32", "10.200.3.66"),
        ("10.200.2.0-24", "10.200.3.66"),
        ("10.10.66.0-24", "10.10.1.9"),
    ] {
        let judgement = ground.judge(&set(&[node, (key, public_ip, 2)]));
        assert_eq!(peers(&judgement), ["10.10.1.0/24 10.200.2.238"], "{key} {public_ip}");
        assert_eq!(judgement.refused.len(), 1, "{key} {public_ip}");
    }
}

#[test]
fn what_real_clusters_have_is_used() {
    let mut set = set(&[
        ("10.1.80.0-24", "192.168.1.12", 1),
        // One that this node had before, two of one node, one under another length.
        ("10.1.81.0-24", "192.168.1.12", 2),
        ("10.1.1.0-24", "192.168.1.1", 3),
        ("10.1.2.0-24", "192.168.1.1", 4),
        ("10.1.4.0-22", "192.168.1.3", 5),
        // A node with two keys.
        ("10.1.9.0-24", "192.168.1.9", 6),
        ("10.1.9.0-24&fd00:9::-64", "192.168.1.9", 7),
    ]);
    for (key, backend) in [("10.1.50.0-24", "ipip"), ("10.1.51.0-24", "host-gw")] {
        let value = format!(r#"{{"PublicIP":"192.168.1.50","BackendType":"{backend}"}}"#).into();
        let subnet = parse_key(key).unwrap();
        let entry = Entry { key: key.to_owned(), subnet, value, revision: 9, created: 9, expiry: Some(1) };
        set.apply_event(&Event::Put(entry));
    }
    let config = vxlan("10.1.0.0/16");
    let judgement =
        Ground { config: &config, own: Some(net("10.1.80.0/24")), public_ip: OURS, host: &NOTHING_ELSE }
            .judge(&set);
    assert_eq!(judgement.refused, []);
    assert_eq!(judgement.conflicts, []);
    assert_eq!(
        peers(&judgement),
        [
            "10.1.1.0/24 192.168.1.1",
            "10.1.2.0/24 192.168.1.1",
            "10.1.4.0/22 192.168.1.3",
            "10.1.9.0/24 192.168.1.9"
        ]
    );
    assert_eq!(judgement.other_backend, 2);
    assert_eq!(judgement.held.len(), 8, "leases of other backends are taken, too");
    assert!(judgement.peers.iter().all(|peer| peer.attrs.backend.kind() == Some(BackendKind::Vxlan)));
}

#[test]
fn one_station_at_two_addresses_is_told_and_both_are_used() {
    for (own, other) in [(OURS.to_string(), "10.1.9.0-24"), ("192.168.2.66".to_owned(), "10.1.66.0-24")] {
        // Their MACs follow from the last octet.
        let twin = format!("192.168.7.{}", own.rsplit('.').next().unwrap());
        let judgement = judge("10.1.9.0/24", &[(other, &own, 1), ("10.1.70.0-24", &twin, 2)]);
        assert!(peers(&judgement).contains(&format!("10.1.70.0/24 {twin}")));
        let [conflict] = judgement.conflicts.as_slice() else { panic!("{:?}", judgement.conflicts) };
        let text = conflict.to_string();
        for part in [&*own, &*twin, "10.1.70.0/24", "one VTEP MAC"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}

#[test]
fn two_stations_at_one_address_are_told_and_both_used() {
    let config = vxlan("10.1.0.0/16");
    let ground =
        Ground { config: &config, own: Some(net("10.1.80.0/24")), public_ip: OURS, host: &NOTHING_ELSE };
    let mut set = set(&[("10.1.1.0-24", "192.168.1.1", 1)]);
    let (key, subnet, value) = ("10.1.2.0-24".to_owned(), net("10.1.2.0/24"), value("192.168.1.1", 9).into());
    set.apply_event(&Event::Put(Entry { key, subnet, value, revision: 2, created: 2, expiry: None }));
    let judgement = ground.judge(&set);
    assert_eq!(judgement.peers.len(), 2);
    assert!(judgement.conflicts[0].to_string().contains("both name 192.168.1.1"));
}

#[test]
fn an_address_of_this_host_is_nobody_elses() {
    let judgement =
        judge("10.1.80.0/24", &[("10.1.8.0-24", "192.168.1.13", 1), ("10.1.63.0-24", "192.168.199.238", 2)]);
    let others = judgement.peers.beyond(&[Ipv4Addr::new(192, 168, 1, 13)]);
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].subnet, net("10.1.63.0/24"));
}

#[test]
fn what_was_saved_passes_the_gate_again() {
    let config = vxlan("10.1.0.0/16");
    let ground =
        Ground { config: &config, own: Some(net("10.1.80.0/24")), public_ip: OURS, host: &NOTHING_ELSE };
    let saved = |subnet: &str| Lease {
        subnet: net(subnet),
        attrs: LeaseAttrs::from_json(value("192.168.1.66", 1).as_bytes()).unwrap(),
    };
    let admitted =
        ground.judge_saved(vec![saved("0.0.0.0/0"), saved("10.1.80.128/25"), saved("10.1.66.0/24")]);
    assert_eq!(*admitted, [saved("10.1.66.0/24")]);
}

/// Nothing but the runner's patience ends what grows with the square of their number: it would take an hour.
#[test]
fn any_number_of_leases_of_an_earlier_run_is_judged_and_taken_over() {
    let config = config(r#"{"Network":"10.0.0.0/8","SubnetLen":26}"#);
    let own = Some(net("10.250.0.0/26"));
    let ground = Ground { config: &config, own, public_ip: OURS, host: &NOTHING_ELSE };
    let lease = |number: u32| Lease {
        subnet: Ipv4Net::new_assert((0x0a00_0000 + (number << 6)).into(), 26),
        attrs: LeaseAttrs { public_ip: (0xac10_0000 + number).into(), backend: LeaseBackend::Udp },
    };
    let saved: Vec<Lease> = (0..200_000).map(lease).collect();
    let judged = ground.judge_saved(saved.clone());
    assert_eq!(judged.len(), saved.len());

    // The store has every other one.
    let mut set = LeaseSet::default();
    let entry = |Lease { subnet, attrs }: &Lease| {
        let (key, value) = (key_of(*subnet), attrs.to_json().into());
        Entry { key, subnet: *subnet, value, revision: 1, created: 1, expiry: None }
    };
    let entries = saved.iter().step_by(2).map(entry).collect();
    set.apply(&Listing { entries, ..Listing::default() }, Instant::now());
    set.expect(judged.to_vec(), Instant::now());
    assert_eq!((set.all().count(), set.iter().count()), (saved.len(), saved.len() / 2));
}
