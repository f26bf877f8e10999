//! Whether this host can run a node, found out before anything that runs is touched.

use std::net::SocketAddrV4;

use overlay::handover::Inherited;
use overlay::offload::Offloads;
use overlay::tun;
use overlay::underlay::udp;

use super::{NodeError, NodeOptions, Plan};
use crate::host::link;
use crate::takeover;

impl Plan {
    /// Where the tunnel's packets arrive, if there is a tunnel.
    #[must_use]
    pub fn listen(&self) -> Option<SocketAddrV4> {
        self.wire().map(|(_, port)| SocketAddrV4::new(self.underlay.address, port))
    }
}

/// Whether `plan` can take the place of the node of `before`, if one runs, with what is `inherited` of an earlier
/// process. What is made to find out is gone afterwards.
///
/// # Errors
/// What could not be had.
pub async fn preflight(
    plan: &Plan,
    options: &NodeOptions,
    before: Option<&Plan>,
    inherited: &Inherited,
) -> Result<(), NodeError> {
    plan.check()?;
    let left_by_flanneld = takeover::find(plan).await?;
    let Some(listen) = plan.listen() else { return Ok(()) };
    if left_by_flanneld.is_some() {
        // It has port and name until it is removed.
        return Ok(());
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
    let was_there = link::index_of(&device).await.is_ok();
    let opened = tun::open(&device, options.queues, &Offloads::default(), Vec::new()).map(drop);
    if !was_there {
        link::remove_unused_tun(&device).await?;
    }
    Ok(opened?)
}
