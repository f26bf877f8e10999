//! Why packets are dropped.

use overlay_wire::drops::DropReason;

use super::{WRITTEN, cell, code, table};

pub(super) fn document() -> String {
    let row = |reason: DropReason| {
        let way = match (DropReason::EGRESS.contains(&reason), DropReason::INGRESS.contains(&reason)) {
            (true, true) => "both",
            (true, false) => "egress",
            _ => "ingress",
        };
        [code(reason.label()), way.to_owned(), cell(reason.meaning()), cell(reason.remedy())]
    };
    format!(
        "# Drop reasons\n\n{WRITTEN}{ABOUT}{}",
        table(["reason", "way", "means", "do this"], DropReason::ALL.into_iter().map(row))
    )
}

const ABOUT: &str = "
The data plane counts each packet that it does not forward under one of these reasons. `egress` is from the overlay
device to the wire, `ingress` from the wire to the device. `overlayctl drops` shows each reason that packets were dropped
for, with one of the last packets, what it means and what to do; `overlayd_dropped_packets_total` counts them for
Prometheus ([metrics](metrics.md)). [Diagnose](../diagnose.md) says how to find a cause.
";
