//! Where a daemon's control socket is.
//!
//! Several daemons live side by side: each has its device's name, and those in a network namespace
//! other than the host's have a directory of their own, since namespaces can share `/run`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, io};

use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where all control sockets are.
const DIRECTORY: &str = "/run/overlayd";

/// The inode of the network namespace that the machine boots with, since Linux 6.18
/// (`NET_NS_INIT_INO`, `linux/nsfs.h`); before, the number was given out at boot.
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFF9;

/// The directory of the control sockets of the network namespace that this process is in.
///
/// # Errors
/// `/proc` is not there.
pub fn directory() -> io::Result<PathBuf> {
    // Found out once: a process keeps its network namespace, but not what it may look at.
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    match FOUND.get() {
        Some(found) => Ok(found.clone()),
        None => find_directory().inspect(|found| {
            let _ = FOUND.set(found.clone());
        }),
    }
}

fn find_directory() -> io::Result<PathBuf> {
    let inode = |path: &str| fs::metadata(path).map(|namespace| namespace.ino());
    let own = inode("/proc/self/ns/net")?;
    let elsewhere = Path::new(DIRECTORY).join(format!("netns-{own}"));
    let is_hosts = match inode("/proc/1/ns/net") {
        _ if own == INITIAL_NAMESPACE => true,
        // A daemon is known there: one that was confined, as by its unit.
        _ if elsewhere.exists() => false,
        Ok(hosts) => own == hosts,
        // A user may not look at process 1, and is on the host. If root may not either, it is confined in
        // some way: a directory of its own is always right then, and where everybody looks first.
        Err(_) => fs::metadata("/proc/self")?.uid() != 0,
    };
    Ok(if is_hosts { DIRECTORY.into() } else { elsewhere })
}

/// The control socket of the daemon of `device`, in this network namespace.
///
/// # Errors
/// As [`directory`].
pub fn socket(device: &str) -> io::Result<PathBuf> {
    Ok(directory()?.join(format!("{device}.sock")))
}

/// What a control socket is named after while its daemon does not know its device.
#[must_use]
pub fn waiting() -> String {
    format!("waiting-{}", std::process::id())
}

/// Whether somebody serves the control socket at `path`. One who is too busy, or stopped, does.
pub async fn is_alive(path: &Path) -> bool {
    let connected = timeout(PATIENCE, UnixStream::connect(path)).await;
    connected.is_err() || connected.is_ok_and(|connected| !connected.is_err_and(|error| is_dead(&error)))
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Removes the control sockets that daemons have left behind when they were killed, in all network namespaces, and the
/// directories that are empty then.
pub async fn remove_dead() {
    let subdirectories = entries(Path::new(DIRECTORY)).into_iter().filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("netns-"))
    });
    for directory in subdirectories.chain([DIRECTORY.into()]) {
        for socket in entries(&directory) {
            let is_socket = socket.extension().is_some_and(|extension| extension == "sock");
            if is_socket && is_old(&socket) && !is_alive(&socket).await {
                // What cannot be removed is another user's.
                let _ = fs::remove_file(&socket);
            }
        }
        if directory != Path::new(DIRECTORY) && is_old(&directory) {
            let _ = fs::remove_dir(&directory);
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Whether it was there before: one that has just been made is served in a moment.
fn is_old(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|about| about.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > NEW))
}

/// For a connection to be accepted by the kernel.
const PATIENCE: Duration = Duration::from_secs(1);
const NEW: Duration = Duration::from_secs(10);

/// Devices that have a control socket in `directory`, sorted.
#[must_use]
pub fn devices(directory: &Path) -> Vec<String> {
    let mut devices: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".sock").map(str::to_owned))
        .collect();
    devices.sort();
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_the_sockets_names() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["flannel.1.sock", "flannel0.sock", "notes.txt"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        fs::create_dir(directory.path().join("netns-4026531840")).unwrap();
        assert_eq!(devices(directory.path()), ["flannel.1", "flannel0"]);
        assert!(devices(&directory.path().join("none")).is_empty());
    }
}
