//! The built daemon, started on a host, and what its operator's tool says about it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::{Namespace, output};
use crate::process::{Process, SOON, await_until};
use crate::service_manager::ServiceManager;
use crate::site::{Host, SubnetEnv};
use crate::store::Store;

/// A running `overlayd`.
#[derive(Debug)]
pub struct Overlayd<'h> {
    process: Process,
    ns: &'h Namespace,
    subnet_file: PathBuf,
    manager: ServiceManager,
    /// Kept to be removed.
    _sockets: Option<SocketDirectory>,
}

/// A daemon about to be started.
#[derive(Debug)]
pub struct Launch<'h> {
    host: &'h Host,
    name: String,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    manager: Option<ServiceManager>,
    subnet_file: Option<PathBuf>,
    descriptors: Option<usize>,
    user: u32,
    capabilities: String,
}

/// What `overlayctl status --json` printed.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Host {
    /// The daemon of this host, with the flags that name its store, its interface and its subnet file.
    pub fn overlayd(&self, store: &Store) -> Launch<'_> {
        let launch = self.bare_overlayd().flag("--iface=eth0");
        store.flags().iter().fold(launch, |launch, flag| launch.flag(flag))
    }

    /// The daemon with no flag but the one that names its subnet file.
    pub fn bare_overlayd(&self) -> Launch<'_> {
        Launch {
            host: self,
            name: "overlayd".into(),
            flags: Vec::new(),
            environment: Vec::new(),
            manager: None,
            subnet_file: None,
            descriptors: None,
            user: 0,
            capabilities: CAPABILITIES.into(),
        }
    }
}

impl<'h> Launch<'h> {
    /// Adds a flag (or a flag's value).
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Adds a variable to the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Gives the daemon a name of its own, for its files, when the host has several.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Has it write its subnet file somewhere else.
    pub fn subnet_file_at(mut self, path: PathBuf) -> Self {
        self.subnet_file = Some(path);
        self
    }

    /// Lets it have no more than so many descriptors.
    pub fn descriptors(mut self, most: usize) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// Has it run as another user than root, with the capabilities and the directories that its unit gives it, and as
    /// little locked memory as systemd gives to anybody.
    pub fn as_user(mut self, user: u32) -> Self {
        self.user = user;
        self
    }

    /// Gives it a capability besides those of its unit, as in `ipc_lock`, if it is not root's.
    pub fn capability(mut self, name: &str) -> Self {
        self.capabilities += &format!(",+{name}");
        self
    }

    /// Has it started by the service manager of an earlier process, which may hand something over.
    pub fn by(mut self, manager: ServiceManager) -> Self {
        self.manager = Some(manager);
        self
    }

    /// Starts it and waits until it says that it is ready.
    #[track_caller]
    pub fn start(self) -> Overlayd<'h> {
        let mut daemon = self.spawn();
        daemon.wait_ready(SOON);
        daemon
    }

    /// Starts it without waiting.
    #[track_caller]
    pub fn spawn(self) -> Overlayd<'h> {
        let (ns, directory) = (&self.host.ns, self.host.directory());
        let socket = directory.join(format!("{}.notify", self.name));
        let subnet_file = self.subnet_file();
        let manager = self.manager.unwrap_or_else(|| ServiceManager::new(&socket));
        give(directory, self.user);
        let sockets = (self.user != 0).then(|| SocketDirectory::of(ns, self.user));
        let overlayd = program("overlayd");
        let (mut command, inherited) = match (self.user, self.descriptors) {
            (0, None) => manager.command(ns, &overlayd),
            (0, Some(most)) => {
                let (mut command, inherited) = manager.command(ns, Path::new("prlimit"));
                command.arg(format!("--nofile={most}:{most}")).arg(&overlayd);
                (command, inherited)
            }
            (user, _) => as_user(&manager, self.host, user, &self.capabilities),
        };
        command.arg(format!("--subnet-file={}", subnet_file.display()));
        command.env(STRICT.0, STRICT.1).args(&self.flags).envs(self.environment);
        let process = Process::spawn(&self.name, command, directory);
        drop(inherited);
        Overlayd { process, ns, subnet_file, manager, _sockets: sockets }
    }

    /// Starts it, expecting that it refuses: exit code 1. Returns what it said.
    #[track_caller]
    pub fn refused(self) -> String {
        let mut process = Process::spawn(&self.name, self.command(), self.host.directory());
        let status = process.wait(SOON);
        assert_eq!(status.code(), Some(1), "{status}:\n{}", process.log());
        process.log()
    }

    fn subnet_file(&self) -> PathBuf {
        let usual = || self.host.directory().join(format!("{}.env", self.name));
        self.subnet_file.clone().unwrap_or_else(usual)
    }

    #[track_caller]
    fn command(&self) -> Command {
        let mut command = self.host.ns.command(&program("overlayd").display().to_string());
        command.arg(format!("--subnet-file={}", self.subnet_file().display()));
        command.args(&self.flags).envs(self.environment.iter().cloned());
        command
    }
}

impl Overlayd<'_> {
    /// Waits for `READY=1`.
    #[track_caller]
    pub fn wait_ready(&mut self, limit: Duration) {
        let start = Instant::now();
        loop {
            let said = self.manager.next(Duration::from_millis(50)).unwrap_or_default();
            if said.iter().any(|line| line == "READY=1") {
                return;
            }
            if let Some(status) = self.process.exited() {
                panic!("overlayd ended before it was ready: {status}");
            }
            assert!(start.elapsed() < limit, "overlayd was not ready after {limit:?}");
        }
    }

    /// The subnet file it wrote.
    #[track_caller]
    pub fn env(&self) -> SubnetEnv {
        SubnetEnv::read(&self.subnet_file)
    }

    /// Where its subnet file is.
    pub fn subnet_file(&self) -> &std::path::Path {
        &self.subnet_file
    }

    /// What `overlayctl status --json` says about it; the only daemon of its namespace.
    #[track_caller]
    pub fn status(&self) -> Status {
        Status::of(self.ns, &[])
    }

    /// What its control socket answers to a POST of `resource`, without a body; it must be the only daemon of its namespace.
    #[track_caller]
    pub fn post(&self, resource: &str) -> Value {
        let directory = format!("/run/overlayd/netns-{}", self.ns.inode());
        let mut sockets = fs::read_dir(directory).expect("the sockets' directory").filter_map(Result::ok);
        let socket = sockets.next().expect("a control socket").path();
        let mut stream = UnixStream::connect(&socket).expect("the daemon to listen");
        write!(stream, "POST {resource} HTTP/1.0\r\n\r\n").expect("a question");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_else(|error| panic!("POST {resource}: {error}\n{answer}"))
    }

    /// Waits until it has exactly these peers' subnets in its table, in any order.
    #[track_caller]
    pub fn await_peers(&self, subnets: &[&str]) -> Duration {
        let mut wanted = subnets.to_vec();
        wanted.sort_unstable();
        await_until(SOON, &format!("the peers {wanted:?}"), || self.status().peers() == wanted)
    }

    /// Ends it as systemd does (SIGTERM); it must exit with code 0.
    #[track_caller]
    pub fn stop(self) {
        self.stop_for_restart();
    }

    /// Its service manager, to be asked or listened to.
    pub fn manager(&self) -> &ServiceManager {
        &self.manager
    }

    /// Waits until its service manager keeps what a daemon with this many queues leaves to the next process: each queue
    /// of the device and its socket, and of the TAP, where there is one, as many queues and the place of its program.
    #[track_caller]
    pub fn await_stored(&self, queues: usize) {
        // The TAP is there, too, while the host's rules keep super-packets from it.
        let status = self.status();
        let has_tap =
            status.offloads().contains(&"tunnel-gso") || !status.0["offloads_held"]["tunnel-gso"].is_null();
        let all = if has_tap { 3 * queues + 1 } else { 2 * queues };
        await_until(SOON, &format!("{all} descriptors to be stored"), || self.manager.stored() == all);
    }

    /// Ends it as [`stop`](Self::stop) does; what the service manager keeps is for the next process.
    #[track_caller]
    pub fn stop_for_restart(mut self) -> ServiceManager {
        let status = self.process.terminate(SOON);
        assert_eq!(status.code(), Some(0), "overlayd after SIGTERM: {status}\n{}", self.log());
        self.manager.next_process()
    }

    /// Ends it as a crash would; what the service manager keeps is for the next process.
    pub fn crash(mut self) -> ServiceManager {
        self.process.kill();
        self.manager.next_process()
    }

    /// Its process, to be signalled or watched.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// A command that starts the daemon as another user than root, where the device that makes others is open to it, as
/// udev has it.
fn as_user(manager: &ServiceManager, host: &Host, user: u32, capabilities: &str) -> (Command, Vec<OwnedFd>) {
    let (mut command, inherited) = manager.command(&host.ns, Path::new("sh"));
    // In the mounts that `ip netns exec` makes, which are nobody else's.
    let prepare = "if [ \"$(stat -c %a /dev/net/tun)\" != 666 ]; then\n\
         [ -e \"$0/tun\" ] || mknod -m 666 \"$0/tun\" c 10 200\n\
         mount --bind \"$0/tun\" /dev/net/tun\nfi\nulimit -l 8192\nexec \"$@\"";
    command.arg("-c").arg(prepare).arg(host.directory());
    command.args(setpriv(user, user, capabilities)).arg(program("overlayd"));
    (command, inherited)
}

/// The words that have a program run as this user and group with these capabilities, as in `+net_admin`.
pub fn setpriv(user: u32, group: u32, capabilities: &str) -> Vec<String> {
    vec![
        "setpriv".into(),
        format!("--reuid={user}"),
        format!("--regid={group}"),
        "--clear-groups".into(),
        "--no-new-privs".into(),
        format!("--inh-caps=-all,{capabilities}"),
        format!("--ambient-caps=-all,{capabilities}"),
        format!("--bounding-set=-all,{capabilities}"),
    ]
}

/// Makes a directory a user's, with the files in it, and one that all may pass through.
fn give(directory: &Path, user: u32) {
    if user == 0 && fs::metadata(directory).expect("the host's directory").uid() == user {
        return;
    }
    let site = directory.parent().expect("a site's directory");
    fs::set_permissions(site, Permissions::from_mode(0o711)).expect("open the site's directory");
    let files = fs::read_dir(directory).expect("list the host's directory");
    let files = files.map(|file| file.expect("a file").path());
    for path in files.chain([directory.to_path_buf()]) {
        lchown(path, Some(user), Some(user)).expect("give a file away");
    }
}

/// Where a daemon that is not root's has its control socket: below a directory that is root's.
#[derive(Debug)]
struct SocketDirectory(PathBuf);

impl SocketDirectory {
    fn of(ns: &Namespace, user: u32) -> Self {
        let namespace = fs::metadata(ns.path()).expect("the namespace").ino();
        let path = PathBuf::from(format!("/run/overlayd/netns-{namespace}"));
        fs::create_dir_all(&path).expect("make the sockets' directory");
        lchown(&path, Some(user), Some(user)).expect("give it away");
        Self(path)
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        // The daemon has removed what was in it, and the next one may be there already.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Those of the unit.
const CAPABILITIES: &str = "+net_admin,+net_raw,+bpf,+dac_read_search,+sys_nice";
/// A system call that no worker was meant to make fails a test, instead of failing by itself.
const STRICT: (&str, &str) = ("FLANNELD_SECCOMP", "kill");

/// Waits until each of these daemons has all the others as its peers, and nobody else.
#[track_caller]
pub fn await_mesh(daemons: &[&Overlayd<'_>]) {
    let subnets: Vec<_> = daemons.iter().map(|daemon| daemon.env().base_with_length()).collect();
    for (daemon, own) in daemons.iter().zip(&subnets) {
        daemon.await_peers(
            &subnets.iter().filter(|subnet| *subnet != own).map(String::as_str).collect::<Vec<_>>(),
        );
    }
}

impl Status {
    /// What the tool, run in a namespace with these arguments besides `status --json`, prints. While the data plane is
    /// being rebuilt there is no status, and it is asked again.
    #[track_caller]
    pub fn of(ns: &Namespace, arguments: &[&str]) -> Self {
        let ask = || {
            let mut command = ns.command(&program("overlayctl").display().to_string());
            output(command.args(["status", "--json"]).args(arguments))
        };
        let mut answer = ask();
        await_until(SOON, "the data plane to be rebuilt", || {
            let rebuilt = !String::from_utf8_lossy(&answer.stderr).contains("is being rebuilt");
            if !rebuilt {
                answer = ask();
            }
            rebuilt
        });
        let text = String::from_utf8_lossy(&answer.stdout);
        assert!(answer.status.success(), "overlayctl: {}{text}", String::from_utf8_lossy(&answer.stderr));
        Self(serde_json::from_str(&text).unwrap_or_else(|error| panic!("overlayctl's JSON: {error}\n{text}")))
    }

    /// The subnets of the peers, sorted.
    pub fn peers(&self) -> Vec<&str> {
        let peers = self.0["peers"].as_array().expect("a list of peers");
        let mut subnets: Vec<_> = peers.iter().filter_map(|peer| peer["subnet"].as_str()).collect();
        subnets.sort_unstable();
        subnets
    }

    /// The offloads that are on, sorted.
    pub fn offloads(&self) -> Vec<&str> {
        let offloads = self.0["offloads"].as_object().expect("offloads by name");
        // The map is sorted by name.
        offloads.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.as_str()).collect()
    }

    /// How many packets were dropped in a direction (`egress`, `ingress`) for a reason. The reason
    /// must be among those that the daemon reports.
    #[track_caller]
    pub fn drops(&self, direction: &str, reason: &str) -> u64 {
        let count = self.0["drops"][direction][reason].as_u64();
        count.unwrap_or_else(|| panic!("no drop reason {reason} in {}", self.0["drops"]))
    }

    /// How many packets were dropped in a direction for any reason.
    #[track_caller]
    pub fn all_drops(&self, direction: &str) -> u64 {
        let reasons = self.0["drops"][direction].as_object().expect("drops by reason");
        reasons.values().filter_map(Value::as_u64).sum()
    }
}

/// A built program: beside this one, or in the directory above (where a test's own executable is in `deps`).
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built beside {}: run `cargo build` first", own.display()))
}
