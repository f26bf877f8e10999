//! What overlayd's unit keeps from it (`systemd.exec(5)`): an error about a file there says which setting it is, and
//! how to change that.

use std::fs;
use std::io;
use std::path::Path;

/// What to add to `error` about the file at `path`; empty if the unit has nothing to do with it.
#[must_use]
pub fn hint(path: &Path, error: &io::Error) -> String {
    let service = std::env::var_os("INVOCATION_ID").is_some();
    hint_for(path, error, service, |home| {
        fs::read_dir(home).map_or(true, |mut entries| entries.next().is_none())
    })
}

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
