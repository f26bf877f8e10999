//! When a tunnel is made anew to get other rings, or rings at all.

use overlay_node::Tunnel;
use overlay_support::backoff::Backoff;
use tokio::time::Instant;

/// What is known of queues that somebody else had. They are looked at, and another time taken, ever less often: a look
/// takes them itself, and a build that gets none costs some packets.
pub(super) struct Rings {
    pauses: Backoff,
    /// Until then nothing is done about them.
    rests_until: Option<Instant>,
    /// Whether they were free when they were looked at.
    are_free: bool,
}

impl Rings {
    pub(super) const fn new() -> Self {
        Self { pauses: Backoff::of_this_host(), rests_until: None, are_free: false }
    }

    /// Why `tunnel` is to be made anew, if it is.
    pub(super) async fn why_others(&mut self, tunnel: &Tunnel) -> Option<&'static str> {
        if tunnel.has_outdated_rings() {
            return Some("the interface has another number of queues");
        }
        let Some(without) = tunnel.without_rings.as_ref().filter(|without| without.is_for_now()) else {
            *self = Self::new();
            return None;
        };
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let were_free = std::mem::replace(&mut self.are_free, false);
        if !were_free {
            self.are_free = without.is_over().await;
        }
        self.rests_until = Some(Instant::now() + self.pauses.pause());
        were_free.then_some("the interface's queues are free now")
    }
}
