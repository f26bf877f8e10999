//! What every lease manager can do.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tokio::sync::{Notify, mpsc, watch};

use crate::lease::{HostFacts, Lease, LeaseAttrs, Reason};
use crate::membership::{MembershipError, Question, Running, Standing, Terms, View};
use crate::meters::Meters;
use crate::store::{StoreError, StoreId};
use overlay_support::json::JsonError;

/// Gives this node its lease, and tells it of the others.
#[async_trait]
pub trait LeaseManager: Send + Sync {
    /// Which network's leases these are, and where they are kept.
    fn id(&self) -> StoreId;

    /// What an operator does to give the network its configuration, as a command.
    fn how_to_configure(&self, config: &str) -> String;

    /// The network configuration's text; `None` while nobody has given one.
    async fn config(&self) -> Result<Option<String>, StoreError>;

    /// Which nodes have a lease.
    async fn nodes(&self) -> Result<Nodes, StoreError>;

    /// All leases as they stand now, judged as the node with that `view` judges them. When those end that end by
    /// themselves is asked for if there are `most_asked` of them at most.
    async fn leases(&self, view: &View, most_asked: usize) -> Result<LeaseList, StoreError>;

    /// Gives `lease` back, which an earlier run had; with `dry_run` only says what would be done.
    async fn release(&self, lease: &Lease, dry_run: bool) -> Result<Released, StoreError>;

    /// Takes part in the network until the future is dropped: takes and keeps a lease, follows the others, and publishes
    /// a [`View`] whenever it has changed. Returns only if there is nothing to go on with.
    async fn take_part(&self, links: Links) -> MembershipError;
}

/// What a lease manager and the daemon tell each other while the node takes part.
pub struct Links {
    /// Who takes the lease.
    pub terms: Terms,
    /// What an earlier run has known.
    pub earlier: Option<View>,
    /// This node's public address: when it changes, the lease is kept and says the new one.
    pub public_ip: watch::Receiver<Ipv4Addr>,
    /// Asks for the network configuration to be read again and applied.
    pub reload: Arc<Notify>,
    /// What leases are judged by of this host.
    pub host: watch::Receiver<HostFacts>,
    /// Asks whether this host can run a network, before a lease is taken in it.
    pub questions: mpsc::Sender<Question>,
    /// Which network this host runs: earlier leases are given up once it runs by the one that is held.
    pub runs: watch::Receiver<Option<Running>>,
    /// Where views go.
    pub views: watch::Sender<Option<View>>,
    /// Where all else goes that there is to say.
    pub standing: watch::Sender<Standing>,
    /// What is counted.
    pub meters: Meters,
}

/// The nodes that have a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// How many leases there are, also such as cannot be read.
    pub leases: usize,
    /// The public addresses that they name.
    pub public_ips: Vec<Ipv4Addr>,
}

/// All leases at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaseList {
    /// By subnet.
    pub leases: Vec<ListedLease>,
    /// Keys beside them that name no subnet.
    pub other_keys: usize,
}

/// A lease as it stands there, read or not.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedLease {
    /// Under which name it stands there.
    pub key: String,
    /// The subnet.
    pub subnet: Ipv4Net,
    /// What it says, or why that cannot be read.
    pub attrs: Result<LeaseAttrs, JsonError>,
    /// Whether it is this node's.
    pub own: bool,
    /// When it ends by itself, if that is known.
    pub expires_in: Option<Duration>,
    /// Whether it does not end where others do.
    pub is_reservation: bool,
    /// Why this node does not use it.
    pub refused: Option<Reason>,
}

/// What became of a lease that was to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// It is free, or would be.
    Done,
    /// There is none of ours that could be given back: it is gone, or a reservation, which stays one.
    Nothing,
    /// Somebody else has changed it at this moment.
    Changed,
}
