//! Leaving a host as if overlayd had never run on it: what carries our marks is found and removed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::RouteMessage;

use overlay_api::path;
use overlay_flags::Flags;
use overlay_host::leftovers::devices_with_rules;
use overlay_host::link::{self, ROUTE_PROTOCOL};
use overlay_host::netlink::{Link, Netlink, refused};
use overlay_host::routes::leave_to_others;
use overlay_host::{HostError, firewall};
use overlay_leases::manager::Released;
use overlay_leases::meters::StoreMeter;
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::state::{LASTING, SavedState};
use overlay_node::takeover::process_here;

/// The host cannot be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// A daemon is at work.
    #[error("overlayd is running{}: stop it first, as by 'systemctl stop overlayd'", .0.as_deref().map(|device| format!(" on {device}")).unwrap_or_default())]
    Running(Option<String>),
    /// It cannot be told what there is.
    #[error(transparent)]
    Host(#[from] HostError),
    /// `/proc` is not there.
    #[error("cannot tell this network namespace: {0}")]
    Namespace(io::Error),
}

/// Something of ours that is still there.
#[derive(Debug)]
pub enum Leftover {
    /// Firewall rules, in nftables and iptables, that carry this device's name.
    Rules(String),
    /// A route with our protocol id.
    Route {
        /// As `ip route` has it.
        text: String,
        /// As the kernel wants to see it again.
        message: Box<RouteMessage>,
    },
    /// The overlay device, which outlives its daemon.
    Device(String),
    /// A control socket that nobody listens at.
    Socket(PathBuf),
    /// The saved state of a run.
    State(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Those of a network without a tunnel go by its address.
            Self::Rules(network) if network.parse::<Ipv4Addr>().is_ok() => {
                write!(f, "the firewall rules of the network {network}")
            }
            Self::Rules(device) => write!(f, "the firewall rules of {device}"),
            Self::Route { text, .. } => write!(f, "the route {text}"),
            Self::Device(name) => write!(f, "the device {name}"),
            Self::Socket(path) => write!(f, "the control socket {}", path.display()),
            Self::State(path) => write!(f, "the saved state {}", path.display()),
        }
    }
}

/// Finds what is left of `device`, or of all devices, in this network namespace, and beside `subnet_file`.
/// The subnet file itself is not ours alone: docker reads it, and flanneld, which keeps its subnet by it.
///
/// # Errors
/// [`CleanupError`], above all that a daemon runs.
pub async fn find(device: Option<&str>, subnet_file: &Path) -> Result<Vec<Leftover>, CleanupError> {
    let directory = path::directory().map_err(CleanupError::Namespace)?;
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let wanted = |name: &str| device.is_none_or(|device| device == name);

    let sockets: Vec<String> = path::devices(&directory).into_iter().filter(|name| wanted(name)).collect();
    let socket = |name: &str| directory.join(format!("{name}.sock"));
    if let Some(running) = sockets.iter().find(|name| path::is_alive(&socket(name))) {
        return Err(CleanupError::Running(Some(running.clone())));
    }
    // One that has no socket, or no device yet. With a device named, others may run.
    if device.is_none() && process_here("overlayd").is_some() {
        return Err(CleanupError::Running(None));
    }

    // The last run's own word, where a mark does not tell the device, or has been lost.
    let state = SavedState::path(subnet_file);
    let saved = SavedState::read(&state).ok().and_then(|state| NetworkConfig::parse(&state.config).ok());
    let saved = saved.filter(|config| wanted(&config.device()));
    let mut found = Vec::new();
    let mut routed = BTreeSet::new();
    let mut routes = netlink.routes_of(ROUTE_PROTOCOL).await?;
    // Another that runs may have its network in this one.
    leave_to_others(&mut routes, &links);
    let is_through_wanted = |index: u32| links.iter().any(|link| link.index == index && wanted(&link.name));
    let led_to: BTreeSet<Ipv4Net> = routes
        .iter()
        .filter(|route| route.device.is_some_and(is_through_wanted))
        .map(|route| route.destination)
        .collect();
    for route in routes {
        // Those of a blackhole, or by the underlay, name no device of ours: they go with their network, with the route
        // that they stand behind, or when all devices' leftovers go.
        routed.extend(route.device);
        let through = route.device.and_then(|index| links.iter().find(|link| link.index == index));
        let to = route.destination;
        let in_saved = saved.as_ref().is_some_and(|config| config.network.contains(&to));
        let stands_behind = route.device.is_none() && led_to.contains(&to);
        if device.is_none() || in_saved || stands_behind || route.device.is_some_and(is_through_wanted) {
            let text = through.map_or_else(|| to.to_string(), |link| format!("{to} dev {}", link.name));
            found.push(Leftover::Route { text, message: Box::new(route.message) });
        }
    }
    let rules: BTreeSet<String> =
        devices_with_rules().await?.into_iter().filter(|name| wanted(name)).collect();
    // A TUN that rules, a route of ours or the state name is ours, too; it goes after its routes.
    let routed = |link: &Link| routed.contains(&link.index);
    let devices = links.iter().filter(|link| link.tun && wanted(&link.name));
    let in_saved = |link: &Link| saved.as_ref().is_some_and(|config| config.device() == link.name);
    let devices = devices.filter(|link| routed(link) || rules.contains(&link.name) || in_saved(link));
    found.extend(devices.map(|link| Leftover::Device(link.name.clone())));
    found.extend(rules.into_iter().map(Leftover::Rules));
    found.extend(sockets.iter().map(|name| Leftover::Socket(socket(name))));
    // With a device named, that of another is not touched.
    if state.exists() && (device.is_none() || saved.is_some()) {
        found.push(Leftover::State(state));
    }
    let lasting = SavedState::lasting_path(Path::new(LASTING), subnet_file);
    if lasting.exists() && (device.is_none() || saved.is_some()) {
        found.push(Leftover::State(lasting));
    }
    Ok(found)
}

/// Removes one of them.
///
/// # Errors
/// What could not be removed, and why.
pub async fn remove(leftover: &Leftover) -> Result<(), String> {
    match leftover {
        Leftover::Rules(device) => {
            firewall::remove_all(device).await.map(drop).map_err(|error| error.to_string())
        }
        Leftover::Device(name) => link::remove_tun(name).await.map_err(|error| error.to_string()),
        Leftover::Route { text, message } => {
            let netlink = Netlink::open().map_err(|error| error.to_string())?;
            let removed = netlink.handle.route().del(message.as_ref().clone()).execute().await;
            removed.map_err(|error| refused(format!("remove the route {text}"), &error).to_string())
        }
        Leftover::Socket(path) => {
            unlink(path)?;
            // A network namespace's directory goes with its last socket; with others in it, it stays.
            let _ = path.parent().map(fs::remove_dir);
            Ok(())
        }
        Leftover::State(path) => unlink(path),
    }
}

/// Gives the lease of `device`, or whichever it is, back that the saved state beside the subnet file tells of,
/// in the store that `flags` name; only looks with `dry_run`. Returns the lease, for people, or `None` if the store has none of ours
/// to be given back: a reservation stays one.
///
/// # Errors
/// The lease cannot be told, or the store said no.
pub async fn release_lease(
    flags: &Flags,
    device: Option<&str>,
    dry_run: bool,
) -> Result<Option<String>, String> {
    let state = SavedState::read(&SavedState::path(&flags.subnet_file)).map_err(|error| {
        format!("cannot tell which lease is this node's: {error} (name the subnet file: cleanup --release-lease -- --subnet-file=FILE)")
    })?;
    let served = NetworkConfig::parse(&state.config).ok().map(|config| config.device());
    if let (Some(device), Some(served)) = (device, served)
        && device != served
    {
        return Err(format!(
            "the saved state is of {served}, not of {device}: name the subnet file of {device} (cleanup --release-lease -- --subnet-file=FILE)"
        ));
    }
    let (manager, usable) =
        flags.lease_manager(&StoreMeter::default()).await.map_err(|error| error.to_string())?;
    usable.map_err(|error| error.to_string())?;
    if !state.store.is_same_store(&manager.id()) {
        return Err(format!(
            "the lease is in {}, not in {}: give overlayd's flags for its store after '--'",
            state.store,
            manager.id()
        ));
    }
    let mut ours = state.lease.clone();
    // It may have been given another address just before the end.
    ours.attrs.public_ip = state.public_ip;
    let lease = format!("the lease of {} in {}", state.lease.subnet, state.store);
    match manager.release(&ours, dry_run).await.map_err(|error| error.to_string())? {
        Released::Done => Ok(Some(lease)),
        Released::Nothing => Ok(None),
        Released::Changed => Err(format!("{lease} has just been changed by somebody else: see who uses it")),
    }
}

/// What tells whoever asks, root or not, that a daemon has run in this network namespace, or with this subnet file.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn traces(subnet_file: &Path) -> Result<Vec<String>, HostError> {
    let states = [SavedState::path(subnet_file), SavedState::lasting_path(Path::new(LASTING), subnet_file)];
    let mut traces: Vec<String> = states
        .into_iter()
        .filter(|state| state.exists())
        .map(|state| Leftover::State(state).to_string())
        .collect();
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let through = |index: u32| links.iter().find(|link| link.index == index);
    traces.extend(netlink.routes_of(ROUTE_PROTOCOL).await?.into_iter().filter_map(|route| {
        let link = through(route.device?)?;
        Some(format!("the route {} dev {}", route.destination, link.name))
    }));
    Ok(traces)
}

fn unlink(path: &Path) -> Result<(), String> {
    fs::remove_file(path).map_err(|error| format!("remove {}: {error}", path.display()))
}
