//! Whether this host can run a node, found out before anything that runs is touched.

use overlay::handover::Inherited;
use overlay::offload::Offloads;
use overlay::tun;
use overlay::underlay::udp;
use tokio::time::Instant;

use crate::error::NodeError;
use crate::options::NodeOptions;
use crate::plan::Plan;
use crate::takeover;
use overlay_host::{forwarding, link};
use overlay_leases::netconf::Backend;

/// Whether `plan` can take the place of the node of `before`, if one runs, with what is `inherited` of an earlier
/// process. What is made to find out is gone afterwards. The firewall's programs are waited for until `programs`.
///
/// # Errors
/// What could not be had.
pub async fn preflight(
    plan: &Plan,
    options: &NodeOptions,
    before: Option<&Plan>,
    inherited: &Inherited,
    programs: Instant,
) -> Result<(), NodeError> {
    plan.check()?;
    let left_by_flanneld = takeover::find(plan, programs).await?.is_some();
    tunnel(plan, options, before, inherited, left_by_flanneld).await?;
    if plan.config.backend != Backend::Alloc {
        forwarding::can_be_switched_on()?;
    }
    Ok(())
}

/// Whether there can be its tunnel, if it has one.
async fn tunnel(
    plan: &Plan,
    options: &NodeOptions,
    before: Option<&Plan>,
    inherited: &Inherited,
    left_by_flanneld: bool,
) -> Result<(), NodeError> {
    let Some(listen) = plan.listen() else { return Ok(()) };
    if left_by_flanneld {
        // It has port and name until it is removed, and is to stay where the place cannot be taken.
        return try_device(STAND_IN, 1).await;
    }
    let has_port = before.and_then(Plan::listen) == Some(listen) || inherited.has_sockets(listen);
    if !has_port {
        udp::probe(listen)?;
    }
    let device = plan.device();
    let has_device = before.is_some_and(|before| before.listen().is_some() && before.device() == device);
    if has_device || inherited.has_queues(&device) {
        return Ok(());
    }
    if link::is_open(&device).await? {
        return Err(NodeError::DeviceTaken(device));
    }
    try_device(&device, options.queues).await
}

/// Whether there can be a TUN of this name. One that was not there before is gone afterwards.
async fn try_device(name: &str, queues: usize) -> Result<(), NodeError> {
    let was_there = link::index_of(name).await.is_ok();
    let opened = tun::open(name, queues, &Offloads::default(), Vec::new()).map(drop);
    if !was_there {
        link::remove_unused_tun(name).await?;
    }
    Ok(opened?)
}

/// The device that is tried where the name that is wanted is not free yet.
const STAND_IN: &str = "overlayd-try";
