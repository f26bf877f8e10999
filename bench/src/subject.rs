//! The overlays under measurement, brought up between two hosts.

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::kernel_vxlan::KernelVxlan;
use integration::overlayd::{Launch, await_mesh};
use integration::packets::mac;
use integration::process::Process;
use integration::{Backend, Host, Overlayd, Pod, Store, SubnetEnv, await_until, traffic};
use serde_json::Value;

use crate::ground::Ground;
use crate::plan::Subject;
use crate::process::Daemons;

/// How the subjects are started.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Flags for overlayd besides those that name store, interface and subnet file.
    pub overlayd_flags: Vec<String>,
    /// The peer.
    pub peer: Option<Peer>,
}

/// A program compatible with flanneld.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The program.
    pub path: PathBuf,
    /// Its flags besides those that name etcd, interface and subnet file.
    pub flags: Vec<String>,
    /// The backend in the network configuration.
    pub backend: Backend,
}

/// An overlay at work, with a pod on each host. It ends when dropped.
#[derive(Debug)]
pub struct Running<'g> {
    /// The client's pod, on the worker.
    pub client: Pod,
    /// The server's pod, on the master.
    pub server: Pod,
    /// The overlay's daemons.
    pub daemons: Daemons,
    /// The client's host.
    pub worker: &'g Host,
    /// How packets come to the server's.
    pub way_in: WayIn,
    /// Kept for their lives: the daemons, then the store that they use.
    _held: Box<dyn Debug + 'g>,
    _store: Option<Store>,
}

/// How packets come to a host.
#[derive(Debug, Clone, Copy)]
pub enum WayIn {
    /// As they are.
    Bare,
    /// In datagrams to this host, in flannel's format.
    FlannelUdp(Ipv4Addr),
    /// In datagrams to this host, in frames to this MAC address.
    Vxlan(Ipv4Addr, [u8; 6]),
}

impl WayIn {
    /// As the lease of `host` in `store` says, which has the subnet of `env`.
    fn to(host: &Host, env: &SubnetEnv, store: &Store) -> Self {
        let leases = store.leases();
        let lease: Value = serde_json::from_str(&leases[&env.key()]).expect("a lease's JSON");
        match lease["BackendData"]["VtepMAC"].as_str() {
            Some(text) => Self::Vxlan(host.public_ip, mac(text)),
            None => Self::FlannelUdp(host.public_ip),
        }
    }
}

impl<'g> Running<'g> {
    /// Brings `subject` up and waits until the pods reach each other.
    ///
    /// # Panics
    /// As the harness does, if a daemon does not come up, or the pods do not reach each other.
    #[must_use]
    pub fn start(subject: Subject, ground: &'g Ground, settings: &Settings) -> Self {
        let running = match subject {
            Subject::None => without_overlay(ground),
            Subject::KernelVxlan => kernel_vxlan(ground),
            Subject::OverlaydUdp => overlayd(ground, Backend::Udp, &settings.overlayd_flags),
            Subject::OverlaydVxlan => overlayd(ground, Backend::Vxlan, &settings.overlayd_flags),
            Subject::OverlaydXdp => {
                let flags = [&settings.overlayd_flags[..], &["--io=xdp".to_owned()]].concat();
                overlayd(ground, Backend::Vxlan, &flags)
            }
            Subject::OverlaydKernel => overlayd_and_kernel(ground, &settings.overlayd_flags),
            Subject::Peer => {
                peer(ground, settings.peer.as_ref().expect("a plan with a peer has its settings"))
            }
        };
        await_until(PATIENCE, &format!("the pods to reach each other by {subject}"), || {
            traffic::answers(&running.client.ns, running.server.address)
        });
        running
    }
}

fn without_overlay(ground: &Ground) -> Running<'_> {
    let (worker, master) = (&ground.worker, &ground.master);
    let [there, here] = SUBNETS.map(|subnet| SubnetEnv::of(subnet, UNDERLAY_MTU));
    for host in [worker, master] {
        host.ns.sysctl("net/ipv4/ip_forward", "1");
    }
    // On one link the hosts are each other's gateways, else the router knows both.
    let on_one_link = worker.public_ip.octets()[..3] == master.public_ip.octets()[..3];
    for (host, env) in [(master, &there), (worker, &here)] {
        let knows = if on_one_link {
            let other = if host.public_ip == worker.public_ip { master } else { worker };
            &other.ns
        } else {
            &ground.site.router
        };
        knows.ip(&format!("route add {} via {}", env.base_with_length(), host.public_ip));
    }
    running(ground, [&here, &there], Daemons::default(), (), None)
}

fn kernel_vxlan(ground: &Ground) -> Running<'_> {
    let store = Store::dir(&ground.site, Backend::Vxlan);
    let [there, here] = SUBNETS;
    let mut worker = KernelVxlan::start(&ground.worker, &store, here);
    let master = KernelVxlan::start(&ground.master, &store, there);
    worker.follow(&store);
    let envs = [worker.env().clone(), master.env().clone()];
    running(ground, envs.each_ref(), Daemons::default(), [worker, master], Some(store))
}

fn overlayd_and_kernel<'g>(ground: &'g Ground, flags: &[String]) -> Running<'g> {
    let store = Store::dir(&ground.site, Backend::Vxlan);
    let mut kernel = KernelVxlan::start(&ground.master, &store, SUBNETS[0]);
    let daemon = launch(&ground.worker, &store, flags).start();
    kernel.follow(&store);
    let envs = [daemon.env(), kernel.env().clone()];
    let ids = Daemons(vec![daemon.id()]);
    running(ground, envs.each_ref(), ids, (daemon, kernel), Some(store))
}

fn overlayd<'g>(ground: &'g Ground, backend: Backend, flags: &[String]) -> Running<'g> {
    let store = Store::dir(&ground.site, backend);
    let daemons = [&ground.worker, &ground.master].map(|host| launch(host, &store, flags).start());
    await_mesh(&daemons.each_ref());
    let envs = daemons.each_ref().map(Overlayd::env);
    let ids = Daemons(daemons.iter().map(Overlayd::id).collect());
    running(ground, envs.each_ref(), ids, daemons, Some(store))
}

fn launch<'h>(host: &'h Host, store: &Store, flags: &[String]) -> Launch<'h> {
    flags.iter().fold(host.overlayd(store), |launch, flag| launch.flag(flag))
}

fn peer<'g>(ground: &'g Ground, peer: &Peer) -> Running<'g> {
    let store = Store::etcd(&ground.site, peer.backend);
    let (mut daemons, mut envs) = (Vec::new(), Vec::new());
    for host in [&ground.worker, &ground.master] {
        let file = host.directory().join("peer.env");
        let mut command = host.ns.command(&peer.path.display().to_string());
        command.args(store.flags()).arg("--iface=eth0").arg(format!("--subnet-file={}", file.display()));
        command.args(&peer.flags);
        let mut process = Process::spawn("peer", command, host.directory());
        await_file(&mut process, &file, host);
        envs.push(SubnetEnv::read(&file));
        daemons.push(process);
    }
    let ids = Daemons(daemons.iter().map(Process::id).collect());
    running(ground, [&envs[0], &envs[1]], ids, daemons, Some(store))
}

fn await_file(process: &mut Process, file: &Path, host: &Host) {
    await_until(PATIENCE, &format!("the peer on {} to write {}", host.name, file.display()), || {
        if let Some(status) = process.exited() {
            panic!("the peer on {} ended: {status}\n{}", host.name, process.log());
        }
        file.exists()
    });
}

fn running<'g>(
    ground: &'g Ground,
    [worker, master]: [&SubnetEnv; 2],
    daemons: Daemons,
    held: impl Debug + 'g,
    store: Option<Store>,
) -> Running<'g> {
    let client = ground.worker.bridge_and_pod(worker);
    let server = ground.master.bridge_and_pod(master);
    let way_in = store.as_ref().map_or(WayIn::Bare, |store| WayIn::to(&ground.master, master, store));
    Running { client, server, daemons, worker: &ground.worker, way_in, _held: Box::new(held), _store: store }
}

/// The master's and the worker's, where nobody leases them.
const SUBNETS: [&str; 2] = ["10.1.63", "10.1.9"];
const UNDERLAY_MTU: u32 = 1500;
const PATIENCE: Duration = Duration::from_secs(20);
