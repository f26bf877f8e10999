//! Super-packets leave whole only as long as no rule of the host could act on the tunnel's packets: they go past its
//! hooks for what it sends, its IPsec policies and the marks that it routes by.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use integration::capture::Capture;
use integration::kernel_vxlan::KernelVxlan;
use integration::overlayd::program;
use integration::{Backend, Host, Overlayd, Pod, SOON, Site, Store, await_until, traffic};

/// What docker and kube-proxy have on every host, and what is for others or lets pass: none of it counts.
const HARMLESS: &str = "
    iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
    iptables -t nat -N DOCKER
    iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
    iptables -t nat -A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80
    iptables -t nat -N KUBE-POSTROUTING
    iptables -t nat -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING
    iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
    iptables -A OUTPUT -p udp -m udp --dport 4789 -j DROP
    iptables -A OUTPUT -o eth0 -j ACCEPT
    iptables-legacy -A OUTPUT -d 203.0.113.0/24 -j DROP
    nft add table inet counts
    nft add chain inet counts out { type filter hook output priority 0 ';' }
    nft add rule inet counts out udp dport 8472 counter accept
    ip xfrm policy add src 0.0.0.0/0 dst 203.0.113.0/24 dir out action block
    ip rule add fwmark 0x1 lookup 100
    ip rule add uidrange 1000-2000 lookup 100";

/// The daemon's user, whom rules may be about.
const USER: u32 = 998;

/// A second, on a machine that is busy with other tests; and less than the half minute after which all is looked at again
/// whatever the kernel has told.
const PROMPTLY: Duration = Duration::from_secs(15);

/// What the worker sends.
const TUNNEL: &str = "udp dst port 8472 and src host 192.168.1.12";

/// The commands that put a rule of this hook into a table of its own.
fn chain(hook: &str, rule: &str) -> String {
    format!(
        "nft 'add table inet site; add chain inet site c {{ type filter hook {hook} priority 0; }}; add rule inet site c {rule}'"
    )
}

#[test]
fn super_packets_leave_whole_only_while_no_rule_could_act_on_them() {
    let (site, worker, master) = Site::two_hosts();
    let pods = Pods::start(&site, &worker, &master);
    if !pods.are_whole(|| pods.is_on()) {
        return;
    }
    let here = &worker.ns;
    here.feed("sh -e", HARMLESS);
    let no_table = "nft delete table inet site";
    for (rule, gone, named) in [
        (chain("output", "udp dport 8472 ip dscp set ef"), no_table, "chain inet site c (hook output): the rule 'udp dport 8472 ip dscp set ef'"),
        (chain("postrouting", "oifname eth0 meta mark set 5"), no_table, "chain inet site c (hook postrouting)"),
        ("nft 'add table netdev site; add chain netdev site c { type filter hook egress device eth0 priority 0; }; add rule netdev site c ip daddr 192.168.199.238 ip ttl set 9'".to_owned(), "nft delete table netdev site", "chain netdev site c (hook egress)"),
        ("iptables -t mangle -A OUTPUT -m cgroup --cgroup 7 -j MARK --set-mark 1".to_owned(), "iptables -t mangle -F", "iptables, table mangle, chain OUTPUT"),
        ("iptables-legacy -A OUTPUT -p udp -m statistic --mode nth --every 1000000 --packet 0 -j DROP".to_owned(), "iptables-legacy -D OUTPUT 2", "iptables-legacy, chain OUTPUT: the rule"),
        ("ip xfrm policy add src 192.168.1.12/32 dst 192.168.199.238/32 proto udp dport 8472 dir out action block".to_owned(), "ip xfrm policy flush", "the IPsec policy"),
        (format!("ip rule add uidrange {USER}-{USER} lookup main priority 77"), "ip rule del priority 77", "the routing rule 77 uidrange"),
    ] {
        here.feed("sh -e", &rule);
        let is_told = || {
            let offloads = here.ok(&format!("{} offloads", program("overlayctl").display()));
            offloads.contains("tunnel-gso  off ") && offloads.contains(named)
        };
        await_until(PROMPTLY, &format!("the way to be left because of {named}"), is_told);
        assert!(!pods.is_on());
        here.ok(gone);
        await_until(PROMPTLY, "the way to be taken again", || pods.is_on());
        let told = pods.daemon.log().lines().filter(|line| line.contains("tunnel-gso: off") && line.contains(named)).count();
        assert_eq!(told, 1, "{rule}:\n{}", pods.daemon.log());
    }

    // While packets flow: those that leave after a rule has come do so as the rule wants.
    here.feed("sh -e", &chain("output", "udp dport 8472 ip dscp set ef"));
    await_until(PROMPTLY, "all to leave cut, and marked", || {
        let frames = pods.capture(8);
        !frames.is_empty() && frames.iter().all(|frame| !frame.is_whole && frame.tos == 0xb8)
    });
    here.ok(no_table);
    assert!(pods.are_whole(|| true), "the way is taken again");
    let status = pods.daemon.status();
    assert_eq!(status.all_drops("egress") + status.all_drops("ingress"), 0);

    // Nothing leaves at all where an IPsec policy refuses it.
    let (refused, over) = (|| pods.daemon.status().drops("egress", "send_failed"), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                traffic::transfer(&pods.a.ns, &pods.b.ns, pods.b.address, 8);
            }
        });
        let _over = Raised(&over);
        assert!(pods.are_whole(|| true));
        here.ok("ip xfrm policy add src 192.168.1.12/32 dst 192.168.199.238/32 dir out action block");
        await_until(PROMPTLY, "the way to be left", || !pods.is_on() && refused() > 0);
        let wire = Capture::start_with_headers(here, "eth0", TUNNEL, worker.directory());
        let before = refused();
        await_until(SOON, "more to be refused", || refused() > before);
        let frames = wire.stop();
        here.ok("ip xfrm policy flush");
        assert!(frames.is_empty(), "{} frames", frames.len());
    });
}

#[test]
fn nothing_leaves_whole_that_a_rule_there_before_the_start_acts_on() {
    let (site, worker, master) = Site::two_hosts();
    worker.ns.feed("sh -e", &chain("output", "udp dport 8472 ip dscp set ef"));
    let pods = Pods::start(&site, &worker, &master);
    await_until(SOON, "the daemon to hear from the kernel's device", || {
        pods.transfer_back(2);
        pods.daemon.status().0["counters"]["ingress"]["packets"].as_u64() > Some(1000)
    });
    let frames = pods.capture(8);
    assert!(!frames.is_empty() && frames.iter().all(|frame| !frame.is_whole && frame.tos == 0xb8));
}

/// The daemon on the worker, the kernel on the master, and a pod on each.
struct Pods<'h> {
    worker: &'h Host,
    _store: Store,
    daemon: Overlayd<'h>,
    a: Pod,
    b: Pod,
}

/// Raised when it goes, also by a panic.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What leaves the worker for the master.
struct Frame {
    is_whole: bool,
    tos: u8,
}

impl<'h> Pods<'h> {
    fn start(site: &Site, worker: &'h Host, master: &Host) -> Self {
        let store = Store::etcd(site, Backend::Vxlan);
        let mut kernel = KernelVxlan::start(master, &store, "10.1.163");
        let daemon = worker.overlayd(&store).as_user(USER).start();
        daemon.await_peers(&["10.1.163.0/24"]);
        kernel.follow(&store);
        let (a, b) = (worker.bridge_and_pod(&daemon.env()), master.bridge_and_pod(kernel.env()));
        Self { worker, _store: store, daemon, a, b }
    }

    fn is_on(&self) -> bool {
        self.daemon.status().offloads().contains(&"tunnel-gso")
    }

    /// Whether super-packets leave whole, which it awaits where the kernel can have them do so.
    fn are_whole(&self, too: impl Fn() -> bool) -> bool {
        if !self.worker.ns.run("ip link show overlay.1").status.success() {
            return false;
        }
        await_until(SOON, "super-packets to leave whole", || {
            self.transfer_back(2);
            too() && self.capture(8).iter().any(|frame| frame.is_whole)
        });
        true
    }

    fn transfer_back(&self, mebibytes: usize) {
        traffic::transfer(&self.b.ns, &self.a.ns, self.a.address, mebibytes);
    }

    /// What leaves while so many MiB are sent.
    fn capture(&self, mebibytes: usize) -> Vec<Frame> {
        let wire = Capture::start_with_headers(&self.worker.ns, "eth0", TUNNEL, self.worker.directory());
        traffic::transfer(&self.a.ns, &self.b.ns, self.b.address, mebibytes);
        let frame = |frame: &Vec<u8>| {
            // Ethernet, IPv4, UDP, VXLAN, Ethernet: the inner packet's length says more than the frame's, which may be a run.
            let inner = u16::from_be_bytes(frame.get(66..68)?.try_into().ok()?);
            Some(Frame { is_whole: inner > 1450, tos: *frame.get(15)? })
        };
        wire.stop().iter().filter_map(frame).collect()
    }
}
