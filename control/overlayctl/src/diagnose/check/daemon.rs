//! What the daemon says of itself, as a part of a check.

use overlay::offload::Offload;

use super::finding::Finding;
use overlay_api::status::{LeaseState, LeaseStatus, Status, StoreStatus};
use overlay_support::text::plural;

pub(super) fn findings(status: &Status) -> Vec<Finding> {
    let Status { version, host, conflicts, .. } = status;
    let mut findings = vec![
        Finding::ok("daemon", format!("overlayd {version} answers")),
        lease(&status.lease),
        store(&status.store),
    ];
    findings.extend(conflicts.iter().map(|conflict| {
        Finding::error(
            "conflict",
            conflict,
            "one of the nodes must get another address or subnet: see 'overlayctl leases'",
        )
    }));
    findings.extend(host.problems.iter().map(|problem| {
        Finding::error(
            "host",
            problem,
            "put right what it names: overlayd notices, or tries again, by itself",
        )
    }));
    findings.extend(leases(status));
    findings.extend(offloads(status));
    findings
}

/// Whether we have our lease.
fn lease(lease: &LeaseStatus) -> Finding {
    let held = format!("{}, public address {}", lease.subnet, lease.public_ip);
    match lease.state {
        LeaseState::Held => Finding::ok("lease", format!("{held}, held")),
        LeaseState::Saved => Finding::warning(
            "lease",
            format!("{held}, known from an earlier run only"),
            "the store has not been reached since the start: see the line 'store'",
        ),
        LeaseState::Lost => Finding::error(
            "lease",
            format!("{held}, lost"),
            "it is taken again by itself once the store can be reached: see the line 'store' and the log",
        ),
    }
}

/// Whether the store's changes arrive.
fn store(store: &StoreStatus) -> Finding {
    let place = format!("{} {}", store.kind, store.r#where);
    if store.connected {
        Finding::ok("store", format!("{place}, connected"))
    } else {
        let (end, remedy) = match store.kind.as_str() {
            "dir" => {
                ("", "is the directory there, and does its disk answer? The log has the last word of it")
            }
            _ => (
                ", and leases expire in the end",
                "is it running, and reached from here (endpoints, firewall, certificates)? The log has its last word",
            ),
        };
        let text = format!("{place}, not connected: forwarding goes on, but nobody's changes arrive{end}");
        Finding::error("store", text, remedy)
    }
}

/// The leases of others that are not used.
fn leases(status: &Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    if status.garbage_leases > 0 {
        findings.push(Finding::warning(
            "leases",
            format!(
                "{0} key{1} among the leases cannot be read",
                status.garbage_leases,
                plural(status.garbage_leases)
            ),
            "the log names them: remove them from the store",
        ));
    }
    if let Some(first) = status.refused.first() {
        let count = status.refused_leases;
        findings.push(Finding::warning(
            "leases",
            match count {
                1 => format!("one of them is not used, {first}"),
                _ => format!("{count} of them are not used, the first is {first}"),
            },
            "see 'overlayctl leases': remove what no node of this network has written, and find out who did",
        ));
    }
    findings
}

/// What costs speed.
fn offloads(status: &Status) -> Option<Finding> {
    let off: Vec<&str> =
        status.offloads.iter().filter(|(_, on)| !**on).map(|(name, _)| name.as_str()).collect();
    // Where there is no virtual wire, or another backend, there is nothing to be missed.
    let optional = Offload::TunnelGso.label();
    if off == [optional] {
        let why = match status.offloads_held.get(optional) {
            Some(reason) => format!("because {reason}"),
            None => "which is for virtual wires".to_owned(),
        };
        Some(Finding::ok("offloads", format!("all on but {optional}, {why}")))
    } else if !off.is_empty() {
        Some(Finding::warning(
            "offloads",
            format!("off: {}", off.join(", ")),
            "they cost speed only: see --offload, and the kernel's version",
        ))
    } else {
        status.device.as_ref().map(|_| Finding::ok("offloads", "all on"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::check::finding::Level;
    use overlay_api::example::example;

    #[test]
    fn an_offload_for_virtual_wires_is_not_missed_elsewhere() {
        let offloads_with = |held: &[&str], off: &[&str]| {
            let mut status = example();
            status.offloads_held =
                held.iter().map(|name| ((*name).to_owned(), "a rule could act".to_owned())).collect();
            status.offloads = Offload::ALL
                .map(|offload| (offload.label().to_owned(), !off.contains(&offload.label())))
                .into();
            let finding = findings(&status).into_iter().find(|finding| finding.check == "offloads");
            finding.map(|finding| (finding.level, finding.text)).unwrap()
        };
        let offloads = |off: &[&str]| offloads_with(&[], off);
        let only_virtual = "all on but tunnel-gso, which is for virtual wires".to_owned();
        assert_eq!(offloads(&[]), (Level::Ok, "all on".to_owned()));
        assert_eq!(offloads(&["tunnel-gso"]), (Level::Ok, only_virtual));
        assert_eq!(offloads(&["uso", "tunnel-gso"]), (Level::Warning, "off: tunnel-gso, uso".to_owned()));
        let held = "all on but tunnel-gso, because a rule could act".to_owned();
        assert_eq!(offloads_with(&["tunnel-gso"], &["tunnel-gso"]), (Level::Ok, held));
    }
}
