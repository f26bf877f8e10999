//! Where a daemon's control socket is.
//!
//! Several daemons live side by side: each has its device's name, and those in a network namespace
//! other than the host's have a directory of their own, since namespaces can share `/run`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, io};

use socket2::{Domain, SockAddr, Socket, Type};

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

/// Whether somebody serves the control socket at `path`: a daemon that was killed leaves it behind. One who is too busy,
/// or stopped, does.
#[must_use]
pub fn is_alive(path: &Path) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Where many wait already, it is not waited for.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    !connect().is_err_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
}

/// Removes the control sockets that daemons have left behind when they were killed, in all network namespaces, and the
/// directories that are empty then.
pub fn remove_dead() {
    remove_dead_in(Path::new(DIRECTORY));
}

fn remove_dead_in(all: &Path) {
    let subdirectories = entries(all).into_iter().filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("netns-"))
    });
    for directory in subdirectories.chain([all.to_owned()]) {
        // What is removed from it changes its time.
        let was_old = is_old(&directory);
        for socket in entries(&directory) {
            let is_socket = socket.extension().is_some_and(|extension| extension == "sock");
            if is_socket && is_old(&socket) && !is_alive(&socket) {
                // What cannot be removed is another user's.
                let _ = fs::remove_file(&socket);
            }
        }
        if directory != all && was_old {
            let _ = fs::remove_dir(&directory);
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Whether it was there before: one that has just been made is served in a moment.
#[expect(clippy::disallowed_methods, reason = "files have no other time")]
fn is_old(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|about| about.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > NEW))
}

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
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    use super::*;

    #[test]
    fn what_was_left_behind_goes_and_what_is_served_or_new_stays() {
        let all = tempfile::tempdir().unwrap();
        let path = |name: &str| all.path().join(name);
        for directory in ["netns-1", "netns-2", "netns-3", "netns-4", "other"] {
            fs::create_dir(path(directory)).unwrap();
        }
        let dead = |name: &str| drop(UnixListener::bind(path(name)).unwrap());
        let gone = ["left.sock", "netns-1/flannel.1.sock", "netns-2/flannel0.sock"];
        gone.into_iter().for_each(dead);
        ["netns-3/new.sock", "other/left.sock"].into_iter().for_each(dead);
        let served = ["flannel.1.sock", "netns-2/flannel.1.sock"];
        let _serving = served.map(|name| UnixListener::bind(path(name)).unwrap());
        let old = ["netns-1", "netns-2", "netns-3", "netns-4", "other", "other/left.sock"];
        for name in gone.iter().chain(&served).chain(&old) {
            made_long_ago(&path(name));
        }

        remove_dead_in(all.path());
        for name in gone.iter().chain(&["netns-1", "netns-4"]) {
            assert!(!path(name).exists(), "{name} is left");
        }
        for name in served.iter().chain(&["netns-3/new.sock", "other/left.sock"]) {
            assert!(path(name).exists(), "{name} is gone");
        }
        remove_dead_in(&path("none"));
    }

    fn made_long_ago(path: &Path) {
        // In 1970.
        let then = Timespec { tv_sec: 3600, tv_nsec: 0 };
        let times = Timestamps { last_access: then, last_modification: then };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    #[test]
    fn one_who_does_not_answer_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel.1.sock");
        assert!(!is_alive(&path));
        let listener = UnixListener::bind(&path).unwrap();
        // More than may wait there.
        rustix::net::listen(&listener, 1).unwrap();
        for _ in 0..5 {
            assert!(is_alive(&path));
        }
        drop(listener);
        assert!(!is_alive(&path));
    }

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
