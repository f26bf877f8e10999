//! What the keeper works with.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use overlay::confine::Confinement;
use overlay::handover::Inherited;
use overlay::priority::Priority;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::daemon::earlier::Earlier;
use crate::daemon::report::{Restored, Shared};
use crate::daemon::rules::Rules;
use crate::daemon::saving::Files;
use crate::daemon::serving::Serving;
use crate::metrics::HostMeter;
use crate::problems::Problems;
use overlay_flags::Flags;
use overlay_host::iface::{IfaceSpec, Underlay};
use overlay_host::link::HostChanges;
use overlay_host::reconcile::Reconcile;
use overlay_leases::membership::{Question, Running, View};
use overlay_leases::store::StoreAddresses;
use overlay_leases::store::StoreId;

/// What the node is made by, and whom it is told to.
pub(in crate::daemon) struct Means {
    pub(in crate::daemon) flags: Arc<Flags>,
    pub(in crate::daemon) spec: IfaceSpec,
    pub(in crate::daemon) underlay: Underlay,
    /// The store, as the saved state names it.
    pub(in crate::daemon) store: StoreId,
    /// What our lease is to say of the underlay.
    pub(in crate::daemon) public_ip: watch::Sender<Ipv4Addr>,
    /// Which network runs.
    pub(in crate::daemon) running: watch::Sender<Option<Running>>,
    /// The networks that the overlay has, and has had as far as is known: docker's bridge may still be in one.
    pub(in crate::daemon) networks: Vec<Ipv4Net>,
    /// What an earlier process has left.
    pub(in crate::daemon) inherited: Inherited,
    /// What the node of an earlier process may have left in the kernel.
    pub(in crate::daemon) earlier: Option<Earlier>,
    /// What workers may do.
    pub(in crate::daemon) confinement: Confinement,
    /// How they stand among the other threads of the host.
    pub(in crate::daemon) priority: Priority,
    /// Where the leases are.
    pub(in crate::daemon) addresses: StoreAddresses,
    pub(in crate::daemon) rules: Rules,
    pub(in crate::daemon) files: Files,
    pub(in crate::daemon) serving: Serving,
    pub(in crate::daemon) problems: Problems,
    pub(in crate::daemon) restored: Restored,
    pub(in crate::daemon) host_meter: HostMeter,
    pub(in crate::daemon) shared: Arc<Mutex<Shared>>,
}

/// What comes to the task.
pub(in crate::daemon) struct Inbox {
    /// What the lease task publishes.
    pub(in crate::daemon) views: watch::Receiver<Option<View>>,
    /// What it asks.
    pub(in crate::daemon) questions: mpsc::Receiver<Question>,
    pub(in crate::daemon) changes: HostChanges,
    pub(in crate::daemon) reconcile: Reconcile,
    /// Whether to stop.
    pub(in crate::daemon) stop: watch::Receiver<bool>,
}
