//! All that a check has found.

use std::fmt::Write as _;

use serde::Serialize;

use super::finding::{Finding, Level};

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

#[cfg(test)]
mod tests {
    use super::*;

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
