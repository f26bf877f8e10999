//! `overlayctl check`: whether this host is fit for the overlay, and what is wrong with it if not.
//!
//! With a daemon running it asks that, the kernel, and each peer; without one it looks whether a daemon with the
//! flags given could start (`preflight`). Nothing is changed.

mod absent;
mod host;
mod network;
mod peers;
mod preflight;

use std::fmt::Write as _;
use std::path::Path;

use overlay::offload::Offload;
use serde::Serialize;

use overlay_api::status::{LeaseState, Status};
use overlay_flags::Flags;
use overlay_host::HostError;
use overlay_host::docker::DOCKERS;
use overlay_leases::state::SavedState;
use overlay_support::text::plural;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, or may; somebody should look.
    Warning,
    /// Packets do not arrive, or will not.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: a word to look for in the documentation.
    pub check: &'static str,
    /// How bad.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, text: text.into(), remedy: None }
    }

    fn warning(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, text: text.into(), remedy: Some(remedy.into()) }
    }

    fn error(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Error, text: text.into(), remedy: Some(remedy.into()) }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Says of a daemon that runs that flags given for one are not looked at.
    #[must_use]
    pub fn without_flags(mut self) -> Self {
        let text = "a daemon runs here, and is checked as it runs: the flags behind '--' are not looked at";
        let remedy =
            "leave them out; to try others, stop the daemon, or run it in a network namespace of its own";
        self.findings.insert(0, Finding::warning("flags", text, remedy));
        self
    }

    /// The worst of it; [`Level::Ok`] if there is nothing.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// For a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for Finding { check, level, text, remedy } in &self.findings {
            let level = match level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Error => "ERROR",
            };
            let _ = writeln!(out, "{level:<8} {check:<12} {text}");
            if let Some(remedy) = remedy {
                let _ = writeln!(out, "{:<21} remedy: {remedy}", "");
            }
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let _ = match (count(Level::Error), count(Level::Warning)) {
            (0, 0) => writeln!(out, "\nall is well"),
            (errors, warnings) => writeln!(out, "\nerrors: {errors}, warnings: {warnings}"),
        };
        out
    }
}

/// Checks the host of the daemon that answers at `socket` with `status`.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn running(status: &Status, socket: &Path) -> Result<Report, HostError> {
    let mut findings = daemon(status);
    findings.extend(status.routed.as_ref().map(|routed| network::finding(status.network, routed)));
    let of_host = host::findings(status).await?;
    let of_docker = |finding: &Finding| finding.text.starts_with(DOCKERS) && finding.level == Level::Error;
    // The daemon has seen docker's bridge, too.
    if of_host.iter().any(|finding| finding.check == "bridge" && of_docker(finding)) {
        findings.retain(|finding| finding.check != "host" || !of_docker(finding));
    }
    findings.extend(of_host);
    findings.extend(peers::findings(status, socket).await?);
    findings.push(clock());
    Ok(Report { findings })
}

/// Checks the host of a daemon that listens and cannot tell of itself, as it says: `problem`.
#[must_use]
pub fn unready(problem: &str) -> Report {
    let remedy = "what keeps it is in its log (journalctl -u overlayd), and in 'overlayctl events'";
    Report { findings: vec![Finding::error("daemon", problem, remedy), clock()] }
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
    findings.push(clock());
    Ok(Report { findings })
}

/// What the daemon says of itself.
fn daemon(status: &Status) -> Vec<Finding> {
    let Status { version, lease, store, host, conflicts, .. } = status;
    let mut findings = vec![Finding::ok("daemon", format!("overlayd {version} answers"))];
    let held = format!("{}, public address {}", lease.subnet, lease.public_ip);
    findings.push(match lease.state {
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
    });
    let place = format!("{} {}", store.kind, store.r#where);
    findings.push(if store.connected {
        Finding::ok("store", format!("{place}, connected"))
    } else {
        let (end, remedy) = match store.kind.as_str() {
            "dir" => ("", "is the directory there, and does its disk answer? The log has the last word of it"),
            _ => (
                ", and leases expire in the end",
                "is it running, and reached from here (endpoints, firewall, certificates)? The log has its last word",
            ),
        };
        let text =
            format!("{place}, not connected: forwarding goes on, but nobody's changes arrive{end}");
        Finding::error("store", text, remedy)
    });
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
    let off: Vec<&str> =
        status.offloads.iter().filter(|(_, on)| !**on).map(|(name, _)| name.as_str()).collect();
    // Where there is no virtual wire, or another backend, there is nothing to be missed.
    let optional = Offload::TunnelGso.label();
    if off == [optional] {
        let why = match status.offloads_held.get(optional) {
            Some(reason) => format!("because {reason}"),
            None => "which is for virtual wires".to_owned(),
        };
        findings.push(Finding::ok("offloads", format!("all on but {optional}, {why}")));
    } else if !off.is_empty() {
        findings.push(Finding::warning(
            "offloads",
            format!("off: {}", off.join(", ")),
            "they cost speed only: see --offload, and the kernel's version",
        ));
    } else if status.device.is_some() {
        findings.push(Finding::ok("offloads", "all on"));
    }
    findings
}

fn clock() -> Finding {
    match overlay_sys::clock::is_synchronized() {
        Ok(true) => Finding::ok("clock", "kept in step"),
        Ok(false) => Finding::warning(
            "clock",
            "nobody keeps it in step: certificates and logs of several hosts rely on it",
            "run chrony or systemd-timesyncd (in a container, on its host)",
        ),
        Err(error) => Finding::warning("clock", error.to_string(), "see adjtimex(2)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let finding = daemon(&status).into_iter().find(|finding| finding.check == "offloads");
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

    #[test]
    fn the_worst_finding_counts() {
        let report = |findings| Report { findings };
        let (ok, warning, error) = (
            Finding::ok("a", "fine"),
            Finding::warning("b", "odd", "look"),
            Finding::error("c", "bad", "mend it"),
        );
        assert_eq!(report(vec![]).worst(), Level::Ok);
        assert_eq!(report(vec![ok.clone()]).to_text(), "ok       a            fine\n\nall is well\n");
        assert_eq!(report(vec![warning.clone(), ok.clone()]).worst(), Level::Warning);
        let all = report(vec![warning, error, ok]);
        assert_eq!(all.worst(), Level::Error);
        assert!(
            all.to_text().contains("ERROR    c            bad\n                      remedy: mend it\n"),
            "{}",
            all.to_text()
        );
    }
}
