//! The clock's part of a check.

use super::finding::Finding;

pub(super) fn finding() -> Finding {
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
