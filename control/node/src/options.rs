//! What the operator chose about nodes in general.

use std::time::Duration;

use overlay::admit::SourceCheck;
use overlay::confine::Confinement;
use overlay::offload::Offload;
use overlay::priority::Priority;

use crate::io::Io;
use crate::plan::HostOptions;
use overlay_leases::store::StoreAddresses;

/// What the operator chose about nodes in general.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// What is done to the host.
    pub host: HostOptions,
    /// What is asked of the source of packets from the wire.
    pub source_check: SourceCheck,
    /// Queues of the overlay device.
    pub queues: usize,
    /// What the kernel is asked to do for the data plane.
    pub offloads: Vec<Offload>,
    /// Whether flows leave by different source ports; if not said, as in flannel, whose udp has one.
    pub spread_source_ports: Option<bool>,
    /// How long a worker looks for more before it sleeps.
    pub stay_awake: Duration,
    /// Whether the workers of a queue are tied to one processor.
    pub pin: bool,
    /// Which way packets take to the wire.
    pub io: Io,
    /// What the workers may do besides.
    pub confinement: Confinement,
    /// How they stand among the other threads of the host.
    pub priority: Priority,
    /// Where the leases are, which the overlay must leave in reach.
    pub stores: StoreAddresses,
}
