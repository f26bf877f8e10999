//! What the service manager hears of us (`sd_notify(3)`), and what it keeps for us.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use overlay::forwarder::Forwarder;
use overlay::handover::Role;
use sd_notify::NotifyState;
use tokio::time::Instant;
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

/// Waits, if there is a service manager and this process is a young one: it is about to end with an error, and the
/// next one is started at once, for the sake of crashes. What kept this one from starting takes longer to go away.
pub async fn pause_before_the_next(started: Instant) {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tokio::time::sleep_until(started + PAUSE).await;
    }
}

/// How often it wants to hear that: a third of its patience.
#[must_use]
pub fn alive_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 3)
}

/// Has it keep the queues and sockets of `forwarder`, if there is one, its TAP, and the places of its programs, instead
/// of what it has kept so far, for the next process.
pub fn keep(forwarder: Option<&Forwarder>) {
    let queues: Vec<_> = forwarder.into_iter().flat_map(Forwarder::queues).map(AsFd::as_fd).collect();
    let sockets: Vec<_> = forwarder.into_iter().flat_map(Forwarder::sockets).map(AsFd::as_fd).collect();
    let link = forwarder.and_then(|forwarder| forwarder.link().ok().flatten());
    let links: Vec<_> = link.as_ref().map(AsFd::as_fd).into_iter().collect();
    let tap: Vec<_> = forwarder.into_iter().flat_map(Forwarder::tap).collect();
    for (name, descriptors) in
        [("tun", &queues), ("udp", &sockets), (Role::Rings.name(), &links), (Role::Tap.name(), &tap)]
    {
        notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)], &[]);
        for some in descriptors.chunks(AT_ONCE) {
            // It is not to look at them: one that reports an error would be thrown away.
            let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
            notify(&state, some);
        }
    }
}

/// Has it close what it has kept of ours, and waits until it has, for a second at most: while it holds a queue of a
/// device, nobody else can have that.
pub async fn forget() {
    keep(None);
    let Ok((mut ours, its)) = std::io::pipe() else { return };
    notify(&[NotifyState::Custom("BARRIER=1")], &[its.as_fd()]);
    drop(its);
    // It sends nothing, and closes its end when it has come to our message (`sd_notify_barrier(3)`).
    let closed = tokio::task::spawn_blocking(move || ours.read(&mut [0]));
    if tokio::time::timeout(Duration::from_secs(1), closed).await.is_err() {
        warn!("the service manager does not say that it has closed what we cannot use");
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

/// With it, a service manager that gives up after 30 starts in a minute goes on trying.
const PAUSE: Duration = Duration::from_millis(2100);
/// Descriptors in one message; the kernel takes 253 (`SCM_MAX_FD`).
const AT_ONCE: usize = 64;
