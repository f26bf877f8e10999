//! The command line of `overlayctl`.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::diagnose::trace::Carries;

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
    Status {
        /// As JSON, with every counter.
        #[arg(long)]
        json: bool,
    },
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
