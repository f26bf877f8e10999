//! A host booted whole: systemd and docker in a container of its own, on the network of a [`Host`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::netns::{Namespace, output, succeed};
use crate::process::{Process, await_until};
use crate::site::Host;

/// A booted host.
#[derive(Debug)]
pub struct Machine<'h> {
    host: &'h Host,
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
        Self { host, boot, init }
    }

    /// A file of it, as it sees it, mounted ones too.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Runs a line of shell inside.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        output(self.command(line).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
    }

    /// The same, for one that must succeed. Returns what it printed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        succeed(self.command(line).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")).trim().to_owned()
    }

    /// The state of a unit, as in `active`.
    pub fn state(&self, unit: &str) -> String {
        String::from_utf8_lossy(&self.run(&format!("systemctl is-active {unit}")).stdout).trim().to_owned()
    }

    /// Waits until a unit is active.
    #[track_caller]
    pub fn await_active(&self, unit: &str, limit: Duration) {
        let what = format!("{unit} to be active on {}", self.host.name);
        let mut state = String::new();
        let start = std::time::Instant::now();
        while state != "active" {
            state = self.state(unit);
            if state == "failed" || start.elapsed() > limit {
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

    /// Runs a container from the image `base` and returns the network namespace that it has, under a name.
    #[track_caller]
    pub fn container(&self, name: &str) -> Namespace {
        self.ok(&format!("docker run -d --name {name} base /bin/busybox sleep 100000"));
        let pid = self.ok(&format!("docker inspect -f '{{{{.State.Pid}}}}' {name}"));
        let file = format!("/proc/{}/root/proc/{pid}/ns/net", self.init);
        Namespace::adopt(name, Path::new(&file))
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-m", "-u", "-i", "-n", "-p", "--"]);
        command.args(["/bin/sh", "-c", line]);
        command
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("── {} ──\n{}{}", self.host.name, self.journal("overlayd"), self.journal("docker"));
        }
        self.boot.kill();
    }
}

#[track_caller]
fn start(host: &Host, root: &Path) -> (Process, u32) {
    let mut command = Command::new("systemd-nspawn");
    command
        .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--capability=all", "--console=pipe"])
        .args(["--system-call-filter=add_key keyctl bpf", "--bind=/dev/net/tun", "--kill-signal=SIGKILL"])
        .arg(format!("--machine={}-{}", host.name, std::process::id()))
        .arg(format!("--network-namespace-path={}", host.ns.path().display()))
        .arg(format!("--directory={}", root.display()))
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
    let boot = Process::spawn("boot", command, host.directory());
    let children = format!("/proc/{0}/task/{0}/children", boot.id());
    let mut init = None;
    await_until(Duration::from_secs(30), &format!("{} to boot", host.name), || {
        let listed = fs::read_to_string(&children).unwrap_or_default();
        init = listed.split_whitespace().next().and_then(|pid| pid.parse().ok());
        // The bus answers only when systemd runs.
        init.is_some_and(|pid: u32| {
            File::open(format!("/proc/{pid}/root/run/systemd/private"))
                .is_err_and(|e| e.raw_os_error() == Some(ENXIO))
        })
    });
    (boot, init.expect("found"))
}

/// What opening a socket's file gives: it is there.
const ENXIO: i32 = 6;
