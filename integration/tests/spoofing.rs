//! Frames that did not come from where they say: none reaches a pod, each is counted by its reason,
//! and the traffic that flows meanwhile does not notice.

use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use integration::capture::Capture;
use integration::overlayd::await_mesh;
use integration::packets::{Injector, mac, source_routed, udp_packet, vxlan_frame};
use integration::traffic::{self, Server};
use integration::{Backend, Host, Namespace, Overlayd, Pod, SOON, Site, Store, await_until};

/// A pod's port where everything that arrives is written down and nothing is answered.
const RECORDER: u16 = 9;
/// The group that every host of a link belongs to.
const MULTICAST: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// An address of the overlay that belongs to no peer.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 254, 2);

/// A host of the underlay that is no peer.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 66, 6);

/// A subnet of nobody.
const LOOP: &str = "10.1.250.0/24";

/// The headers of VXLAN and Ethernet.
const VXLAN_LEN: usize = 22;
/// No node's, and everybody's.
const FALSE_MACS: [[u8; 6]; 2] = [[0x02, 0, 0, 0, 0, 0x13], [0xff; 6]];

/// What somebody sends to the worker, and what must come of it.
struct Attempt {
    label: &'static str,
    sender: Sender,
    payload: Vec<u8>,
    /// The reason for which it is counted, with the source checked strictly, loosely and not at all.
    /// `None` lets it through.
    expected: [Option<&'static str>; 3],
}

enum Sender {
    /// A host of the underlay that is no peer.
    Stranger,
    /// The master itself, from a port that is not the daemon's.
    Peer,
}

#[test]
fn strict_refuses_every_false_vxlan_frame() {
    false_packets_are_dropped_by_reason(Backend::Vxlan, "strict", 0);
}

#[test]
fn strict_refuses_every_false_udp_packet() {
    false_packets_are_dropped_by_reason(Backend::Udp, "strict", 0);
}

#[test]
fn loose_asks_only_for_a_known_peer() {
    false_packets_are_dropped_by_reason(Backend::Vxlan, "loose", 1);
    false_packets_are_dropped_by_reason(Backend::Udp, "loose", 1);
}

#[test]
fn off_asks_only_for_the_form() {
    false_packets_are_dropped_by_reason(Backend::Vxlan, "off", 2);
    false_packets_are_dropped_by_reason(Backend::Udp, "off", 2);
}

fn false_packets_are_dropped_by_reason(backend: Backend, check: &str, column: usize) {
    let (site, worker, master) = Site::two_hosts();
    let stranger = site.host("stranger", &STRANGER.to_string());
    let store = Store::dir_with_free_subnets(&site, "store", backend);
    let w = worker.overlayd(&store).flag(&format!("--source-check={check}")).start();
    let m = master.overlayd(&store).start();
    await_mesh(&[&w, &m]);
    assert_eq!(w.status().0["source_check"], check);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let recorded = Arc::new(Mutex::new(Vec::<(IpAddr, Vec<u8>)>::new()));
    let record = recorded.clone();
    let _recorder = Server::udp(&a.ns, RECORDER, move |payload, from| {
        record.lock().push((from, payload.to_vec()));
        None
    });
    let from_stranger = Injector::new(&stranger.ns, worker.public_ip, backend.port());
    let from_peer = Injector::new(&master.ns, worker.public_ip, backend.port());

    std::thread::scope(|scope| {
        // Ends when the other end of the channel is dropped, also by a panic.
        let (attempting, attempted) = mpsc::channel::<()>();
        let (from, to) = (&b, &a);
        let transfers = scope.spawn(move || {
            while attempted.try_recv() == Err(TryRecvError::Empty) {
                traffic::transfer(&from.ns, &to.ns, to.address, 5);
            }
        });
        for attempt in attempts(backend, &w, a.address, b.address, worker.public_ip) {
            let Attempt { label, sender, payload, expected } = attempt;
            let injector = match sender {
                Sender::Stranger => &from_stranger,
                Sender::Peer => &from_peer,
            };
            if let Some(question) = described(backend, &payload) {
                let outer = match sender {
                    Sender::Stranger => STRANGER,
                    Sender::Peer => master.public_ip,
                };
                let answer = w.post(&format!("/v1/trace?direction=ingress&outer={outer}&{question}"));
                assert!(answer["verdict"].is_object(), "{answer}");
                let said = answer["verdict"]["dropped"]["reason"].as_str();
                assert_eq!(said, expected[column], "what trace says of `{label}`: {answer}");
            }
            let (before, seen) = (w.status(), recorded.lock().len());
            injector.send(&payload);
            let Some(reason) = expected[column] else {
                await_until(SOON, &format!("`{label}` to reach the pod"), || recorded.lock().len() > seen);
                continue;
            };
            await_until(SOON, &format!("`{label}` to be counted as {reason}"), || {
                w.status().drops("ingress", reason) > before.drops("ingress", reason)
            });
            assert_eq!(w.status().all_drops("ingress"), before.all_drops("ingress") + 1, "{label}");
            assert_eq!(recorded.lock().len(), seen, "`{label}` reached the pod");
        }
        drop(attempting);
        transfers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });

    // One that is as it should be, so that silence above means refusal.
    let seen = recorded.lock().len();
    from_peer.send(&encapsulate(backend, &w, &udp_packet(b.address, a.address, RECORDER, b"genuine")));
    await_until(SOON, "the genuine packet", || recorded.lock().len() > seen);
    assert_eq!(recorded.lock().last(), Some(&(IpAddr::V4(b.address), b"genuine".to_vec())));
}

/// The inner packet of `payload` as trace is asked about it; `None` if its form is false, which trace does not look at.
fn described(backend: Backend, payload: &[u8]) -> Option<String> {
    let (in_front, packet) = match backend {
        Backend::Vxlan => payload.split_at(VXLAN_LEN),
        _ => payload.split_at(0),
    };
    let packet = SlicedPacket::from_ip(packet).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    let header = ip.header().to_header();
    let is_whole = header.options.is_empty() && header.calc_header_checksum() == header.header_checksum;
    let is_ours = in_front.is_empty()
        || in_front[0] != 0 && in_front[6] == 1 && FALSE_MACS.iter().all(|mac| mac[..] != in_front[8..14]);
    (is_whole && is_ours).then(|| {
        let [src, dst] = [header.source, header.destination].map(Ipv4Addr::from);
        let (source_port, port) = (udp.source_port(), udp.destination_port());
        let (len, ttl) = (header.total_len, header.time_to_live);
        format!("src={src}&dst={dst}&protocol=17&source_port={source_port}&port={port}&len={len}&ttl={ttl}")
    })
}

/// All that can be false about a packet in this wire format.
fn attempts(
    backend: Backend,
    w: &Overlayd<'_>,
    pod: Ipv4Addr,
    peers_pod: Ipv4Addr,
    own_public: Ipv4Addr,
) -> Vec<Attempt> {
    use Sender::{Peer, Stranger};
    let packet = |source| udp_packet(source, pod, RECORDER, b"false");
    let wrapped = |source| encapsulate(backend, w, &packet(source));
    let always = |reason| [Some(reason); 3];
    let attempt = |label, sender, payload, expected| Attempt { label, sender, payload, expected };
    let own_pod = Ipv4Addr::from(u32::from(w.env().base()) + 77);
    let mut corrupt = packet(peers_pod);
    corrupt[10] ^= 1;
    // Long enough to pass for an IPv6 header.
    let mut version_six = udp_packet(peers_pod, pod, RECORDER, &[0; 64]);
    version_six[0] = 0x60 | (version_six[0] & 0x0f);

    let towards =
        |destination| encapsulate(backend, w, &udp_packet(peers_pod, destination, RECORDER, b"false"));
    let source_routed = source_routed(peers_pod, own_public, pod, RECORDER);
    let nested = |to| {
        encapsulate(
            backend,
            w,
            &udp_packet(peers_pod, to, backend.port(), &wrapped(Ipv4Addr::new(10, 1, 7, 2))),
        )
    };
    let peer = w.status().0["peers"][0]["public_ip"].as_str().and_then(|text| text.parse().ok());
    let peer: Ipv4Addr = peer.expect("a peer's address");
    let mut attempts = vec![
        attempt(
            "an unknown sender",
            Stranger,
            wrapped(peers_pod),
            [Some("unknown_address"), Some("unknown_address"), None],
        ),
        attempt(
            "an unknown sender of nobody's packet",
            Stranger,
            wrapped(NOBODY),
            [Some("unknown_peer"), Some("unknown_peer"), None],
        ),
        attempt("an address of an earlier subnet", Peer, wrapped(NOBODY), [Some("stale_source"), None, None]),
        attempt("a loopback source", Peer, wrapped(Ipv4Addr::LOCALHOST), always("martian_source")),
        attempt("a multicast source", Peer, wrapped(Ipv4Addr::new(224, 0, 0, 5)), always("martian_source")),
        attempt("the broadcast as source", Peer, wrapped(Ipv4Addr::BROADCAST), always("martian_source")),
        attempt("a loopback destination", Peer, towards(Ipv4Addr::LOCALHOST), always("martian_destination")),
        attempt("a multicast destination", Peer, towards(MULTICAST), always("martian_destination")),
        attempt("a broadcast to all", Peer, towards(Ipv4Addr::BROADCAST), always("martian_destination")),
        attempt("a source route", Peer, encapsulate(backend, w, &source_routed), always("source_route")),
        attempt("a tunnel in the tunnel", Peer, nested(own_public), always("nested_tunnel")),
        attempt("a tunnel in the tunnel, to another", Peer, nested(peer), always("nested_tunnel")),
        attempt("an own pod's address", Peer, wrapped(own_pod), always("own_source")),
        attempt("the pod's own address", Peer, wrapped(pod), always("own_source")),
        attempt("the host's overlay address", Peer, wrapped(w.env().base()), always("own_source")),
        attempt("the host's public address", Peer, wrapped(own_public), always("own_source")),
        attempt("a false header checksum", Peer, encapsulate(backend, w, &corrupt), always("malformed")),
        attempt("another version of IP", Peer, encapsulate(backend, w, &version_six), always("not_ip")),
    ];
    if backend == Backend::Vxlan {
        let own_mac = own_mac(w);
        let [other_mac, broadcast] = FALSE_MACS;
        let packet = packet(peers_pod);
        let mut no_vni = vxlan_frame(1, own_mac, &packet);
        no_vni[0] = 0;
        attempts.extend([
            attempt("another VNI", Peer, vxlan_frame(2, own_mac, &packet), always("wrong_vni")),
            attempt("another MAC", Peer, vxlan_frame(1, other_mac, &packet), always("wrong_mac")),
            attempt("the broadcast MAC", Peer, vxlan_frame(1, broadcast, &packet), always("wrong_mac")),
            attempt("no VNI at all", Peer, no_vni, always("bad_vxlan_header")),
        ]);
    }
    attempts
}

/// A container on a bridge of its own, outside of the overlay, which docker masquerades.
fn container(host: &Host) -> Namespace {
    let container = Namespace::new("container");
    host.ns.ip(&format!(
        "link add br-other type bridge\n\
         address add 172.18.0.1/16 dev br-other\n\
         link set br-other up\n\
         link add other type veth peer name eth0 netns {}\n\
         link set other master br-other up",
        container.name()
    ));
    container.ip("address add 172.18.0.2/16 dev eth0\nlink set eth0 up\nroute add default via 172.18.0.1");
    host.ns.ok("iptables -t nat -A POSTROUTING -s 172.18.0.0/16 ! -o br-other -j MASQUERADE");
    container
}

/// A pod, or a container outside of the overlay, without any right sends what a node would to another's tunnel.
/// Masqueraded, it would have its node's address. The nodes may be in the network, as in flannel's own example of
/// 10.0.0.0/8.
#[test]
fn a_pod_cannot_speak_for_its_node() {
    let wide = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"vxlan"}}"#;
    let usual = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
    for (addresses, config) in
        [(["192.168.1.12", "192.168.199.238"], usual), (["10.200.1.12", "10.200.2.238"], wide)]
    {
        let site = Site::new();
        let [worker, master] = [("worker", addresses[0]), ("master", addresses[1])]
            .map(|(name, address)| site.host(name, address));
        let store = Store::dir_with(&site, "store", config);
        let m = master.overlayd(&store).start();
        let b = master.bridge_and_pod(&m.env());
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let record = recorded.clone();
        let _recorder = Server::udp(&b.ns, RECORDER, move |payload, _| {
            record.lock().push(String::from_utf8_lossy(payload).into_owned());
            None
        });
        let mut bridged: Option<Pod> = None;
        let outside = container(&worker);
        for (firewall, forward_rules) in
            [("nftables", false), ("nftables", true), ("iptables", false), ("iptables", true)]
        {
            let w = worker
                .overlayd(&store)
                .flag(&format!("--firewall={firewall}"))
                .flag(&format!("--iptables-forward-rules={forward_rules}"))
                .start();
            await_mesh(&[&w, &m]);
            let a = bridged.get_or_insert_with(|| {
                // As docker has it.
                let subnet = w.env().base_with_length();
                let masquerade = format!("-s {subnet} ! -o docker0 -j MASQUERADE");
                worker.ns.ok(&format!("iptables -t nat -A POSTROUTING {masquerade}"));
                worker.bridge_and_pod(&w.env())
            });
            let neighbour = Ipv4Addr::from(u32::from(w.env().base()) + 77);
            let frame = |text: &str| {
                vxlan_frame(1, own_mac(&m), &udp_packet(neighbour, b.address, RECORDER, text.as_bytes()))
            };
            recorded.lock().clear();
            Injector::new(&a.ns, master.public_ip, Backend::Vxlan.port()).send(&frame("by a pod"));
            Injector::new(&outside, master.public_ip, Backend::Vxlan.port()).send(&frame("by a container"));
            Injector::new(&worker.ns, master.public_ip, Backend::Vxlan.port()).send(&frame("by the node"));
            let has_arrived = |text: &str| recorded.lock().contains(&text.to_owned());
            await_until(SOON, "the node's own", || has_arrived("by the node"));
            let arrived = [has_arrived("by a pod"), has_arrived("by a container")];
            assert_eq!(arrived, [!forward_rules; 2], "{config}: {firewall}");
            w.stop();
        }
    }
}

#[test]
fn a_vxlan_frame_cut_at_any_length_is_dropped() {
    a_packet_cut_at_any_length_is_dropped(Backend::Vxlan);
}

#[test]
fn a_udp_packet_cut_at_any_length_is_dropped() {
    a_packet_cut_at_any_length_is_dropped(Backend::Udp);
}

fn a_packet_cut_at_any_length_is_dropped(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, backend);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
    let injector = Injector::new(&master.ns, worker.public_ip, backend.port());
    let before = w.status();
    let whole = encapsulate(backend, &w, &udp_packet(b.address, a.address, RECORDER, b"to be cut"));
    for length in 0..whole.len() {
        injector.send(&whole[..length]);
    }
    let count = |status: &integration::Status| status.drops("ingress", "truncated");
    let expected = whole.len() as u64;
    await_until(SOON, "every length to be counted", || count(&w.status()) - count(&before) == expected);
    assert_eq!(w.status().all_drops("ingress") - before.all_drops("ingress"), expected);
    traffic::ping(&a.ns, b.address);
}

#[test]
fn what_a_node_has_besides_is_no_other_nodes_and_no_gateways() {
    let (site, worker, master) = Site::two_hosts();
    let other = site.host("other", "192.168.66.6");
    let (theirs, gateways) = (Ipv4Addr::new(172, 16, 5, 1), Ipv4Addr::new(192, 168, 1, 1));
    for host in [&master, &other] {
        host.ns.ip(&format!("address add {theirs}/32 dev lo\naddress add {gateways}/32 dev lo"));
    }
    let store = Store::dir_with_free_subnets(&site, "store", Backend::Vxlan);
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let a = worker.bridge_and_pod(&w.env());
    // The way to these addresses is not the one that they come by.
    for of in ["all", "flannel.1"] {
        worker.ns.sysctl(&format!("net/ipv4/conf/{of}/rp_filter"), "0");
    }
    let (heard, hear) = mpsc::channel();
    let _recorder = Server::udp(&a.ns, RECORDER, move |payload, from| {
        let _ = heard.send((from, payload.to_vec()));
        None
    });
    let packet = |from: Ipv4Addr, text: &[u8]| {
        encapsulate(Backend::Vxlan, &w, &udp_packet(from, a.address, RECORDER, text))
    };
    let refused = || w.status().drops("ingress", "wrong_source");
    let is_refused = |injector: &Injector, from: Ipv4Addr| {
        let before = refused();
        injector.send(&packet(from, b"false"));
        await_until(SOON, "it to be refused", || refused() > before);
    };

    let from_master = Injector::new(&master.ns, worker.public_ip, Backend::Vxlan.port());
    await_until(SOON, "the master's other address to be known", || {
        from_master.send(&packet(theirs, b"genuine"));
        hear.try_recv().is_ok()
    });
    is_refused(&from_master, gateways);

    let o = other.overlayd(&store).start();
    await_mesh(&[&w, &m, &o]);
    let from_other = Injector::new(&other.ns, worker.public_ip, Backend::Vxlan.port());
    await_until(SOON, "the other one to be asked", || {
        is_refused(&from_other, theirs);
        w.log().contains("that another has said before")
    });
    is_refused(&from_other, theirs);
    is_refused(&from_other, gateways);
    let told = w.log().matches("another address of its own as their source").count();
    assert_eq!(told, 1, "{}", w.log());
    assert!(hear.try_iter().all(|(from, payload)| from == theirs && payload == b"genuine"));
}

#[test]
fn a_packet_of_ours_that_comes_back_is_dropped() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        let (site, worker, master) = Site::two_hosts();
        let stores = ["worker", "master"].map(|name| Store::dir_with_free_subnets(&site, name, backend));
        // Each takes the other for the owner of one more subnet. The second does not draw the first one's own.
        let tell = |of: &Overlayd<'_>, from: &Store, to: &Store| {
            let key = of.env().base_with_length().replace('/', "-");
            let value = &from.leases()[&key];
            to.put_lease(&key, value);
            to.put_lease(&LOOP.replace('/', "-"), value);
        };
        let w = worker.overlayd(&stores[0]).start();
        tell(&w, &stores[0], &stores[1]);
        let m = master.overlayd(&stores[1]).start();
        tell(&m, &stores[1], &stores[0]);
        w.await_peers(&[LOOP, &m.env().base_with_length()]);
        m.await_peers(&[LOOP, &w.env().base_with_length()]);
        let a = worker.bridge_and_pod(&w.env());
        let wire = Capture::start(
            &site.router,
            &Site::lan_device(worker.public_ip),
            // Not the echoes that ask for the path's MTU, which are longer, or shorter.
            &format!("udp port {} and greater 900 and less 1300", backend.port()),
            worker.directory(),
        );
        a.ns.run("ping -n -c 1 -W 0.1 -s 1000 10.1.250.2");
        await_until(SOON, "the packet to come back", || w.status().drops("ingress", "own_source") > 0);
        wire.frames(2);
        assert_eq!(wire.stop().len(), 2, "once to the master, and once back");
    }
}

#[test]
fn a_directed_broadcast_reaches_no_pod_and_nobody_is_told() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
        await_mesh(&[&w, &m]);
        let (a, b) = (worker.bridge_and_pod(&w.env()), master.bridge_and_pod(&m.env()));
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let record = recorded.clone();
        let _recorder = Server::udp(&a.ns, RECORDER, move |payload, _| {
            record.lock().push(payload.to_vec());
            None
        });
        let injector = Injector::new(&master.ns, worker.public_ip, backend.port());
        let send = |destination, payload: &[u8]| {
            injector.send(&encapsulate(backend, &w, &udp_packet(b.address, destination, RECORDER, payload)));
        };
        let subnets = Ipv4Addr::from(u32::from(w.env().base()) + 255);
        send(subnets, b"to the subnet");
        send(Ipv4Addr::new(10, 1, 255, 255), b"to the network");
        send(a.address, b"to the pod");
        await_until(SOON, "the pod's own", || !recorded.lock().is_empty());
        assert_eq!(*recorded.lock(), [b"to the pod"]);
        await_until(SOON, "the network's broadcast to come back from the host", || {
            w.status().drops("egress", "no_route") == 1
        });
        assert_eq!(w.status().0["icmp_sent"], 0);
    }
}

fn encapsulate(backend: Backend, w: &Overlayd<'_>, packet: &[u8]) -> Vec<u8> {
    match backend {
        Backend::Udp => packet.to_vec(),
        Backend::Vxlan => vxlan_frame(1, own_mac(w), packet),
    }
}

fn own_mac(w: &Overlayd<'_>) -> [u8; 6] {
    mac(w.status().0["backend"]["vtep_mac"].as_str().expect("a VTEP MAC"))
}
