//! What the service manager hears of us (`sd_notify(3)`), and what it keeps for us.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use overlay::forwarder::Forwarder;
use sd_notify::NotifyState;
use tracing::warn;

/// Tells it that the overlay forwards and the subnet file is written.
pub fn ready() {
    notify(&[NotifyState::Ready], &[]);
}

/// Tells it that we are about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping], &[]);
}

/// Tells it that we are alive.
pub fn alive() {
    notify(&[NotifyState::Watchdog], &[]);
}

/// How often it wants to hear that: a third of its patience.
#[must_use]
pub fn alive_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 3)
}

/// Has it keep the queues and sockets of `forwarder`, if there is one, instead of what it has kept so far, for
/// the next process.
pub fn keep(forwarder: Option<&Forwarder>) {
    let queues: Vec<_> = forwarder.into_iter().flat_map(Forwarder::queues).map(AsFd::as_fd).collect();
    let sockets: Vec<_> = forwarder.into_iter().flat_map(Forwarder::sockets).map(AsFd::as_fd).collect();
    for (name, descriptors) in [("tun", &queues), ("udp", &sockets)] {
        notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)], &[]);
        for some in descriptors.chunks(AT_ONCE) {
            // It is not to look at them: one that reports an error would be thrown away.
            let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
            notify(&state, some);
        }
    }
}

/// Without a service manager nothing is sent.
fn notify(state: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) {
    let sent = match descriptors {
        [] => sd_notify::notify(state),
        _ => sd_notify::notify_with_fds(state, descriptors),
    };
    if let Err(error) = sent {
        warn!(%error, "cannot notify the service manager");
    }
}

/// Descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`).
const AT_ONCE: usize = 64;
