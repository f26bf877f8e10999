//! What the daemon may do, however it was started: of all capabilities those that it needs, and nothing that it runs
//! gets more.
//!
//! Started by root it stays root, without root's other capabilities. Started as a user of its own, with capabilities
//! that its service manager gives it (`AmbientCapabilities=`), it hands some on to nft and iptables.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::{fs, io};

use overlay::confine::{Confinement, SystemCalls};
use overlay::priority::{Priority, Wanted};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
};
use tracing::{debug, warn};

use overlay_api::path;
use overlay_flags::{Flags, PriorityFlag, SeccompFlag};
use overlay_support::reserve::IN_RESERVE;

/// Devices, routes, rules and sysctls of the network; raw ICMP; BPF programs, and the memory that goes with them;
/// ports below 1024, if the configuration names one; the workers' priority.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_NICE);

/// What nft and iptables get of them.
const HANDED_ON: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::DAC_READ_SEARCH);

/// Settles, as `flags` ask, what this process may do from now on. To be called before there are threads: each has
/// capabilities and groups of its own. What cannot be had is told, and keeps nothing from running.
pub fn settle(flags: &Flags) {
    // Where the socket is, is found out by looking at process 1, which needs more than is kept.
    let sockets = path::directory();
    if let Some(group) = flags.control_socket_group
        && let Err(error) = join(group)
    {
        debug!(group, %error, "this process does not become a member of the control socket's group");
    }
    if !flags.drop_privileges {
        return;
    }
    if geteuid().is_root() {
        let ours = [Some(Path::new(RUN)), sockets.as_deref().ok()];
        ours.into_iter().flatten().for_each(take_back);
    }
    if let Err(error) = give_up() {
        warn!("the capabilities that are not needed stay: {error}");
    }
}

/// What the workers may do, as `flags` ask; as much as can be had.
#[must_use]
pub fn confinement(flags: &Flags) -> Confinement {
    let others = match flags.seccomp {
        SeccompFlag::On => SystemCalls::Refused,
        SeccompFlag::Kill => SystemCalls::Fatal,
        SeccompFlag::Log => SystemCalls::Logged,
        SeccompFlag::Off => SystemCalls::Allowed,
    };
    Confinement::new(others, flags.drop_privileges).unwrap_or_else(|error| {
        warn!(%error, "the data plane's threads are not confined: does the kernel, or who confines this process, allow seccomp? (see --seccomp)");
        Confinement::default()
    })
}

/// How the workers stand among the other threads of the host, as `flags` ask; as much as can be had.
#[must_use]
pub fn priority(flags: &Flags) -> Priority {
    let priority = Priority::of(match flags.priority {
        PriorityFlag::Realtime => Wanted::RealTime,
        PriorityFlag::Nice => Wanted::Nice,
        PriorityFlag::None => Wanted::None,
    });
    for refused in priority.refused() {
        warn!(
            "a busy host may slow packets down, since the data plane's threads do not get {refused} (see --priority)"
        );
    }
    priority
}

/// Gives up all other capabilities for good, and the way to get any by running a program.
///
/// # Errors
/// What the kernel said.
fn give_up() -> io::Result<()> {
    set_no_new_privs(true)?;
    let kept = KEPT | IN_RESERVE;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel has no more than these; or whoever started us has seen to that, and kept CAP_SETPCAP.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let held = capabilities(None)?;
    let permitted = held.permitted & kept;
    // What root runs is root's.
    let inheritable = if geteuid().is_root() { CapabilitySet::empty() } else { permitted & HANDED_ON };
    set_capabilities(None, CapabilitySets { effective: held.effective & KEPT, permitted, inheritable })?;
    for capability in inheritable.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Makes this process a member of `group`, so that it may give files to it.
fn join(group: u32) -> io::Result<()> {
    let group = Gid::from_raw(group);
    let mut groups = getgroups()?;
    if getegid() != group && !groups.contains(&group) {
        groups.push(group);
        set_thread_groups(&groups)?;
    }
    Ok(())
}

/// Makes a directory of ours, and the files in it, this process's own: an overlayd that ran as another user may have
/// left them, and root can only write there by a capability that is given up.
fn take_back(directory: &Path) {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let Ok(about) = fs::symlink_metadata(directory) else { return };
    if !about.is_dir() || about.uid() == user {
        return;
    }
    // The directory first: then nobody else puts files there.
    let taken =
        lchown(directory, Some(user), Some(group)).and_then(|()| fs::read_dir(directory)).map(|files| {
            for file in files.flatten() {
                // A second name of it may be elsewhere.
                if file.metadata().is_ok_and(|about| about.is_file() && about.nlink() == 1) {
                    let _ = lchown(file.path(), Some(user), Some(group));
                }
            }
        });
    if let Err(error) = taken {
        warn!(directory = %directory.display(), owner = about.uid(), %error, "this directory is another user's: nothing can be written there");
    }
}

/// Where subnet files are, and what belongs to them, unless a flag says otherwise.
const RUN: &str = "/run/flannel";

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::process::Signal;

    use super::*;

    /// In a process of its own for each mode, since one of them ends it.
    #[test]
    fn each_mode_of_the_filter_does_what_it_says() {
        const FLAG: &str = "OVERLAY_TEST_SECCOMP_FLAG";
        if let Some(flag) = std::env::var_os(FLAG) {
            let flags = Flags::parse_from([flag], |_| None).unwrap();
            let filters = || {
                let status = fs::read_to_string("/proc/thread-self/status").ok()?;
                let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
                count.trim().parse::<u32>().ok()
            };
            let (outside, confinement) = (filters().unwrap(), confinement(&flags));
            let worker = move || {
                confinement.enter().unwrap();
                filters()
            };
            let inside = std::thread::spawn(worker).join().unwrap();
            println!("more filters: {:?}", inside.map(|inside| inside - outside));
            return;
        }
        let own = std::env::current_exe().unwrap();
        let run = |flag: &str| {
            let mut child = Command::new(&own);
            child.args([
                "--exact",
                "--nocapture",
                "privileges::tests::each_mode_of_the_filter_does_what_it_says",
            ]);
            let output = child.env(FLAG, flag).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let seen = said.lines().find_map(|line| line.split_once("more filters: "));
            (seen.map(|(_, filters)| filters.to_owned()), output.status.signal())
        };
        let goes_on = |seen: &str| (Some(seen.to_owned()), None);
        assert_eq!(run("--seccomp=off"), goes_on("Some(0)"));
        assert_eq!(run("--seccomp=log"), goes_on("Some(1)"));
        for refusing in ["--seccomp=on", "--v=0"] {
            assert_eq!(run(refusing), goes_on("None"), "{refusing}");
        }
        assert_eq!(run("--seccomp=kill"), (None, Some(Signal::SYS.as_raw())));
    }

    #[test]
    fn a_directory_is_taken_back_with_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("flannel");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("subnet.env"), "").unwrap();
        fs::write(directory.path().join("elsewhere"), "").unwrap();
        fs::hard_link(directory.path().join("elsewhere"), own.join("linked")).unwrap();
        for path in [own.clone(), own.join("subnet.env"), own.join("linked")] {
            lchown(path, Some(65_534), Some(65_534)).expect("give it away (this test needs root)");
        }
        take_back(&own);
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        assert_eq!((owner(&own), owner(&own.join("subnet.env"))), (0, 0));
        assert_eq!(owner(&own.join("linked")), 65_534, "a file with another name stays its owner's");
        take_back(&directory.path().join("missing"));
    }
}
