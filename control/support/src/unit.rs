//! What overlayd's unit keeps from it (`systemd.exec(5)`): an error about a file there says which setting it is, and
//! how to change that.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What to add to `error` about the file at `path`; empty if the unit has nothing to do with it.
#[must_use]
pub fn hint(path: &Path, error: &io::Error) -> String {
    let service = std::env::var_os("INVOCATION_ID").is_some();
    hint_for(path, error, service, |home| within(PATIENCE, home, is_empty).unwrap_or(false))
}

fn is_empty(home: &Path) -> bool {
    fs::read_dir(home).map_or(true, |mut entries| entries.next().is_none())
}

/// What `look` finds at `path`, if it does in time: homes may be on a server that does not answer.
fn within<T: Send + 'static>(
    patience: Duration,
    path: &Path,
    look: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    let ((found, finding), path) = (mpsc::channel(), path.to_owned());
    // Who no longer waits for it need not have it.
    thread::Builder::new().name("homes".to_owned()).spawn(move || drop(found.send(look(&path)))).ok()?;
    finding.recv_timeout(patience).ok()
}

/// A directory that is there is looked into at once.
const PATIENCE: Duration = Duration::from_millis(200);

fn hint_for(path: &Path, error: &io::Error, service: bool, hidden: impl Fn(&Path) -> bool) -> String {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    if !service {
        return String::new();
    }
    let home = HOMES.iter().map(Path::new).find(|home| path.starts_with(home) && hidden(home));
    match (error.kind(), home) {
        (NotFound | PermissionDenied | ReadOnlyFilesystem, Some(home)) => format!(
            ": overlayd's unit sees nothing below {} (ProtectHome=yes). Put the file below /etc, or, to have it read there, {EDIT} ProtectHome=read-only",
            home.display()
        ),
        (ReadOnlyFilesystem, None) => {
            let directory = path.parent().unwrap_or(path);
            format!(
                ": to overlayd's unit the file system is read-only but for its own directories (ProtectSystem=strict). Make the directory, give it to the user overlayd, and {EDIT} ReadWritePaths={}",
                directory.display()
            )
        }
        _ => String::new(),
    }
}

/// What `ProtectHome=` covers.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
const EDIT: &str = "write in a drop-in (systemctl edit overlayd), below [Service]:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_that_do_not_answer_are_not_waited_for() {
        let (goes_on, held) = mpsc::channel::<()>();
        let hangs = move |_: &Path| held.recv().is_ok();
        assert_eq!(within(Duration::from_millis(1), Path::new("/home"), hangs), None);
        drop(goes_on);
        let patience = Duration::from_secs(60);
        assert_eq!(within(patience, tempfile::tempdir().unwrap().path(), is_empty), Some(true));
        assert_eq!(within(patience, Path::new("/proc"), is_empty), Some(false));
    }

    #[test]
    fn the_units_setting_is_named_where_it_is_the_cause() {
        let (none, denied, read_only) = (2, 13, 30);
        for (path, code, service, wanted) in [
            ("/home/me/ca.pem", none, true, "below /home (ProtectHome=yes)"),
            ("/root/ca.pem", denied, true, "ProtectHome=read-only"),
            ("/run/user/0/ca.pem", none, true, "below /run/user"),
            ("/root/flannel/subnet.env", read_only, true, "ProtectHome="),
            ("/opt/f/subnet.env", read_only, true, "ReadWritePaths=/opt/f"),
            // Not the unit's doing.
            ("/opt/f/ca.pem", none, true, ""),
            ("/opt/f/ca.pem", denied, true, ""),
            ("/homes/ca.pem", none, true, ""),
            ("/home/me/ca.pem", 28, true, ""),
            ("/home/me/ca.pem", none, false, ""),
            ("/opt/f/subnet.env", read_only, false, ""),
        ] {
            let error = io::Error::from_raw_os_error(code);
            let said = hint_for(Path::new(path), &error, service, |_| true);
            assert!(said.contains(wanted) && said.is_empty() == wanted.is_empty(), "{path}: {said}");
            // What is below /home may be there for it to see, by a drop-in.
            let visible = hint_for(Path::new(path), &error, service, |_| false);
            assert_eq!(
                visible.contains("ReadWritePaths="),
                service && code == read_only,
                "{path}: {visible}"
            );
        }
    }
}
