//! `overlayctl check`: whether this host is fit for the overlay, and what is wrong with it if not.
//!
//! With a daemon running it asks that, the kernel, and each peer; without one it looks whether a daemon with the
//! flags given could start (`preflight`). Nothing is changed.

mod absent;
mod clock;
mod daemon;
mod finding;
mod host;
mod network;
mod peers;
mod preflight;
mod report;

use std::path::Path;

use overlay_api::status::Status;
use overlay_flags::Flags;
use overlay_host::HostError;
use overlay_host::docker::DOCKERS;
use overlay_leases::state::SavedState;

pub use finding::{Finding, Level};
pub use report::Report;

/// Checks the host of the daemon that answers at `socket` with `status`.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn running(status: &Status, socket: &Path) -> Result<Report, HostError> {
    let mut findings = daemon::findings(status);
    findings.extend(status.routed.as_ref().map(|routed| network::finding(status.network, routed)));
    let of_host = host::findings(status).await?;
    let of_docker = |finding: &Finding| finding.text.starts_with(DOCKERS) && finding.level == Level::Error;
    // The daemon has seen docker's bridge, too.
    if of_host.iter().any(|finding| finding.check == "bridge" && of_docker(finding)) {
        findings.retain(|finding| finding.check != "host" || !of_docker(finding));
    }
    findings.extend(of_host);
    findings.extend(peers::findings(status, socket).await?);
    findings.push(clock::finding());
    Ok(Report { findings })
}

/// Checks the host of a daemon that listens and cannot tell of itself, as it says: `problem`.
#[must_use]
pub fn unready(problem: &str) -> Report {
    let remedy = "what keeps it is in its log (journalctl -u overlayd), and in 'overlayctl events'";
    Report { findings: vec![Finding::error("daemon", problem, remedy), clock::finding()] }
}

/// Checks whether a daemon with `flags` could start on this host; with `asked_before`, of one that need not have run
/// yet.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn before_start(flags: &Flags, asked_before: bool) -> Result<Report, HostError> {
    let mut findings = vec![absent::finding(&flags.subnet_file, asked_before).await?];
    let saved = SavedState::read(&SavedState::path(&flags.subnet_file)).ok();
    let saved = saved.and_then(|saved| flags.with_store(&saved.store));
    if let Some(flags) = &saved {
        let text = format!("that of the saved state beside {}", flags.subnet_file.display());
        findings.push(Finding::ok("store", text));
    }
    findings.extend(preflight::findings(saved.as_ref().unwrap_or(flags)).await?);
    findings.push(clock::finding());
    Ok(Report { findings })
}
