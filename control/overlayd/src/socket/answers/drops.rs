//! `GET /v1/drops`.

use std::time::UNIX_EPOCH;

use overlay::peer_state::Direction;
use overlay::stats::Totals;
use overlay::witness::{Offender, Watched};
use overlay_wire::drops::DropReason;
use overlay_wire::glance::Glance;

use overlay_api::drops::{Drop, Drops, Last};
use overlay_api::status::Directions;
use overlay_node::Tunnel;

/// Those of a tunnel; without one nothing is dropped.
pub(super) fn drops(tunnel: Option<&Tunnel>) -> Drops {
    let Some(tunnel) = tunnel else {
        return Drops(Directions { egress: Vec::new(), ingress: Vec::new() });
    };
    let watched: &Watched = tunnel.forwarder().watched();
    let (egress, ingress) = tunnel.totals();
    let by_reason = |direction, totals: &Totals, reasons: &[DropReason]| {
        let drop = |reason: &DropReason| Drop {
            reason: reason.label().to_owned(),
            packets: totals.drops(*reason),
            last: watched.offender(direction, *reason).map(last),
        };
        reasons.iter().map(drop).collect()
    };
    Drops(Directions {
        egress: by_reason(Direction::Egress, &egress, &DropReason::EGRESS),
        ingress: by_reason(Direction::Ingress, &ingress, &DropReason::INGRESS),
    })
}

#[expect(clippy::disallowed_methods, reason = "for people: how long ago a dated packet was")]
fn last(offender: Offender) -> Last {
    let Offender { when, outer, inner, len } = offender;
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Last {
        unix_ms: when.duration_since(UNIX_EPOCH).map(millis).unwrap_or_default(),
        ago_ms: when.elapsed().map(millis).unwrap_or_default(),
        outer,
        src: inner.map(|inner| inner.src),
        dst: inner.map(|inner| inner.dst),
        protocol: inner.map(|inner| inner.protocol),
        ports: inner.and_then(|inner: Glance| inner.ports),
        len,
    }
}
