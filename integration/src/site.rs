//! Sites: a router, LANs, hosts and their pods.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::netns::{Namespace, directory_prefix};

/// A router and the LANs around it. Made first, dropped last.
#[derive(Debug)]
pub struct Site {
    /// Forwards between the LANs, and is where the store's server runs: every host reaches it.
    pub router: Namespace,
    lans: Mutex<BTreeSet<Ipv4Addr>>,
    /// Neighbours on a LAN that only have to be there.
    bystanders: Vec<Namespace>,
    directory: TempDir,
}

/// What frames are like on a LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// As on one machine or between its containers: super-packets pass whole, checksums unfilled.
    Virtual,
    /// As on a cable: frames of the MTU, finished by their sender, and joined by the receiver's GRO.
    Plain,
}

/// A host: one interface `eth0` to its LAN, and room for `docker0`, pods and an overlay.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Namespace,
    /// Its name.
    pub name: String,
    /// The address of its `eth0`, under which the other hosts know it.
    pub public_ip: Ipv4Addr,
    directory: PathBuf,
}

/// A container's network: one interface `eth0` on a host's `docker0`.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub ns: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

/// What a subnet file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`, as in `10.1.0.0/16`.
    pub network: String,
    /// `FLANNEL_SUBNET`, as in `10.1.9.1/24`: the bridge's address with its length.
    pub subnet: String,
    /// `FLANNEL_MTU`, in octets.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`.
    pub ip_masq: bool,
}

impl Site {
    /// A router without LANs.
    #[track_caller]
    pub fn new() -> Self {
        // Not before the namespace, whose making first removes what earlier runs left.
        let router = Namespace::new("router");
        let directory = tempfile::Builder::new().prefix(&directory_prefix()).tempdir();
        router.sysctl("net/ipv4/ip_forward", "1");
        Self {
            router,
            lans: Mutex::default(),
            bystanders: Vec::new(),
            directory: directory.expect("a temporary directory"),
        }
    }

    /// The seed's two hosts, `worker` 192.168.1.12 and `master` 192.168.199.238, behind their
    /// gateways 192.168.1.1 and 192.168.199.1, which are both the router.
    #[track_caller]
    pub fn two_hosts() -> (Self, Host, Host) {
        Self::two_hosts_on(Wire::Virtual)
    }

    /// The same hosts on LANs of this kind.
    #[track_caller]
    pub fn two_hosts_on(wire: Wire) -> (Self, Host, Host) {
        let site = Self::new();
        let worker = site.host("worker", "192.168.1.12");
        let master = site.host("master", "192.168.199.238");
        if wire == Wire::Plain {
            for host in [&worker, &master] {
                make_plain(&host.ns, "eth0");
                make_plain(&site.router, &Self::lan_device(host.public_ip));
            }
        }
        (site, worker, master)
    }

    /// The same hosts, but the worker's default gateway 192.168.1.1 leads nowhere; the way to the
    /// master is a route of its own:
    ///
    /// ```text
    ///  worker 192.168.1.12 ──┬── 192.168.1.1  default gateway, forwards nothing
    ///                        └── 192.168.1.4  router ── 192.168.199.1 ── master 192.168.199.238
    /// ```
    #[track_caller]
    pub fn two_hosts_by_side_gateway() -> (Self, Host, Host) {
        let mut site = Self::new();
        site.bridged_lan(Ipv4Addr::new(192, 168, 1, 4));
        let worker = site.host("worker", "192.168.1.12");
        let master = site.host("master", "192.168.199.238");
        let gateway = Namespace::new("gateway");
        site.plug(&gateway, Ipv4Addr::new(192, 168, 1, 1));
        site.bystanders.push(gateway);
        worker.ns.ip("route replace default via 192.168.1.1\nroute add 192.168.199.0/24 via 192.168.1.4");
        (site, worker, master)
    }

    /// Two hosts on one LAN, `worker` 192.168.1.12 and `neighbour` 192.168.1.13, and `master`
    /// 192.168.199.238 behind the router:
    ///
    /// ```text
    ///  worker    192.168.1.12 ──┐
    ///                           ├── 192.168.1.1 router 192.168.199.1 ── master 192.168.199.238
    ///  neighbour 192.168.1.13 ──┘
    /// ```
    #[track_caller]
    pub fn three_hosts() -> (Self, [Host; 3]) {
        let site = Self::new();
        site.bridged_lan(Ipv4Addr::new(192, 168, 1, 1));
        let hosts =
            [("worker", "192.168.1.12"), ("neighbour", "192.168.1.13"), ("master", "192.168.199.238")];
        let hosts = hosts.map(|(name, address)| site.host(name, address));
        (site, hosts)
    }

    /// Two hosts on one link, `worker` 192.168.1.12 and `master` 192.168.1.13, with nothing between
    /// them but a bare pair of interfaces. The router is beside the way of their packets; the
    /// master reaches it through the worker:
    ///
    /// ```text
    ///  router 192.168.9.1 ── eth1 worker eth0 192.168.1.12 ── 192.168.1.13 eth0 master
    /// ```
    #[track_caller]
    pub fn two_hosts_on_one_link(wire: Wire) -> (Self, Host, Host) {
        let site = Self::new();
        let host = |name: &str, address: [u8; 4]| Host {
            ns: Namespace::new(name),
            name: name.into(),
            public_ip: address.into(),
            directory: site.directory(name),
        };
        let worker = host("worker", [192, 168, 1, 12]);
        let master = host("master", [192, 168, 1, 13]);
        worker.ns.sysctl("net/ipv4/ip_forward", "1");
        worker.ns.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\n\
             link add eth1 type veth peer name lan9 netns {}\n\
             address add 192.168.1.12/24 dev eth0\nlink set eth0 up\n\
             address add 192.168.9.12/24 dev eth1\nlink set eth1 up\n",
            master.ns.name(),
            site.router.name()
        ));
        master
            .ns
            .ip("address add 192.168.1.13/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.1.12");
        site.router
            .ip("address add 192.168.9.1/24 dev lan9\nlink set lan9 up\nroute add default via 192.168.9.12");
        site.lans.lock().insert(Ipv4Addr::new(192, 168, 9, 1));
        if wire == Wire::Plain {
            make_plain(&worker.ns, "eth0");
            make_plain(&master.ns, "eth0");
        }
        (site, worker, master)
    }

    /// Adds a host with this address on a new /24 LAN of its own, with the router's leg at `.1`. The
    /// host filters by reverse path, as the seed's do.
    #[track_caller]
    pub fn host(&self, name: &str, address: &str) -> Host {
        let public_ip: Ipv4Addr = address.parse().expect("an IPv4 address");
        let ns = Namespace::new(name);
        let gateway = self.plug(&ns, public_ip);
        ns.ip(&format!("route add default via {gateway}"));
        for key in ["all", "default", "eth0"] {
            ns.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "1");
        }
        let directory = self.directory(name);
        Host { ns, name: name.into(), public_ip, directory }
    }

    /// A directory of this name for a program's files; it goes with the site.
    #[track_caller]
    pub fn directory(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join(name);
        fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("create {}: {e}", directory.display()));
        directory
    }

    /// The router's address on its first LAN, which every host reaches.
    #[track_caller]
    pub fn router_address(&self) -> Ipv4Addr {
        *self.lans.lock().first().expect("a site with a LAN")
    }

    /// The name of the router's leg on the LAN of this address.
    pub fn lan_device(address: Ipv4Addr) -> String {
        format!("lan{}", address.octets()[2])
    }

    /// Joins a namespace's new `eth0` to the LAN of its address and returns the router's address there.
    /// A new LAN is a bare pair of interfaces: a bridge would compute the checksums and cut the
    /// super-packets that a kernel VXLAN device sends, and so hide what the daemon has to cope with.
    #[track_caller]
    fn plug(&self, ns: &Namespace, address: Ipv4Addr) -> Ipv4Addr {
        let [a, b, c, d] = address.octets();
        let (lan, name) = (Self::lan_device(address), ns.name());
        let mut lans = self.lans.lock();
        let gateway = match lans.iter().find(|gateway| gateway.octets()[..3] == [a, b, c]) {
            Some(&gateway) => {
                let port = format!("port{c}-{d}");
                self.router.ip(&format!(
                    "link add {port} type veth peer name eth0 netns {name}\nlink set {port} master {lan} up"
                ));
                gateway
            }
            None => {
                let gateway = Ipv4Addr::new(a, b, c, 1);
                self.router.ip(&format!(
                    "link add {lan} type veth peer name eth0 netns {name}\n\
                     address add {gateway}/24 dev {lan}\nlink set {lan} up"
                ));
                lans.insert(gateway);
                gateway
            }
        };
        ns.ip(&format!("address add {address}/24 dev eth0\nlink set eth0 up"));
        gateway
    }

    /// Makes a /24 LAN for several hosts, a bridge, on which the router has this address.
    #[track_caller]
    fn bridged_lan(&self, gateway: Ipv4Addr) {
        let bridge = Self::lan_device(gateway);
        self.router.ip(&format!(
            "link add {bridge} type bridge\naddress add {gateway}/24 dev {bridge}\nlink set {bridge} up"
        ));
        self.lans.lock().insert(gateway);
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// Where its programs keep their files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes `docker0` as docker does from the subnet file: its address and its MTU.
    #[track_caller]
    pub fn bridge(&self, env: &SubnetEnv) {
        self.ns.ip(&format!(
            "link add docker0 type bridge\nlink set docker0 mtu {} up\naddress add {} dev docker0",
            env.mtu, env.subnet
        ));
    }

    /// Adds the `number`th pod (from 0) to `docker0`; the first has the address `.2`.
    #[track_caller]
    pub fn pod(&self, env: &SubnetEnv, number: u8) -> Pod {
        let bridge = env.bridge_address();
        let address = Ipv4Addr::from(u32::from(bridge) + 1 + u32::from(number));
        let ns = Namespace::new(&format!("{}-pod{number}", self.name));
        let (mtu, length, name) = (env.mtu, env.length(), ns.name());
        self.ns.ip(&format!(
            "link add pod{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}\n\
             link set pod{number} master docker0 up"
        ));
        ns.ip(&format!(
            "address add {address}/{length} dev eth0\nlink set eth0 up\nroute add default via {bridge}"
        ));
        Pod { ns, address }
    }

    /// `docker0` and its first pod.
    #[track_caller]
    pub fn bridge_and_pod(&self, env: &SubnetEnv) -> Pod {
        self.bridge(env);
        self.pod(env, 0)
    }
}

impl SubnetEnv {
    /// What the file of a host with this subnet (`10.1.9`, the first three octets of a /24) would say.
    pub fn of(subnet: &str, mtu: u32) -> Self {
        Self { network: "10.1.0.0/16".into(), subnet: format!("{subnet}.1/24"), mtu, ip_masq: false }
    }

    /// Reads a subnet file, checking that the lines are flannel's, in flannel's order.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        let lines: Vec<_> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let keys: Vec<_> = lines.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"], "{text}");
        Self {
            network: lines[0].1.into(),
            subnet: lines[1].1.into(),
            mtu: lines[2].1.parse().expect("FLANNEL_MTU, a number"),
            ip_masq: lines[3].1.parse().expect("FLANNEL_IPMASQ, true or false"),
        }
    }

    /// The bridge's address, the first of the subnet.
    pub fn bridge_address(&self) -> Ipv4Addr {
        self.subnet.split('/').next().and_then(|a| a.parse().ok()).expect("FLANNEL_SUBNET, an address")
    }

    /// The subnet's own address, which the overlay device carries.
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.bridge_address()) - 1)
    }

    /// The subnet with its host bits zero, as in `10.1.9.0/24`.
    pub fn base_with_length(&self) -> String {
        format!("{}/{}", self.base(), self.length())
    }

    /// The subnet as it stands in a lease key, as in `10.1.9.0-24`.
    pub fn key(&self) -> String {
        format!("{}-{}", self.base(), self.length())
    }

    fn length(&self) -> &str {
        self.subnet.split_once('/').map(|(_, length)| length).expect("FLANNEL_SUBNET with its length")
    }
}

/// Has an interface send finished frames of its MTU only, and join those that it receives.
#[track_caller]
fn make_plain(ns: &Namespace, device: &str) {
    ns.ok(&format!(
        "ethtool -K {device} tso off gso off tx off {} gro on",
        SEGMENTATION.join(" off ") + " off"
    ));
    let features = ns.ok(&format!("ethtool -k {device}"));
    let is = |feature: &str, state: &str| {
        let mut lines = features.lines().filter_map(|line| line.trim().split_once(": "));
        lines.any(|(name, value)| name == feature && value.split(' ').next() == Some(state))
    };
    let off = ["tcp-segmentation-offload", "generic-segmentation-offload", "tx-checksumming"];
    for feature in off.iter().chain(&SEGMENTATION) {
        assert!(is(feature, "off"), "{device}: {feature} is not off:\n{features}");
    }
    assert!(is("generic-receive-offload", "on"), "{device}: no GRO:\n{features}");
}

/// What an interface could be asked to segment, beside TCP.
const SEGMENTATION: [&str; 3] =
    ["tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
