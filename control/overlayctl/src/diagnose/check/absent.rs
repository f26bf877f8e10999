//! What it means that no daemon answers: none has been here yet, or one should.

use std::path::Path;

use super::finding::Finding;
use crate::cleanup;
use overlay_api::path;
use overlay_host::HostError;
use overlay_node::takeover::process_here;

/// What tells whether a daemon should answer in this network namespace.
struct Signs {
    /// A daemon's process.
    process: Option<u32>,
    /// What one has left.
    left: Vec<String>,
    /// Whether systemd is to start it when the host boots.
    enabled: bool,
    /// Somebody asks what a daemon with certain flags would find: it need not run yet.
    asked_before: bool,
}

pub(super) async fn finding(subnet_file: &Path, asked_before: bool) -> Result<Finding, HostError> {
    // The service is the host's, not that of a network namespace beside it.
    let on_host = path::directory().is_ok_and(|directory| !directory.to_string_lossy().contains("netns-"));
    let signs = Signs {
        process: process_here("overlayd"),
        left: cleanup::traces(subnet_file).await?,
        enabled: on_host && Path::new(WANTED).exists(),
        asked_before,
    };
    Ok(signs.meaning())
}

impl Signs {
    fn meaning(self) -> Finding {
        let start = "systemctl start overlayd, and see why it does not run: journalctl -u overlayd";
        if let Some(process) = self.process {
            let text = format!("overlayd runs (process {process}), but has no control socket that answers");
            return Finding::error(DAEMON, text, "its log says why: journalctl -u overlayd");
        }
        if !self.left.is_empty() {
            let text = format!(
                "no overlayd runs here, though one has, which has left {}: pods are cut off, or will be",
                self.left.join(", ")
            );
            let remedy = format!("{start}. If none is to run here any more: overlayctl cleanup");
            return Finding::error(DAEMON, text, remedy);
        }
        if self.enabled && !self.asked_before {
            let text = "no overlayd runs here, though systemd is to start it";
            return Finding::error(DAEMON, text, start);
        }
        Finding::warning(
            DAEMON,
            "no overlayd runs in this network namespace: this is what it would find",
            "start it (systemctl start overlayd); give the flags it is to have here as well, behind '--'",
        )
    }
}

const DAEMON: &str = "daemon";
/// Made by `systemctl enable`.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/overlayd.service";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::check::finding::Level;

    #[test]
    fn a_daemon_that_should_run_and_does_not_is_an_error() {
        let left = || vec!["the route 10.1.0.0/16 dev flannel.1".to_owned()];
        for (process, left, enabled, asked_before, level, part) in [
            (None, vec![], false, false, Level::Warning, "what it would find"),
            (None, vec![], false, true, Level::Warning, "what it would find"),
            (None, vec![], true, true, Level::Warning, "what it would find"),
            (None, vec![], true, false, Level::Error, "systemd is to start it"),
            (None, left(), false, false, Level::Error, "the route 10.1.0.0/16 dev flannel.1"),
            (None, left(), false, true, Level::Error, "pods are cut off"),
            (Some(7), left(), true, false, Level::Error, "process 7"),
            (Some(7), vec![], false, true, Level::Error, "no control socket"),
        ] {
            let finding = Signs { process, left, enabled, asked_before }.meaning();
            assert!(finding.level == level && finding.text.contains(part), "{finding:?}");
        }
    }
}
