//! What the membership tells: its view, and what there is to say besides.

use std::mem;

use tokio::time::Instant;

use super::told::{tell_conflicts, tell_refused};
use super::{Membership, View};
use crate::lease::{Ground, Lease};
use overlay_support::problem::Problem;

impl Membership {
    /// Step 4.
    pub(super) fn publish(&mut self) {
        let (Some((text, config)), Some(held)) = (&self.config, &self.held) else { return };
        let ours = (held.entry.key.as_str(), &held.attrs);
        let host = self.host.borrow().clone();
        let (own, public_ip) = (Some(held.entry.subnet), self.terms.public_ip);
        let mut judgement = Ground { config, own, public_ip, host: &host }.judge(&self.leases);
        self.leases.note_use(&judgement);
        let refused_count = judgement.refused.len();
        judgement.refused.truncate(TOLD);
        tell_refused(&self.refused, &judgement.refused, refused_count);
        self.refused.clone_from(&judgement.refused);
        let mut conflicts = judgement.conflicts;
        conflicts.extend(self.rivals.conflicts(&self.leases, ours, self.terms.ttl, Instant::now()));
        tell_conflicts(&self.conflicts, &conflicts);
        self.conflicts.clone_from(&conflicts);
        self.standing.send_if_modified(|standing| standing.waits_for.take().is_some());
        let view = View {
            config: config.clone(),
            config_text: text.clone(),
            lease: Lease { subnet: held.entry.subnet, attrs: held.attrs.clone() },
            held: self.is_held(),
            peers: judgement.peers,
            ignored: judgement.other_backend,
            refused: judgement.refused,
            refused_count,
            garbage: self.leases.garbage() + self.skipped,
            conflicts,
            host,
            connected: self.connected,
        };
        self.out.send_if_modified(|current| {
            let modified = current.as_ref() != Some(&view);
            *current = Some(view);
            modified
        });
    }

    pub(super) fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
        self.meters.store.set_connected(connected);
        self.out.send_if_modified(|view| match view {
            Some(view) if view.connected != connected => {
                view.connected = connected;
                true
            }
            _ => false,
        });
    }

    pub(super) fn wait_for(&self, what: String) {
        self.standing.send_if_modified(|standing| {
            let now = Some(format!("overlayd waits for {what}"));
            let changed = standing.waits_for != now;
            standing.waits_for = now;
            changed
        });
    }

    pub(super) fn not_applied(&self, problem: Option<Problem>) {
        self.standing.send_if_modified(|standing| {
            let changed = standing.not_applied != problem;
            standing.not_applied = problem;
            changed
        });
    }

    pub(super) fn tell_beyond(&self) {
        let beyond = self.leases.beyond();
        self.standing.send_if_modified(|standing| mem::replace(&mut standing.beyond, beyond) != beyond);
    }
}

/// Of leases that are not used, as many are named: there may be any number.
const TOLD: usize = 100;
