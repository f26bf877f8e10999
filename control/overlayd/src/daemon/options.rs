//! What the flags ask of nodes.

use std::time::Duration;

use overlay::admit::SourceCheck;
use overlay::confine::Confinement;
use overlay::priority::Priority;

use overlay_flags::{Flags, SourceCheckFlag};
use overlay_host::Masquerade;
use overlay_leases::store::StoreAddresses;
use overlay_node::NodeOptions;
use overlay_node::plan::HostOptions;

/// What nodes are made by, as `flags` ask.
pub(super) fn options(
    flags: &Flags,
    confinement: Confinement,
    priority: Priority,
    stores: StoreAddresses,
) -> NodeOptions {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    NodeOptions {
        host: HostOptions {
            masquerade: Masquerade {
                return_path: flags.return_path_masq,
                ip_masq: flags.ip_masq,
                fully_random: !flags.ip_masq_fully_random_disable,
            },
            forward_rules: flags.iptables_forward_rules,
            firewall: flags.firewall,
            blackhole: flags.ip_blackhole_route,
        },
        source_check: match flags.source_check {
            SourceCheckFlag::Strict => SourceCheck::Strict,
            SourceCheckFlag::Loose => SourceCheck::Loose,
            SourceCheckFlag::Off => SourceCheck::Off,
        },
        queues: flags.queues.map_or(cpus.min(MAX_DEFAULT_QUEUES), usize::from),
        offloads: flags.offload.0.clone(),
        spread_source_ports: flags.source_port_spread,
        stay_awake: Duration::from_micros(u64::from(flags.spin)),
        pin: flags.pin,
        io: flags.io,
        confinement,
        priority,
        stores,
    }
}

/// Queues by default: what the busiest node of a cluster has use for; more cost memory and wake-ups.
const MAX_DEFAULT_QUEUES: usize = 8;
