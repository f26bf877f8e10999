//! Network namespaces: made with a name that says who owns them, left without a trace.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, with everything that runs in it. Dropping it ends those processes and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with loopback up and neither forwarding nor reverse-path filter, whatever
    /// this machine's own settings are. `label` is for people; the name is unique.
    #[track_caller]
    pub fn new(label: &str) -> Self {
        LEFTOVERS.call_once(remove_leftovers);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("{PREFIX}{}-{number}-{label}", std::process::id()) };
        succeed(Command::new("ip").args(["netns", "add", &namespace.name]));
        namespace.ip("link set lo up");
        for key in ["ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"] {
            namespace.sysctl(&format!("net/ipv4/{key}"), "0");
        }
        namespace
    }

    /// Gives a name to a namespace that another program has made, `file` being its `/proc/PID/ns/net`.
    /// Like one of ours, it ends with this value.
    #[track_caller]
    pub fn adopt(label: &str, file: &std::path::Path) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("{PREFIX}{}-{number}-{label}", std::process::id()) };
        let path = namespace.path();
        File::create(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        succeed(Command::new("mount").arg("--bind").arg(file).arg(&path));
        namespace
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inode that identifies it, as in `/proc/self/ns/net`.
    pub fn inode(&self) -> u64 {
        fs::metadata(self.path()).map(|meta| meta.ino()).unwrap_or(0)
    }

    /// The file that stands for it, for `setns` and `nsenter`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command to be run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command line (cut at white space) inside and waits for it.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line"));
        output(command.args(words))
    }

    /// As [`run`](Self::run), for a command that must succeed. Returns what it printed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line"));
        succeed(command.args(words))
    }

    /// Runs lines of `ip` commands (without the word `ip`) inside, all of which must succeed.
    #[track_caller]
    pub fn ip(&self, batch: &str) {
        let mut command = Command::new("ip");
        feed(command.args(["-n", &self.name, "-batch", "-"]), batch);
    }

    /// Feeds a text to a program that runs inside and must succeed, as in `iptables-restore`.
    #[track_caller]
    pub fn feed(&self, line: &str, text: &str) {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line"));
        feed(command.args(words), text);
    }

    /// A counter of its kernel, as `nstat` names it.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let text = self.ok(&format!("nstat -asz {name}"));
        let count = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Writes a setting below `/proc/sys`; the key's parts are joined by slashes.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let file = PathBuf::from("/proc/sys").join(key);
        let written = self.within(|| fs::write(&file, value));
        written.unwrap_or_else(|error| panic!("{}: write {value} to {}: {error}", self.name, file.display()));
    }

    /// Runs a function on a thread of its own that has entered the namespace. Sockets made there
    /// stay in the namespace wherever they are used.
    #[track_caller]
    pub fn within<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&path);
                    function()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Moves this thread into the namespace that a file stands for.
#[track_caller]
pub fn enter(path: &std::path::Path) {
    let file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .unwrap_or_else(|error| panic!("enter {}: {error}", path.display()));
}

/// Removes all that this process has made so far: for a program that ends without unwinding.
pub fn remove_own() {
    remove_owned(|owner| owner == std::process::id());
}

/// The beginning of the names of temporary directories that belong to this process.
pub fn directory_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Runs a command and returns its output.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Runs a command that must succeed and returns what it printed.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
pub(crate) fn feed(command: &mut Command, text: &str) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    child.stdin.take().expect("a piped stdin").write_all(text.as_bytes()).expect("write to the command");
    let output = child.wait_with_output().expect("wait for the command");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Removes what runs that were killed left behind: all whose owner is no longer alive.
fn remove_leftovers() {
    remove_owned(|owner| !PathBuf::from(format!("/proc/{owner}")).exists());
}

fn remove_owned(wanted: impl Fn(u32) -> bool) {
    let owner = |name: &str| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok();
    for directory in [PathBuf::from("/run/netns"), std::env::temp_dir()] {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !owner(&name).is_some_and(&wanted) {
                continue;
            }
            if directory.starts_with("/run/netns") {
                remove(&name);
            } else if let Err(error) = fs::remove_dir_all(entry.path()) {
                eprintln!("remove {}: {error}", entry.path().display());
            }
        }
    }
}

/// Ends all processes of a namespace, then removes it and the control sockets of its daemons.
/// Goes on to the end whatever fails.
fn remove(name: &str) {
    let path = PathBuf::from("/run/netns").join(name);
    let inode = fs::metadata(&path).map(|meta| meta.ino());
    // A process may start another while we look, so look until nothing new turns up.
    let mut ended = HashSet::new();
    loop {
        let listed = Command::new("ip").args(["netns", "pids", name]).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let own = std::process::id().cast_signed();
        let before = ended.len();
        for pid in listed.unwrap_or_default().lines().filter_map(|line| line.trim().parse::<i32>().ok()) {
            if pid != own && ended.insert(pid) {
                // It may have ended meanwhile: that is what was wanted.
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
        if ended.len() == before {
            break;
        }
    }
    if let Ok(inode) = inode {
        let _ = fs::remove_dir_all(format!("/run/overlayd/netns-{inode}"));
    }
    match Command::new("ip").args(["netns", "del", name]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("remove {name}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("remove {name}: {error}"),
    }
}

const PREFIX: &str = "ovl-";
static NEXT: AtomicU32 = AtomicU32::new(1);
static LEFTOVERS: Once = Once::new();
