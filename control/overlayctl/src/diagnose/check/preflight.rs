//! A check before the first start: whether a daemon with these flags would find what it needs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use overlay::underlay::udp;

use super::finding::Finding;
use super::network;
use crate::diagnose::kernel::Kernel;
use overlay_flags::Flags;
use overlay_host::HostError;
use overlay_host::holdings::{self, Viewpoint};
use overlay_host::iface::{self, Underlay};
use overlay_leases::membership::EXAMPLE_CONFIG;
use overlay_leases::meters::StoreMeter;
use overlay_leases::netconf::{Backend, NetworkConfig};
use overlay_leases::subnet_file::Previous;
use overlay_node::plan::MtuProblem;
use overlay_node::ways::{claim, routed};
use overlay_support::overlap::Need;
use overlay_support::text::plural;

pub(super) async fn findings(flags: &Flags) -> Result<Vec<Finding>, HostError> {
    let mut findings = vec![tun(), programs()];
    let underlay = match iface::choose(&flags.iface_spec()).await {
        Ok(underlay) => {
            let Underlay { name, address, mtu, reason, .. } = &underlay;
            findings.push(Finding::ok("interface", format!("{name}, {address}, MTU {mtu} ({reason})")));
            Some(underlay)
        }
        Err(error) => {
            findings.push(Finding::error(
                "interface",
                error.to_string(),
                "name it: --iface, --iface-can-reach",
            ));
            None
        }
    };
    let (store, config) = store(flags).await;
    findings.extend(store);
    if let (Some((config, nodes)), Some(underlay)) = (config, underlay) {
        findings.extend(meetings(flags, &config, &underlay, &nodes).await?);
        findings.extend(mtu(&config, &underlay));
        findings.extend(port(&config, &underlay).await?);
    }
    Ok(findings)
}

/// Whether the network, or the subnet that this node had, is where something of the host's is.
async fn meetings(
    flags: &Flags,
    config: &NetworkConfig,
    underlay: &Underlay,
    nodes: &[Ipv4Addr],
) -> Result<Vec<Finding>, HostError> {
    let Some(device) = config.backend.tunnel_device() else { return Ok(Vec::new()) };
    let own = Previous::read(&flags.subnet_file).ok().and_then(|previous| previous.subnet);
    let own = own.filter(|own| config.fits(*own));
    let stores = flags.store_addresses().await.now();
    let viewpoint = Viewpoint {
        network: config.network,
        own,
        device: Some(device),
        underlay: &underlay.name,
        stores: &stores,
    };
    let mut holdings = holdings::look(viewpoint).await?;
    for node in nodes.iter().filter(|node| config.network.contains(*node) && **node != underlay.public_ip) {
        holdings.need(*node, Need::Peer);
    }
    let refusal = own.and_then(|own| holdings.refusal(own)).map(|obstacle| {
        Finding::error("network", obstacle.to_string(), "mend the network configuration in the store")
    });
    let found = network::finding(config.network, &routed(&holdings, &claim(config, own)));
    Ok(refusal.into_iter().chain([found]).collect())
}

/// Keys of the network configuration that nobody reads.
fn unknown_keys(config: &str) -> Option<Finding> {
    let unknown: Vec<String> = NetworkConfig::unknown_keys(config).iter().map(ToString::to_string).collect();
    (!unknown.is_empty()).then(|| {
        let text = format!("these keys of the network configuration mean nothing: {}", unknown.join(", "));
        Finding::warning(
            "config",
            text,
            "correct or remove them: overlayd passes over them, as flanneld does",
        )
    })
}

/// An MTU that the interface does not have.
fn mtu(config: &NetworkConfig, underlay: &Underlay) -> Option<Finding> {
    let problem = MtuProblem::of(config, underlay)?;
    Some(Finding::warning("mtu", problem.text(), problem.remedy()))
}

fn tun() -> Finding {
    if Path::new("/dev/net/tun").exists() {
        return Finding::ok("tun", "/dev/net/tun is there");
    }
    let remedy = "load the kernel module 'tun', or give the container that device";
    Finding::error("tun", "/dev/net/tun is missing", remedy)
}

fn programs() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    match (has("nft"), has("iptables")) {
        (true, true) => Finding::ok("firewall", "nft and iptables are installed"),
        (true, false) => {
            Finding::ok("firewall", "nft is installed (iptables is not, nor needed without docker)")
        }
        (false, true) => Finding::ok("firewall", "iptables is installed (nft is not: --firewall=iptables)"),
        (false, false) => Finding::error(
            "firewall",
            "neither nft nor iptables is installed",
            "install the package nftables or iptables, or start with --firewall=none",
        ),
    }
}

/// What the store says: its network configuration, if it is good, and the public addresses of all nodes.
async fn store(flags: &Flags) -> (Vec<Finding>, Option<(NetworkConfig, Vec<Ipv4Addr>)>) {
    let wrong = |error: String, remedy: &str| (vec![Finding::error("store", error, remedy)], None);
    let flags_say = "see --etcd-endpoints, --etcd-prefix, --etcd-cafile and the others; or --store=dir:PATH";
    let manager = match flags.lease_manager(&StoreMeter::default()).await {
        Ok((manager, Ok(()))) => manager,
        Ok((_, Err(error))) => return wrong(error.to_string(), flags_say),
        Err(error) => return wrong(error.to_string(), flags_say),
    };
    let place = manager.id();
    let text = match manager.config().await {
        Ok(Some(text)) => text,
        Ok(None) => {
            let command = manager.how_to_configure(EXAMPLE_CONFIG);
            let remedy = format!("overlayd waits for it. Put it there, for instance: {command}");
            let finding = Finding::warning(
                "store",
                format!("{place} answers, but has no network configuration"),
                remedy,
            );
            return (vec![finding], None);
        }
        Err(error) => return wrong(error.to_string(), flags_say),
    };
    let nodes = match manager.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => {
            return wrong(error.to_string(), "the user needs to read and write all keys below the prefix");
        }
    };
    let count = format!("{} lease{}", nodes.leases, plural(nodes.leases));
    let mut findings = vec![Finding::ok("store", format!("{place} answers, {count}"))];
    match NetworkConfig::parse(&text) {
        Ok(config) => {
            let device = config.backend.tunnel_device();
            let device = device.map_or("no device".to_owned(), |device| format!("device {device}"));
            findings.push(Finding::ok("config", format!("network {}, {device}", config.network)));
            findings.extend(unknown_keys(&text));
            (findings, Some((config, nodes.public_ips)))
        }
        Err(error) => {
            findings.push(Finding::error(
                "config",
                error.to_string(),
                "mend the network configuration in the store",
            ));
            (findings, None)
        }
    }
}

/// Whether the UDP port of the tunnel is free.
async fn port(config: &NetworkConfig, underlay: &Underlay) -> Result<Option<Finding>, HostError> {
    let port = match config.backend {
        Backend::Udp { port } | Backend::Vxlan { port, .. } => port,
        Backend::HostGw | Backend::Alloc => return Ok(None),
    };
    let device = config.device();
    let left = Kernel::open().await?.link(&device).is_some_and(|link| !link.tun);
    Ok(Some(match udp::probe(SocketAddr::new(underlay.address.into(), port)) {
        Ok(()) => Finding::ok("port", format!("UDP {port} on {} is free", underlay.address)),
        Err(_) if left => Finding::ok(
            "port",
            format!(
                "{device} is the kernel's, left by flanneld: overlayd takes it over, once flanneld is stopped"
            ),
        ),
        Err(error) => Finding::error("port", error.to_string(), "stop whoever has it"),
    }))
}
