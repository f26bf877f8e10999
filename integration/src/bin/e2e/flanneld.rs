//! A node of flannel's, as its packages set it up. flanneld itself is not here: a program of its name makes the
//! kernel's VXLAN device and the subnet file as flanneld leaves them; what it does for other nodes' leases is
//! done from outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use integration::machine::Machine;
use integration::{Etcd, await_until};
use serde_json::Value;

use crate::{INTERFACE, PATIENCE, PREFIX};

/// What the node has leased.
pub const SUBNET: &str = "172.33.68.0/24";

/// The files of flannel's packages, and docker's drop-in of theirs, on a machine that is about to boot.
pub fn install(root: &Path) {
    let write = |path: &str, text: &str, mode: u32| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("make a directory");
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set a mode");
    };
    write("usr/bin/flanneld", PROGRAM, 0o755);
    write("usr/bin/flanneld-start", "#!/bin/sh\nexec /usr/bin/flanneld \"$@\"\n", 0o755);
    write("usr/libexec/flannel/mk-docker-opts.sh", MK_DOCKER_OPTS, 0o755);
    write("usr/lib/systemd/system/flanneld.service", UNIT, 0o644);
    write("usr/lib/systemd/system/docker.service.d/flannel.conf", DROP_IN, 0o644);
    write(
        "etc/sysconfig/flanneld",
        &format!(
            "FLANNEL_ETCD_ENDPOINTS=\"http://{}:2379\"\nFLANNEL_ETCD_PREFIX=\"{PREFIX}\"\nFLANNEL_OPTIONS=\"-iface={INTERFACE}\"\n",
            crate::ETCD
        ),
        0o644,
    );
    write("etc/sysconfig/docker-network", "DOCKER_NETWORK_OPTIONS=\n", 0o644);
    for wanted in ["multi-user.target.wants", "docker.service.requires"] {
        let directory = root.join("etc/systemd/system").join(wanted);
        fs::create_dir_all(&directory).expect("make a directory");
        std::os::unix::fs::symlink(
            "/usr/lib/systemd/system/flanneld.service",
            directory.join("flanneld.service"),
        )
        .expect("enable flanneld");
    }
}

/// A node that runs flanneld, with its lease.
pub struct Flanneld<'m> {
    ns: &'m integration::Namespace,
}

impl<'m> Flanneld<'m> {
    /// Waits until it serves docker, and registers it.
    pub fn started(machine: &Machine<'m>, etcd: &Etcd) -> Self {
        machine.await_active("docker");
        let bridge = machine.ok("ip -o address show docker0");
        assert!(bridge.contains("172.33.68.1/24"), "docker does not know flanneld's subnet: {bridge}");
        let ns = &machine.host().ns;
        let mac = ns.ok("cat /sys/class/net/flannel.1/address");
        let value = serde_json::json!({
            "PublicIP": machine.host().public_ip.to_string(), "PublicIPv6": null, "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": mac.trim()},
        });
        etcd.put(&key(), &value.to_string());
        Self { ns }
    }

    /// Puts forwarding entry, neighbour and route for every other lease.
    pub fn follow(&self, etcd: &Etcd) {
        let others = etcd.list(&format!("{PREFIX}/subnets/")).into_iter().filter(|(name, _)| *name != key());
        for (name, value) in others {
            let lease: Value = serde_json::from_str(&value).expect("a lease's JSON");
            let address = lease["PublicIP"].as_str().expect("a lease's PublicIP");
            let mac = lease["BackendData"]["VtepMAC"].as_str().expect("a lease's VtepMAC");
            let subnet = name.rsplit('/').next().expect("a key");
            let (base, length) = subnet.split_once('-').expect("a subnet's key");
            self.ns.ok(&format!("bridge fdb append {mac} dev flannel.1 dst {address}"));
            self.ns.ip(&format!(
                "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent\n\
                 route replace {base}/{length} via {base} dev flannel.1 onlink"
            ));
        }
    }

    /// Serves again what it has served before. flanneld gives its device the address that its lease has.
    pub fn goes_on(&self, etcd: &Etcd) {
        await_until(PATIENCE, "flanneld's device", || {
            self.ns.run("ip -d link show flannel.1").stdout.windows(5).any(|part| part == b"vxlan")
        });
        let lease: Value =
            serde_json::from_str(&etcd.list(&key())[&key()]).expect("the lease is there, in flannel's form");
        let mac = lease["BackendData"]["VtepMAC"].as_str().expect("a lease's VtepMAC");
        self.ns.ip(&format!("link set flannel.1 address {mac}"));
        self.follow(etcd);
    }
}

/// Has the unit of a flannel package start overlayd, and checks that it does all that it did for flanneld.
pub fn unit_runs_overlayd(machine: &Machine<'_>) {
    let before = machine.env();
    machine.ok("systemctl disable --now overlayd");
    machine.write("/etc/systemd/system/flanneld.service", UNIT);
    machine.ok("ln -s /usr/libexec/overlayd/flanneld-start /usr/bin/flanneld-start");
    machine.ok("rm /run/flannel/docker");
    machine.ok("systemctl daemon-reload && systemctl start flanneld");
    assert_eq!(machine.env(), before, "another subnet under flannel's unit");
    let options = machine.ok("cat /run/flannel/docker");
    let wanted =
        format!("DOCKER_NETWORK_OPTIONS=\" --bip={} --ip-masq=true --mtu={}\"", before.subnet, before.mtu);
    assert!(options.lines().any(|line| line == wanted), "{options}");
}

fn key() -> String {
    format!("{PREFIX}/subnets/{}", SUBNET.replace('/', "-"))
}

/// As CentOS 7 packages it.
const UNIT: &str = "\
[Unit]
Description=Flanneld overlay address etcd agent
After=network.target
After=network-online.target
Wants=network-online.target
After=etcd.service
Before=docker.service

[Service]
Type=notify
EnvironmentFile=/etc/sysconfig/flanneld
EnvironmentFile=-/etc/sysconfig/docker-network
ExecStart=/usr/bin/flanneld-start $FLANNEL_OPTIONS
ExecStartPost=/usr/libexec/flannel/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker
Restart=on-failure

[Install]
WantedBy=multi-user.target
RequiredBy=docker.service
";

const DROP_IN: &str = "\
[Service]
EnvironmentFile=-/run/flannel/docker
ExecStart=
ExecStart=dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_NETWORK_OPTIONS
";

/// In place of flannel's script.
const MK_DOCKER_OPTS: &str = "\
#!/bin/sh
. /run/flannel/subnet.env
echo \"DOCKER_NETWORK_OPTIONS=' --bip=$FLANNEL_SUBNET --ip-masq=true --mtu=$FLANNEL_MTU'\" >/run/flannel/docker
";

/// In place of flanneld. What it makes outlives it, as flanneld's does.
const PROGRAM: &str = "\
#!/bin/sh
set -e
if ! ip link show flannel.1 >/dev/null 2>&1; then
    ip link add flannel.1 mtu 1450 type vxlan id 1 dev eth2 dstport 8472 nolearning
    ip address add 172.33.68.0/32 dev flannel.1
    ip link set flannel.1 up
fi
echo 1 >/proc/sys/net/ipv4/ip_forward
iptables -C FORWARD -s 172.33.0.0/16 -j ACCEPT 2>/dev/null || iptables -A FORWARD -s 172.33.0.0/16 -j ACCEPT
iptables -C FORWARD -d 172.33.0.0/16 -j ACCEPT 2>/dev/null || iptables -A FORWARD -d 172.33.0.0/16 -j ACCEPT
mkdir -p /run/flannel
printf '%s\\n' FLANNEL_NETWORK=172.33.0.0/16 FLANNEL_SUBNET=172.33.68.1/24 FLANNEL_MTU=1450 FLANNEL_IPMASQ=false \\
    >/run/flannel/subnet.env
systemd-notify --ready
while :; do sleep 1000; done
";
