//! Which way the overlay's packets take to the wire: by sockets, or by the rings of the underlay's interface.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use overlay::SetupError;
use overlay::handover::Inherited;
use overlay::underlay::port::{self, Attach, Interface, Link, Port, Wanted};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::service_manager;
use overlay_host::iface::Underlay;

/// The values of `--io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Io {
    /// Sockets.
    Udp,
    /// `AF_XDP`, in the driver.
    Xdp,
    /// `AF_XDP`, in the kernel's stack.
    XdpGeneric,
    /// `AF_XDP` where the card itself reads and writes the frames, else sockets.
    Auto,
}

/// Why there are no rings, though they were asked for.
#[derive(Debug, Clone)]
pub struct Without {
    /// For people.
    pub reason: String,
    /// What was wanted, if it is only that somebody has the queues.
    taken: Option<(Interface, Wanted)>,
}

impl Without {
    /// Whether somebody has the queues, who may give them up.
    #[must_use]
    pub fn is_for_now(&self) -> bool {
        self.taken.is_some()
    }

    /// Whether the queues are free now. Looking takes them for a moment: rings are to be opened some time later.
    pub async fn is_over(&self) -> bool {
        let Some((interface, wanted)) = self.taken.clone() else { return false };
        spawn_blocking(move || port::are_queues_free(&interface, wanted)).await.unwrap_or(false)
    }
}

/// The port that `io` asks for, if it can be had; otherwise, if it was asked for, why not. Of what is `inherited` the
/// place of its program is used.
pub async fn open(
    io: Io,
    underlay: &Underlay,
    listen: SocketAddr,
    inherited: &mut Inherited,
) -> (Option<Port>, Option<Without>) {
    let mut earlier = inherited.link(underlay.index);
    let (attach, zero_copy_only) = match io {
        Io::Udp => return (None, None),
        Io::Xdp => (Attach::Native, false),
        Io::XdpGeneric => (Attach::Generic, false),
        Io::Auto => (Attach::Native, true),
    };
    let Some(mac) = underlay.mac else {
        let reason = format!("{} is no Ethernet interface", underlay.name);
        return (None, Some(without(io, reason, None)));
    };
    let interface = Interface {
        name: underlay.name.clone(),
        index: underlay.index,
        mac,
        mtu: underlay.mtu,
        queues: port::receive_queues(&underlay.name),
    };
    if attach != Attach::Native && earlier.take().is_some() {
        // It is in the driver, and to go first.
        service_manager::forget().await;
    }
    let wanted = Wanted { attach, zero_copy_only };
    match patiently(&interface, listen, wanted, &mut earlier).await {
        Ok(port) => {
            let state = port.state();
            let (interface, queues) = (&state.interface.name, state.interface.queues);
            info!(
                interface,
                queues,
                ?attach,
                zero_copy = state.zero_copy,
                "the overlay goes by the interface's rings"
            );
            (Some(port), None)
        }
        Err(error) => {
            let taken = port::is_taken(&error).then_some((interface, wanted));
            (None, Some(without(io, error.to_string(), taken)))
        }
    }
}

/// A queue stays taken for a moment after its socket was closed, by the node before this one or by the process
/// before this one (`xp_release_deferred`, `net/xdp/xsk_buff_pool.c`).
async fn patiently(
    interface: &Interface,
    listen: SocketAddr,
    wanted: Wanted,
    earlier: &mut Option<Link>,
) -> Result<Port, SetupError> {
    let mut patience = TRIES;
    loop {
        match Port::open(interface.clone(), listen, wanted, earlier) {
            Err(error) if patience > 0 && error.source.kind() == ErrorKind::ResourceBusy => {
                patience -= 1;
                sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

fn without(io: Io, reason: String, taken: Option<(Interface, Wanted)>) -> Without {
    if io == Io::Auto {
        info!(reason, "the overlay goes by sockets");
    } else {
        warn!(reason, "the overlay goes by sockets, not by XDP as --io asks for");
    }
    Without { reason, taken }
}

/// A third of a second at most: packets wait in the overlay device meanwhile. What takes longer is looked for by and by
/// ([`Without::is_over`]).
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(10);
