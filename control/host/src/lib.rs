//! What this host's kernel needs so that the overlay works: the device's address, the routes to the other nodes'
//! pods, forwarding, and the firewall rules. (The device itself is the data plane's.)
//!
//! Everything here describes a wanted state and brings the kernel there; doing it again changes nothing.
//! What is put into the kernel carries our mark (a route protocol id, our own nftables table, our own
//! iptables chains, all per device), so that an earlier life's entries are recognised, and nobody else's
//! are touched. It stays in place when the process ends.
//!
//! All of it happens in the network namespace of the calling thread.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use ipnet::Ipv4Net;

use overlay::SetupError;

pub mod docker;
pub mod events;
pub mod firewall;
pub mod forwarding;
pub mod holdings;
pub mod iface;
pub mod ipsec;
pub mod leftovers;
pub mod link;
pub mod nexthop;
pub mod policy_routing;
pub mod reconcile;
pub mod routes;
pub mod rule_events;
pub mod rule_watch;

mod batch;
mod changes;
mod command;
pub mod netlink;

/// The wanted state of this host, for one overlay device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The overlay device's name, as in `flannel.1`; where there is no such device, what rules are named after.
    pub device: String,
    /// The underlay's device, if packets to pods of other nodes also leave through it as they are.
    pub direct: Option<String>,
    /// The device's MTU: the largest inner IP packet, in bytes.
    pub mtu: u32,
    /// The device's only IPv4 address, put as a /32: flannel uses the base of `pod_subnet`.
    pub address: Ipv4Addr,
    /// All pods of all nodes, flannel's `Network`.
    pub network: Ipv4Net,
    /// This node's pods, inside `network`.
    pub pod_subnet: Ipv4Net,
    /// Which sources are rewritten.
    pub masquerade: Masquerade,
    /// Whether forwarding to and from `network` is accepted where iptables' FORWARD would drop it, and what pods
    /// send to the tunnel's port of a host is dropped.
    pub forward_rules: bool,
    /// What the rules are made with.
    pub firewall: FirewallKind,
    /// The underlay's device: what comes or goes by it has left the tunnel.
    pub underlay: String,
    /// The UDP port of every node's end of the tunnel, if there is one: not for pods.
    pub tunnel_port: Option<u16>,
    /// Whether what is sent to `pod_subnet` and to none of its pods ends here.
    pub blackhole: bool,
}

impl Desired {
    /// Whose packets to other pods are bound to their own source. With `ip_masq` the rules that masquerade come first
    /// for whatever is not this node's own.
    pub(crate) fn bound(&self) -> Ipv4Net {
        if self.masquerade.ip_masq { self.pod_subnet.trunc() } else { self.network.trunc() }
    }
}

#[cfg(test)]
impl Desired {
    /// What a usual host is to have; a test changes what it is about.
    pub(crate) fn example() -> Self {
        Self {
            device: "flannel.1".to_owned(),
            direct: None,
            mtu: 1450,
            address: [10, 1, 9, 0].into(),
            network: "10.1.0.0/16".parse().unwrap(),
            pod_subnet: "10.1.9.0/24".parse().unwrap(),
            masquerade: Masquerade { return_path: true, ip_masq: false, fully_random: true },
            forward_rules: true,
            firewall: FirewallKind::Nftables,
            underlay: "eth0".to_owned(),
            tunnel_port: Some(8472),
            blackhole: false,
        }
    }
}

/// What the firewall's rules are made with: the values of `--firewall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum FirewallKind {
    /// nftables if `nft` works here, else iptables.
    Auto,
    /// A table of our own for sources; forwarding in iptables, if there is one.
    Nftables,
    /// flannel's chains and rules.
    Iptables,
    /// Nothing: there are no rules of ours.
    None,
}

/// Which packets leave this host with its own address as source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// What leaves through the overlay device with a source outside the network: without it a reply
    /// takes the underlay back, and a host with strict reverse-path filtering drops it.
    pub return_path: bool,
    /// flannel's `--ip-masq`: its six rules (0.28, `pkg/trafficmngr/iptables`).
    pub ip_masq: bool,
    /// Source ports are chosen at random (flannel's default), so that parallel connections do not race
    /// for the same one.
    pub fully_random: bool,
}

/// This host could not be brought to the wanted state: which step failed, on what, and why.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device is not there.
    #[error("there is no network device {0}: it must be created before it is configured")]
    NoDevice(String),
    /// The kernel refused a netlink request, or the netlink socket failed.
    #[error("netlink: {action}: {reason}")]
    Netlink {
        /// The request and its object, as in `set the MTU of flannel.1 to 1450`.
        action: String,
        /// What the kernel said.
        reason: String,
    },
    /// A kernel setting could not be read or written.
    #[error("sysctl {path}: {source} (it must be writable here, or be set to {wanted} beforehand)")]
    Sysctl {
        /// The file under /proc/sys.
        path: String,
        /// The value it should have.
        wanted: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A program that we need is not installed.
    #[error("{program} is not installed: install the package {package}, or choose another --firewall")]
    NoProgram {
        /// The program.
        program: String,
        /// The package of the usual distributions that has it.
        package: &'static str,
    },
    /// None of the firewall's programs can be used.
    #[error(
        "neither nftables nor iptables can be used ({0}; iptables is not installed): install the package nftables or iptables, or start with --firewall=none"
    )]
    NoFirewall(String),
    /// A program could not be run, or failed.
    #[error("{command}: {reason}")]
    Program {
        /// The command line.
        command: String,
        /// What it, or the attempt to start it, said.
        reason: String,
    },
    /// A program has not ended in time.
    #[error("{command}: it has not ended in {seconds} s")]
    Hangs {
        /// The command line.
        command: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A socket could not be had.
    #[error(transparent)]
    Socket(#[from] SetupError),
    /// Somebody undoes what we do, again and again.
    #[error(
        "somebody keeps changing the firewall's rules: ours are put back less often from now on (see who does, as by 'nft monitor')"
    )]
    Contested,
    /// Several steps failed that do not depend on each other.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<HostError>),
}

/// What steps have brought about that do not depend on each other.
#[derive(Debug, Default)]
pub struct Steps {
    put: Vec<String>,
    failed: Vec<HostError>,
}

impl Steps {
    /// A step has put something, for people, or has failed.
    pub fn took(&mut self, step: Result<impl IntoIterator<Item = String>, HostError>) {
        match step {
            Ok(put) => self.put.extend(put),
            Err(error) => self.failed.push(error),
        }
    }

    /// What all of them have put.
    ///
    /// # Errors
    /// What has failed of them.
    pub fn outcome(self) -> Result<Vec<String>, HostError> {
        HostError::of(self.failed).map_or(Ok(self.put), Err)
    }
}

impl HostError {
    /// All of `errors`, if there are any.
    #[must_use]
    pub fn of(mut errors: Vec<Self>) -> Option<Self> {
        if errors.len() > 1 { Some(Self::Several(errors)) } else { errors.pop() }
    }

    /// What tells it from others, however it is put.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::NoDevice(device) => format!("no {device}"),
            Self::Netlink { action, .. } => action.clone(),
            Self::Sysctl { path, .. } => path.clone(),
            Self::NoProgram { program, .. } => format!("no {program}"),
            Self::NoFirewall(_) => "no firewall".to_owned(),
            Self::Program { command, .. } => command.split(' ').next().unwrap_or_default().to_owned(),
            Self::Hangs { command, .. } => {
                format!("{} hangs", command.split(' ').next().unwrap_or_default())
            }
            Self::Socket(error) => format!("{} {} {}", error.call, error.object, error.source.kind()),
            Self::Contested => "contested".to_owned(),
            Self::Several(errors) => errors.iter().map(Self::kind).collect::<Vec<_>>().join(", "),
        }
    }
}
