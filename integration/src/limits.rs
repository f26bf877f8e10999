//! Less than a host should have: a disk that is full, memory that is short, descriptors that run out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::netns::succeed;

/// A small disk of its own below a directory; gone when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many KiB at `path`, which is made.
    #[track_caller]
    pub fn mount(path: &Path, kibibytes: u32) -> Self {
        fs::create_dir_all(path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        let size = format!("size={kibibytes}k");
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(path));
        Self(path.to_owned())
    }

    /// Leaves no room on it.
    #[track_caller]
    pub fn fill(&self) {
        // As much as there is: the write that does not fit any more is what ends this.
        let error = fs::write(self.0.join(FILLING), vec![0; 64 << 20]).expect_err("the disk is too large");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    /// Makes room again.
    #[track_caller]
    pub fn free(&self) {
        fs::remove_file(self.0.join(FILLING)).expect("remove what fills the disk");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still uses it keeps it until then.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A control group whose processes may have so much memory and no more; gone when dropped.
#[derive(Debug)]
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// Makes one of so many MiB, in whichever hierarchy this machine has.
    #[track_caller]
    pub fn new(mebibytes: u64) -> Self {
        let name = format!("ovl-{}", std::process::id());
        let (root, file) = if Path::new("/sys/fs/cgroup/memory").is_dir() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            // For the groups below the first: whoever manages them has nothing against it.
            let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
            ("/sys/fs/cgroup", "memory.max")
        };
        let group = Self(Path::new(root).join(name));
        let made = fs::create_dir(&group.0)
            .and_then(|()| fs::write(group.0.join(file), (mebibytes << 20).to_string()));
        made.unwrap_or_else(|error| panic!("limit memory by {}: {error}", group.0.display()));
        group
    }

    /// Puts a process under it, whose memory counts from then on.
    #[track_caller]
    pub fn enter(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("move a process to a control group");
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Its processes may take a moment to be gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("remove {}: its processes live", self.0.display());
    }
}

/// Lets a process have no more than so many descriptors from now on.
#[track_caller]
pub fn limit_descriptors(pid: u32, count: usize) {
    // Only what it may raise again: the hard limit stays, which would take a privilege to raise.
    let (pid, limit) = (format!("--pid={pid}"), format!("--nofile={count}:"));
    succeed(Command::new("prlimit").args([pid, limit]));
}

const FILLING: &str = "filling";
