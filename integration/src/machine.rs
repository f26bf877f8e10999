//! A host booted whole: systemd and docker in a container of its own, on the network of a [`Host`].

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::netns::{Namespace, output, succeed};
use crate::process::{Process, await_until};
use crate::site::{Host, Pod, SubnetEnv};

/// A booted host.
#[derive(Debug)]
pub struct Machine<'h> {
    host: &'h Host,
    root: PathBuf,
    boot: Process,
    /// Process 1 of the container, as seen from here.
    init: u32,
}

impl<'h> Machine<'h> {
    /// Boots a copy of `base` (see `root.sh`) on the network of `host`, after `prepare` has changed what
    /// there is to change in the copy.
    #[track_caller]
    pub fn boot(host: &'h Host, base: &Path, prepare: impl FnOnce(&Path)) -> Self {
        let root = host.directory().join("root");
        succeed(Command::new("cp").args(["-a", "--reflink=auto"]).arg(base).arg(&root));
        fs::write(root.join("etc/hostname"), format!("{}\n", host.name)).expect("name the machine");
        prepare(&root);
        let (boot, init) = start(host, &root);
        Self { host, root, boot, init }
    }

    /// Shuts it down in order, or cuts its power, and boots it again. In between, `meanwhile` may change its root.
    #[track_caller]
    pub fn reboot(&mut self, how: Off, meanwhile: impl FnOnce(&Path)) {
        match how {
            Off::InOrder => {
                // The connection to the service manager may end before the answer is there.
                let _ = self.run("systemctl poweroff");
                self.boot.wait(PATIENCE);
            }
            Off::AtOnce => {
                // All of the container goes with its process 1.
                let init = Pid::from_raw(self.init.cast_signed()).expect("a process");
                kill_process(init, Signal::KILL).expect("kill process 1");
                self.boot.kill();
            }
        }
        // One that nobody has waited for yet has no program any more.
        let program = PathBuf::from(format!("/proc/{}/exe", self.init));
        await_until(PATIENCE, "its process 1 to be gone", || fs::read_link(&program).is_err());
        // Its network is not the container's, and so does not end with it as a machine's own would.
        let ns = &self.host.ns;
        for line in ["ip link del docker0", "ip link del flannel.1", "nft flush ruleset"] {
            // What is not there need not be removed.
            let _ = ns.run(line);
        }
        meanwhile(&self.root);
        (self.boot, self.init) = start(self.host, &self.root);
    }

    /// The network that it is on.
    pub fn host(&self) -> &'h Host {
        self.host
    }

    /// Process 1, as seen from here.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A file of it, as it sees it, mounted ones too.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Writes a file of it, with the directories above.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        let path = self.file(path);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("make a directory");
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// The subnet file that a daemon on it wrote.
    #[track_caller]
    pub fn env(&self) -> SubnetEnv {
        SubnetEnv::read(&self.file("/run/flannel/subnet.env"))
    }

    /// Runs a line of shell inside.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        output(&mut self.command(line))
    }

    /// The same, for one that must succeed. Returns what it printed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        succeed(&mut self.command(line)).trim().to_owned()
    }

    /// Starts a program inside that goes on beside what follows.
    #[track_caller]
    pub fn spawn(&self, name: &str, line: &str) -> Process {
        Process::spawn(name, self.command(&format!("exec {line}")), self.host.directory())
    }

    /// The state of a unit, as in `active`.
    pub fn state(&self, unit: &str) -> String {
        String::from_utf8_lossy(&self.run(&format!("systemctl is-active {unit}")).stdout).trim().to_owned()
    }

    /// Waits until a unit is active.
    #[track_caller]
    pub fn await_active(&self, unit: &str) {
        let what = format!("{unit} to be active on {}", self.host.name);
        let mut state = String::new();
        let start = std::time::Instant::now();
        while state != "active" {
            state = self.state(unit);
            if state == "failed" || start.elapsed() > PATIENCE {
                panic!("{what}: it is {state}\n{}", self.journal(unit));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A property of a unit.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.ok(&format!("systemctl show --value -p {name} {unit}"))
    }

    /// What a unit has logged.
    pub fn journal(&self, unit: &str) -> String {
        let output = self.run(&format!(
            "systemctl status --no-pager {unit}; journalctl --no-pager -o short-monotonic -n 60 -u {unit}"
        ));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a container from the image `base`, which comes back when docker does.
    #[track_caller]
    pub fn container(&self, name: &str) -> Pod {
        self.ok(&format!("docker run -d --restart=always --name {name} base /bin/busybox sleep 100000"));
        self.pod(name)
    }

    /// A running container. Its network ends with the value.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Pod {
        let format = "{{.State.Pid}} {{.NetworkSettings.IPAddress}}";
        let mut found: Option<(u32, Ipv4Addr)> = None;
        await_until(PATIENCE, &format!("the container {name} to run"), || {
            let listed = self.run(&format!("docker inspect -f '{format}' {name}"));
            let text = String::from_utf8_lossy(&listed.stdout).trim().to_owned();
            found = text.split_once(' ').and_then(|(pid, address)| {
                Some((pid.parse().ok().filter(|pid| *pid > 0)?, address.parse().ok()?))
            });
            found.is_some()
        });
        let (pid, address) = found.expect("awaited");
        let file = format!("/proc/{}/root/proc/{pid}/ns/net", self.init);
        Pod { ns: Namespace::adopt(name, Path::new(&file)), address }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-n", "-p", "--"]);
        command.args(["/bin/sh", "-c", line]);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// How a machine goes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    /// As by `poweroff`.
    InOrder,
    /// As without power.
    AtOnce,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.boot.kill();
    }
}

#[track_caller]
fn start(host: &Host, root: &Path) -> (Process, u32) {
    // A node of its own, since the machine may change whose it is.
    let tun = PathBuf::from(format!("/dev/{}-{}-tun", host.name, std::process::id()));
    let _ = fs::remove_file(&tun);
    succeed(Command::new("mknod").args(["-m", "600"]).arg(&tun).args(["c", "10", "200"]));
    let mut command = Command::new("systemd-nspawn");
    command
        .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--capability=all", "--console=pipe"])
        .args(["--system-call-filter=add_key keyctl bpf", "--kill-signal=SIGKILL"])
        .arg(format!("--bind={}:/dev/net/tun", tun.display()))
        .arg(format!("--machine={}-{}", host.name, std::process::id()))
        .arg(format!("--network-namespace-path={}", host.ns.path().display()))
        .arg(format!("--directory={}", root.display()))
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
    let mut boot = Process::spawn("boot", command, host.directory());
    let children = format!("/proc/{0}/task/{0}/children", boot.id());
    let mut init = None;
    await_until(Duration::from_secs(30), &format!("{} to boot", host.name), || {
        if let Some(status) = boot.exited() {
            panic!("{} does not boot: {status}\n{}", host.name, boot.log());
        }
        let listed = fs::read_to_string(&children).unwrap_or_default();
        init = listed.split_whitespace().next().and_then(|pid| pid.parse().ok());
        // The bus answers only when systemd runs.
        init.is_some_and(|pid: u32| {
            File::open(format!("/proc/{pid}/root/run/systemd/private"))
                .is_err_and(|e| e.raw_os_error() == Some(ENXIO))
        })
    });
    // It is mounted there now.
    fs::remove_file(&tun).expect("remove a device's node");
    (boot, init.expect("found"))
}

/// What opening a socket's file gives: it is there.
const ENXIO: i32 = 6;
/// More than any of it takes on a machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);
