//! A host whose overlay is the kernel's own VXLAN device, set up from the leases as flanneld does it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::site::{Host, SubnetEnv};
use crate::store::{Backend, Store};

/// A kernel VXLAN device `flannel.1` and what it knows of its peers.
#[derive(Debug)]
pub struct KernelVxlan<'h> {
    host: &'h Host,
    env: SubnetEnv,
    known: BTreeSet<String>,
}

impl<'h> KernelVxlan<'h> {
    /// Makes the device for a subnet (`10.1.63`, the first three octets of a /24) and puts the
    /// host's lease in the store. A lease that is there already gives the device its address.
    #[track_caller]
    pub fn start(host: &'h Host, store: &Store, subnet: &str) -> Self {
        let env = SubnetEnv::of(subnet, 1500 - Backend::Vxlan.overhead());
        let (ns, public_ip, base) = (&host.ns, host.public_ip, env.base());
        ns.sysctl("net/ipv4/ip_forward", "1");
        ns.ip(&format!(
            "link add flannel.1 mtu {} type vxlan id 1 local {public_ip} dev eth0 dstport 8472 nolearning\n\
             address add {base}/32 dev flannel.1\n\
             link set flannel.1 up",
            env.mtu
        ));
        let known = store.leases().remove(&env.key());
        let known = known.and_then(|value| serde_json::from_str::<Value>(&value).ok());
        if let Some(mac) = known.as_ref().and_then(|value| value["BackendData"]["VtepMAC"].as_str()) {
            ns.ip(&format!("link set flannel.1 address {mac}"));
        }
        let link = ns.ok("ip -o link show flannel.1");
        let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        let mac = mac.unwrap_or_else(|| panic!("no MAC address in {link}"));
        let value = format!(
            r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        store.put_lease(&env.key(), &value);
        let mut vxlan = Self { host, env, known: BTreeSet::new() };
        vxlan.follow(store);
        vxlan
    }

    /// Adds forwarding entry, neighbour and route for every lease that is new in the store.
    #[track_caller]
    pub fn follow(&mut self, store: &Store) {
        for (key, value) in store.leases() {
            if key == self.env.key() || self.known.contains(&key) {
                continue;
            }
            let lease: Value = serde_json::from_str(&value).expect("a lease's JSON");
            let address = lease["PublicIP"].as_str().expect("a lease's PublicIP");
            let mac = lease["BackendData"]["VtepMAC"].as_str().expect("a lease's VtepMAC");
            let (base, length) = key.split_once('-').expect("a lease key");
            self.host.ns.ok(&format!("bridge fdb append {mac} dev flannel.1 dst {address}"));
            self.host.ns.ip(&format!(
                "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent\n\
                 route add {base}/{length} via {base} dev flannel.1 onlink"
            ));
            self.known.insert(key);
        }
    }

    /// Puts the rules that flanneld puts with `--ip-masq`, in iptables.
    #[track_caller]
    pub fn put_rules(&self) {
        let (network, base) = (&self.env.network, self.env.base_with_length());
        self.host.ns.feed(
            "iptables-restore --noflush",
            &format!(
                "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
                 -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
                 -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN\n\
                 -A FLANNEL-POSTRTG -s {base} -d {network} -m comment --comment \"flanneld masq\" -j RETURN\n\
                 -A FLANNEL-POSTRTG -s {network} -d {base} -m comment --comment \"flanneld masq\" -j RETURN\n\
                 -A FLANNEL-POSTRTG ! -s {network} -d {base} -m comment --comment \"flanneld masq\" -j RETURN\n\
                 -A FLANNEL-POSTRTG -s {network} ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\n\
                 -A FLANNEL-POSTRTG ! -s {network} -d {network} -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully\n\
                 COMMIT\n\
                 *filter\n:FLANNEL-FWD - [0:0]\n\
                 -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
                 -A FLANNEL-FWD -s {network} -m comment --comment \"flanneld forward\" -j ACCEPT\n\
                 -A FLANNEL-FWD -d {network} -m comment --comment \"flanneld forward\" -j ACCEPT\n\
                 COMMIT\n"
            ),
        );
    }

    /// The address of its device.
    #[track_caller]
    pub fn mac(&self) -> String {
        self.host.ns.ok("cat /sys/class/net/flannel.1/address").trim().to_owned()
    }

    /// The host's subnet, as a subnet file would say it.
    pub fn env(&self) -> &SubnetEnv {
        &self.env
    }
}
