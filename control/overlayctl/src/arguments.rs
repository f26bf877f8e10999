//! The command line of `overlayctl`.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::carries::Carries;

/// Asks the overlayd of this host, or of the network namespace that it is run in.
#[derive(Debug, Parser)]
#[command(name = "overlayctl", version)]
pub struct Arguments {
    /// The overlay device whose daemon is asked; needed where several run.
    #[arg(long, global = true, value_name = "NAME")]
    pub device: Option<String>,

    /// The control socket itself, if it is not in the usual place.
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "device")]
    pub socket: Option<PathBuf>,

    /// What is asked.
    #[command(subcommand)]
    pub command: Command,
}

/// What overlayctl does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show lease, peers, device, traffic and drops.
    Status(Show),
    /// Show the other nodes: which way they are reached, when they were last heard of, traffic and drops.
    Peers(Show),
    /// Show all leases as the store has them now: owner, expiry, reservations, conflicts.
    Leases(Show),
    /// Show the kernel's routes for the network, and those that are missing.
    Routes(Show),
    /// Show what was dropped, by reason, and the last packet seen of each.
    Drops(Show),
    /// Show the threads that forward: packets, batches, super-packets, processor time.
    Stats(Show),
    /// Show the flags in effect and the network configuration, without secrets.
    Config(Show),
    /// Show what the kernel does for the data plane.
    Offloads(Show),
    /// Show workers and peers on a live screen: rates, drops, processor time.
    Top(Top),
    /// Write packets to a file that Wireshark opens, with the reason for each that was dropped.
    ///
    /// Inner packets are those of the containers, a TCP or UDP super-packet as one; outer ones what the wire
    /// sees, with IP and UDP header made up from the addresses and ports. All conditions given must hold.
    /// Ends with the bounds, or by Ctrl-C.
    Capture(Capture),
    /// Check whether this host is fit, and say what to do where it is not.
    ///
    /// Looks at the daemon, the kernel, the firewall, the bridge and the store, and asks each peer for echoes,
    /// short and as long as the MTU allows. Where no daemon runs, it says whether one with the flags given behind
    /// '--' could start. Exits with 0 if all is well, 1 with warnings, 2 with errors, 3 if it could not check.
    Check(Check),
    /// Ask a node's daemon for an echo, through the overlay's own encapsulation.
    ///
    /// Only overlayd answers: a node that runs flanneld or the kernel's VXLAN ignores it. Beside it, the node's
    /// public address is asked by ICMP, so that trouble of the overlay and of the underlay can be told apart.
    /// Exits with 1 if no echo came back.
    Ping(Ping),
    /// Say which way a packet would take through this host, and where it would be dropped.
    ///
    /// Looks at the daemon and the kernel as they are now; nothing is sent. Exits with 1 if it would be dropped.
    Trace(Trace),
    /// Write all that whoever helps would ask for into one file, without secrets.
    ///
    /// What the daemon says, a check, and what the kernel, the firewall, systemd and the journal say. Passwords,
    /// tokens and keys are removed; addresses and names are not.
    Bugreport(Bugreport),
    /// Show what the daemon has logged lately that is worth a person's eye: problems, repairs, changes.
    Events(Events),
    /// Remove from this host all that overlayd has put there.
    ///
    /// That is the overlay device, routes, firewall rules, control socket and saved state. The daemon must
    /// have been stopped. Containers and the subnet file stay, and so does net.ipv4.ip_forward, which others
    /// may rely on.
    Cleanup(Cleanup),
}

/// How the host is checked.
#[derive(Debug, Args)]
pub struct Check {
    /// As JSON.
    #[arg(long)]
    pub json: bool,

    /// The flags that overlayd is to be started with; for a check where it does not run yet. FLANNELD_* in the
    /// environment counts, too.
    #[arg(last = true, value_name = "OVERLAYD'S FLAGS")]
    pub flags: Vec<OsString>,
}

/// Which events, and how.
#[derive(Debug, Args)]
pub struct Events {
    /// As JSON; with --follow an event a line.
    #[arg(long)]
    pub json: bool,

    /// Go on with those to come.
    #[arg(short, long)]
    pub follow: bool,
}

/// How something is shown.
#[derive(Debug, Clone, Args)]
pub struct Show {
    /// As JSON, with every counter.
    #[arg(long)]
    pub json: bool,

    /// Again and again, every so many seconds.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<f64>,
}

/// How often the screen is renewed.
#[derive(Debug, Clone, Args)]
pub struct Top {
    /// Seconds from one look to the next.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
}

/// Which packets are captured, and how many.
#[derive(Debug, Clone, Args)]
pub struct Capture {
    /// The file to write, in pcapng; '-' for standard output.
    pub file: PathBuf,

    /// Overwrite the file if it exists.
    #[arg(long)]
    pub force: bool,

    /// Outer packets instead of inner ones.
    #[arg(long)]
    pub outer: bool,

    /// Only packets that were dropped.
    #[arg(long)]
    pub drops: bool,

    /// One direction only: to the wire (egress) or from it (ingress).
    #[arg(long, value_name = "DIRECTION", value_parser = ["egress", "ingress"])]
    pub direction: Option<String>,

    /// Inner source or destination, an address or a subnet.
    #[arg(long, value_name = "ADDRESS", value_parser = host)]
    pub host: Option<IpNet>,

    /// The other node, by its public address.
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Option<Ipv4Addr>,

    /// What the inner packet carries: tcp, udp, icmp, icmp6 or a protocol number.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    pub protocol: Option<u8>,

    /// The inner packet's source or destination port.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Bytes kept of each packet; all of it without this.
    #[arg(short, long, value_name = "BYTES")]
    pub snaplen: Option<usize>,

    /// End after so many packets.
    #[arg(short, long, value_name = "N")]
    pub count: Option<u64>,

    /// End before the file is larger than this many bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub bytes: u64,

    /// End after so many seconds.
    #[arg(short = 't', long, value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Option<f64>,
}

fn host(text: &str) -> Result<IpNet, String> {
    let alone = text.parse::<IpAddr>().map(IpNet::from);
    alone.or_else(|_| text.parse()).map_err(|_| "not an address or a subnet, as in 10.1.9.0/24".to_owned())
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp6" => Ok(58),
        _ => text.parse().map_err(|_| "not tcp, udp, icmp, icmp6 or a number up to 255".to_owned()),
    }
}

/// Who is asked, and how.
#[derive(Debug, Args)]
pub struct Ping {
    /// The node: its public address, or any address in its subnet.
    pub peer: Ipv4Addr,

    /// Stop after this many.
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub count: u32,

    /// Seconds from one to the next.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,

    /// Length of the inner packet in bytes, both ways: up to the overlay's MTU.
    #[arg(short, long, value_name = "BYTES")]
    pub size: Option<usize>,

    /// Seconds to wait for each answer.
    #[arg(short = 'W', long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub wait: f64,

    /// As JSON, when done.
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    (0.01..=3600.0)
        .contains(&seconds)
        .then_some(seconds)
        .ok_or_else(|| "not within 0.01 to 3600 seconds".to_owned())
}

/// Which packet is followed.
#[derive(Debug, Args)]
pub struct Trace {
    /// Its source: a container's, or this host's own address.
    pub src: Ipv4Addr,

    /// Its destination.
    pub dst: Ipv4Addr,

    /// What it carries: tcp/PORT, udp/PORT or icmp.
    pub carries: Option<Carries>,

    /// Its length in bytes; no router may cut it.
    #[arg(short, long, value_name = "BYTES")]
    pub size: Option<usize>,

    /// The address that it arrives from, if it comes from another node; by default that of the node that may send it.
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<Ipv4Addr>,

    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where the report goes.
#[derive(Debug, Args)]
pub struct Bugreport {
    /// The file, which must not exist yet.
    #[arg(default_value = "overlayd-bugreport.tar.gz")]
    pub file: PathBuf,
}

/// How it cleans up.
#[derive(Debug, Args)]
pub struct Cleanup {
    /// Only list what would be removed.
    #[arg(long)]
    pub dry_run: bool,

    /// Give the lease back as well: another node may get the subnet, and this one another.
    #[arg(long)]
    pub release_lease: bool,

    /// The flags that overlayd was started with, of which those count that say where its files and its
    /// store are, as in '-- -etcd-endpoints=http://10.0.0.3:2379'. FLANNELD_* in the environment counts, too.
    #[arg(last = true, value_name = "OVERLAYD'S FLAGS")]
    pub flags: Vec<OsString>,
}
