//! Super-packets leave whole behind virtual wires, as those of a kernel's own VXLAN device do: the
//! way of the host's own packets, past the rules for what it forwards, and only as long as it pays.

use std::collections::{BTreeMap, BTreeSet};

use integration::capture::Capture;
use integration::kernel_vxlan::KernelVxlan;
use integration::overlayd::program;
use integration::service_manager::ServiceManager;
use integration::{Backend, Host, Overlayd, Pair, Pod, SOON, Site, Store, Wire, await_until, traffic};

#[test]
fn super_packets_leave_whole_behind_a_router() {
    let (site, worker, master) = Site::two_hosts();
    // As docker leaves a host, and more: nothing that is forwarded passes by itself.
    for host in [&worker, &master] {
        host.ns.ok("iptables -P FORWARD DROP");
    }
    let pods = Pods::start(&site, &worker, &master, &[]);
    master.ns.ok("iptables -A FORWARD -s 10.1.0.0/16 -d 10.1.0.0/16 -j ACCEPT");
    super_packets_leave_whole(&pods);
}

#[test]
fn super_packets_leave_whole_on_one_link() {
    let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
    super_packets_leave_whole(&Pods::start(&site, &worker, &master, &[]));
}

fn super_packets_leave_whole(pods: &Pods<'_>) {
    if !pods.kernel_can() {
        return;
    }
    pods.both_ways(8);
    let counters = || pods.daemon.status().0["counters"]["egress"].clone();
    let (mut before, mut sent) = (counters(), Vec::new());
    // All but what went before the first answers told what the peer is. (A capture on a busy machine misses some, and
    // senders that move overtake themselves.)
    await_until(SOON, "three quarters to leave whole, and in order", || {
        before = counters();
        sent = pods.capture(32);
        let whole = sent.iter().filter(|packet| packet.is_whole());
        whole.map(|packet| packet.payload).sum::<usize>() > 24 << 20 && are_in_order(&sent)
    });
    let after = counters();

    // One as the other: in order, by one port that is not the backend's, as the sockets send.
    let headers: BTreeSet<_> =
        sent.iter().map(|p| (p.flow, p.source_port, p.ttl, p.tos, p.fragment_bits)).collect();
    let flows: BTreeSet<_> = sent.iter().map(|packet| packet.flow).collect();
    assert_eq!(headers.len(), flows.len(), "{headers:?}");
    assert!(sent.iter().all(|packet| packet.source_port != 8472 && packet.has_outer_checksum), "{headers:?}");
    // They count as the segments that they would be.
    let count = |of: &serde_json::Value, what: &str| of[what].as_u64().unwrap();
    let packets = count(&after, "packets") - count(&before, "packets");
    let bytes = count(&after, "bytes") - count(&before, "bytes");
    assert!(packets > (32 << 20) / 1450 && bytes > 33 << 20, "{packets} packets, {bytes} bytes");
    assert_eq!(pods.dropped(), 0);
}

#[test]
fn without_it_and_on_a_plain_wire_segments_leave() {
    for (wire, flags) in [
        (Wire::Virtual, &["--offload=tso,uso,gso,gro"][..]),
        (Wire::Plain, &[]),
        (Wire::Virtual, &["--offload=off"]),
    ] {
        let (site, worker, master) = Site::two_hosts_on(wire);
        let pods = Pods::start(&site, &worker, &master, flags);
        pods.both_ways(8);
        assert!(pods.capture(4).iter().all(|packet| !packet.is_whole()), "{wire:?} {flags:?}");
        assert_eq!(pods.dropped(), 0, "{wire:?} {flags:?}");
        assert!(!pods.daemon.status().offloads().contains(&"tunnel-gso"), "{wire:?} {flags:?}");
        assert!(!pods.has_tap(), "a TAP that nobody wants: {wire:?} {flags:?}");
    }
}

#[test]
fn the_way_is_the_hosts_own_also_when_it_changes() {
    let (site, worker, master) = Site::two_hosts();
    let pods = Pods::start(&site, &worker, &master, &[]);
    let leaves_whole = |what: &str| {
        pods.both_ways(4);
        let whole = pods.capture(8).iter().any(Packet::is_whole);
        assert_eq!(whole, pods.kernel_can(), "{what}");
    };
    leaves_whole("at first");
    site.router.ip("link set lan1 address 02:00:00:00:01:77");
    worker.ns.ip("neigh flush dev eth0");
    leaves_whole("with another address of the gateway's port");
    site.router.ip("address add 192.168.1.2/24 dev lan1");
    worker.ns.ip("route replace default via 192.168.1.2");
    leaves_whole("by another gateway");
    worker.ns.ip("link add other type veth peer name other1\nlink set other up\nlink set other1 up\n\
         address add 192.168.77.1/24 dev other\nroute add 192.168.199.238/32 via 192.168.77.2 dev other");
    worker.ns.ip("route del 192.168.199.238/32");
    leaves_whole("after a way that led nowhere");
    assert_eq!(pods.dropped(), 0);

    // What the way does not carry whole is cut, and what fits it not at all goes in fragments.
    worker.ns.ip("route replace 192.168.199.0/24 via 192.168.1.1 mtu lock 1400");
    pods.both_ways(4);
    assert!(pods.capture(1).iter().all(|packet| !packet.is_whole()), "a way with an MTU of 1400");
    assert_eq!(pods.dropped(), 0);
    worker.ns.ip("route replace 192.168.199.0/24 via 192.168.1.1");
    leaves_whole("with the full MTU again");
}

#[test]
fn nothing_is_sent_whole_to_who_finishes_what_he_sends() {
    let (site, worker, master) = Site::two_hosts();
    let mut pods = Pods::start(&site, &worker, &master, &[]);
    pods.both_ways(4);
    assert_eq!(pods.capture(8).iter().any(Packet::is_whole), pods.kernel_can());

    // The peer's own port becomes one that finishes checksums and cuts.
    master.ns.ok("ethtool -K eth0 tx off tso off gso off tx-udp_tnl-segmentation off");
    pods.both_ways(1);
    assert!(pods.capture(8).iter().all(|packet| !packet.is_whole()), "to a plain port");
    master.ns.ok("ethtool -K eth0 tx on tso on gso on tx-udp_tnl-segmentation on");
    pods.both_ways(1);
    assert_eq!(pods.capture(8).iter().any(Packet::is_whole), pods.kernel_can(), "to a virtual port again");

    // Our own port does not pass them any more.
    worker.ns.ok("ethtool -K eth0 tx-udp_tnl-csum-segmentation off");
    let daemon = &pods.daemon;
    await_until(SOON, "the offload to be given up", || !daemon.status().offloads().contains(&"tunnel-gso"));
    assert!(pods.capture(8).iter().all(|packet| !packet.is_whole()), "by a port that cannot");
    assert_eq!(pods.dropped(), 0);

    // Also the TAP can go; the next daemon makes another one.
    worker.ns.ok("ethtool -K eth0 tx-udp_tnl-csum-segmentation on");
    pods = pods.restart(&worker);
    pods.both_ways(4);
    assert_eq!(pods.capture(8).iter().any(Packet::is_whole), pods.kernel_can(), "after a restart");
    if pods.has_tap() {
        worker.ns.ip("link del overlay.1");
        let said = "device=\"overlay.1\"";
        await_until(SOON, "it to be made anew", || pods.has_tap() && pods.daemon.log().contains(said));
        pods.both_ways(4);
        pods.await_whole();
        assert_eq!(pods.dropped(), 0);
    }
}

#[test]
fn the_tap_stays_for_the_next_process() {
    let (site, worker, master) = Site::two_hosts();
    let mut pods = Pods::start(&site, &worker, &master, &[]);
    if !pods.kernel_can() {
        return;
    }
    let index = || worker.ns.ok("ip -o link show overlay.1").split(':').next().map(str::to_owned);
    let first = index();
    for end in [Overlayd::stop_for_restart, Overlayd::crash] {
        pods = pods.followed(end, &[]);
        assert_eq!(index(), first, "another TAP");
        pods.await_whole();
        pods.both_ways(4);
        assert!(pods.capture(8).iter().any(Packet::is_whole));
    }
    // The program there is of the process that reads its counters: what it refuses is cut, and not lost.
    worker.ns.ip("route replace 192.168.199.0/24 via 192.168.1.1 mtu lock 1400");
    pods.both_ways(4);
    assert!(pods.capture(1).iter().all(|packet| !packet.is_whole()), "a way with an MTU of 1400");
    assert_eq!(pods.dropped(), 0);

    // One that somebody has taken away is made anew.
    worker.ns.ip("link del overlay.1");
    pods = pods.followed(Overlayd::stop_for_restart, &[]);
    let second = index();
    assert!(second != first && !pods.daemon.log().contains("refused"), "{}", pods.daemon.log());
    pods = pods.followed(Overlayd::stop_for_restart, &[]);
    assert_eq!(index(), second, "another TAP");

    // And one that is not wanted goes.
    let pods = pods.followed(Overlayd::stop_for_restart, &["--offload=tso,uso,gso,gro"]);
    await_until(SOON, "the TAP to go", || !pods.has_tap());
}

#[test]
fn two_daemons_find_out_whether_super_packets_arrive_whole() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    // How many of a hundred octets leave the worker whole, while so many MiB go one way.
    let whole = |mebibytes: usize| {
        let wire = Capture::start_with_headers(&worker.ns, "eth0", FILTER, worker.directory());
        traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, mebibytes);
        let sent: Vec<_> = wire.stop().iter().filter_map(|frame| Packet::read(frame)).collect();
        let octets =
            sent.iter().filter(|packet| packet.is_whole()).map(|packet| packet.payload).sum::<usize>();
        100 * octets / (mebibytes << 20)
    };
    if !worker.ns.run("ip link show overlay.1").status.success() {
        return;
    }
    // The first packets are enough for them to know of each other.
    traffic::ping(&pair.a.ns, pair.b.address);
    for host in [&worker, &master] {
        await_until(SOON, "each to know what the other runs", || {
            let peers = host.ns.ok(&format!("{} peers --json", program("overlayctl").display()));
            let peers: serde_json::Value = serde_json::from_str(&peers).expect("JSON");
            peers["peers"][0]["answers"] == true
        });
    }
    await_until(SOON, "nearly all to leave whole", || whole(8) > 75);

    // Some are sent to try, and no more, where the peer's own wire finishes what it carries.
    site.router.ok("ethtool -K lan199 tx off tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off");
    await_until(SOON, "next to nothing to leave whole", || whole(8) < 10);
    pair.assert_nothing_dropped();

    // The TAP goes with its daemon.
    pair.left.stop();
    assert!(!worker.ns.run("ip link show overlay.1").status.success());
}

/// The daemon on the worker, the kernel on the master, and a pod on each.
struct Pods<'h> {
    worker: &'h Host,
    store: Store,
    daemon: Overlayd<'h>,
    a: Pod,
    b: Pod,
}

impl<'h> Pods<'h> {
    fn start(site: &Site, worker: &'h Host, master: &Host, flags: &[&str]) -> Self {
        let store = Store::dir(site, Backend::Vxlan);
        let mut kernel = KernelVxlan::start(master, &store, "10.1.163");
        let launch = flags.iter().fold(worker.overlayd(&store), |launch, flag| launch.flag(flag));
        let daemon = launch.start();
        daemon.await_peers(&["10.1.163.0/24"]);
        kernel.follow(&store);
        let (a, b) = (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()));
        Self { worker, store, daemon, a, b }.with_rules_read()
    }

    fn restart(self, worker: &'h Host) -> Self {
        let Self { store, daemon, a, b, .. } = self;
        daemon.stop();
        let daemon = worker.overlayd(&store).start();
        Self { worker, store, daemon, a, b }.with_rules_read()
    }

    /// The next process, which goes on with what the service manager has kept of the one that is ended.
    fn followed(self, end: fn(Overlayd<'h>) -> ServiceManager, flags: &[&str]) -> Self {
        let Self { worker, store, daemon, a, b } = self;
        let launch = worker.overlayd(&store).by(end(daemon));
        let daemon = flags.iter().fold(launch, |launch, flag| launch.flag(flag)).start();
        Self { worker, store, daemon, a, b }.with_rules_read()
    }

    /// Before the daemon has read the host's rules nothing leaves whole.
    fn with_rules_read(self) -> Self {
        await_until(SOON, "the host's rules to be read", || {
            self.daemon.status().0["offloads_held"].as_object().is_none_or(serde_json::Map::is_empty)
        });
        self
    }

    fn both_ways(&self, mebibytes: usize) {
        traffic::transfer(&self.b.ns, &self.a.ns, self.a.address, mebibytes);
        traffic::transfer(&self.a.ns, &self.b.ns, self.b.address, mebibytes);
    }

    /// What leaves the worker for the kernel while so many MiB are sent to it.
    fn capture(&self, mebibytes: usize) -> Vec<Packet> {
        let wire = Capture::start_with_headers(&self.worker.ns, "eth0", FILTER, self.worker.directory());
        traffic::transfer(&self.a.ns, &self.b.ns, self.b.address, mebibytes);
        wire.stop().iter().filter_map(|frame| Packet::read(frame)).collect()
    }

    fn dropped(&self) -> u64 {
        let status = self.daemon.status();
        status.all_drops("egress") + status.all_drops("ingress")
    }

    /// Waits until the host's rules have been read, before which nothing leaves whole.
    #[track_caller]
    fn await_whole(&self) {
        let on = || self.daemon.status().offloads().contains(&"tunnel-gso");
        await_until(SOON, "super-packets to leave whole", on);
    }

    fn has_tap(&self) -> bool {
        self.worker.ns.run("ip link show overlay.1").status.success()
    }

    /// Whether this kernel takes such packets from a TAP: since Linux 6.17.
    fn kernel_can(&self) -> bool {
        let release = self.worker.ns.ok("uname -r");
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(6), Some(17))
    }
}

/// TCP in a frame to the kernel peer.
#[derive(Debug)]
struct Packet {
    source_port: u16,
    tos: u8,
    ttl: u8,
    fragment_bits: u16,
    has_outer_checksum: bool,
    flow: [u8; 12],
    /// The identification of the inner IPv4 header, or of its first segment's.
    id: u16,
    /// Octets of TCP payload behind the first headers. (A run of segments is one frame here, too, but each of them
    /// has headers of its own.)
    payload: usize,
}

impl Packet {
    /// Reads an outer frame: Ethernet, IPv4, UDP, VXLAN, Ethernet, IPv4, TCP.
    fn read(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
        let tcp = INNER + 20;
        if *frame.get(INNER + 9)? != 6 {
            return None;
        }
        let headers = 20 + usize::from(*frame.get(tcp + 12)? >> 4) * 4;
        let mut flow = [0; 12];
        flow[..8].copy_from_slice(frame.get(INNER + 12..INNER + 20)?);
        flow[8..].copy_from_slice(frame.get(tcp..tcp + 4)?);
        Some(Self {
            source_port: word(34)?,
            tos: *frame.get(15)?,
            ttl: *frame.get(22)?,
            fragment_bits: word(20)?,
            has_outer_checksum: word(40)? != 0,
            flow,
            id: word(INNER + 4)?,
            payload: usize::from(word(INNER + 2)?) - headers,
        })
    }

    /// Whether it holds more than a segment.
    fn is_whole(&self) -> bool {
        self.payload > 1450
    }
}

/// Whether hardly a packet is overtaken by a later one of its flow: the sender numbers what it sends, also what it
/// sends again. But the pod's kernel overtakes now and then, when its sender moves to another processor.
fn are_in_order(packets: &[Packet]) -> bool {
    let mut flows = BTreeMap::<_, u16>::new();
    // (What has no payload may come from a socket that does not number, as while it opens and closes.)
    let late = packets.iter().filter(|packet| packet.payload > 0).filter(|packet| {
        let last = flows.insert(packet.flow, packet.id).unwrap_or(packet.id);
        packet.id.wrapping_sub(last) >= 1 << 15
    });
    late.count() * 100 <= packets.len()
}

const FILTER: &str = "udp dst port 8472 and (src host 192.168.1.12)";
/// Where the inner IPv4 header stands.
const INNER: usize = 14 + 20 + 8 + 8 + 14;
