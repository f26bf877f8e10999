//! The command line of `overlayctl`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// Remove from this host all that overlayd has put there.
    ///
    /// That is the overlay device, routes, firewall rules, control socket and saved state. The daemon must
    /// have been stopped. Containers and the subnet file stay, and so does net.ipv4.ip_forward, which others
    /// may rely on.
    Cleanup(Cleanup),
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
