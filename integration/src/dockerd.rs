//! A real docker daemon on a host, for the firewall rules it really makes.

use std::process::Command;
use std::time::Duration;

use crate::process::{Process, await_until};
use crate::site::{Host, SubnetEnv};

/// A docker daemon with `docker0` and rules in the host's namespace, and its files in the host's directory.
#[derive(Debug)]
pub struct Dockerd {
    process: Process,
}

impl Dockerd {
    /// Starts docker as `mk-docker-opts.sh` would have it from the subnet file, and waits until it serves.
    #[track_caller]
    pub fn start(host: &Host, env: &SubnetEnv) -> Self {
        let directory = host.directory().join("docker");
        let file = |name: &str| directory.join(name).display().to_string();
        // A mount namespace of its own keeps docker's mounts from the machine; `ip netns exec` would
        // do that too, but would also hide the control groups, without which docker refuses to start.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", host.ns.path().display()));
        command.args(["unshare", "--mount", "--propagation", "slave", "sh", "-c", START, "dockerd"]);
        command.args(["--data-root", &file("data"), "--exec-root", &file("exec")]);
        command.args(["--pidfile", &file("pid"), "-H", &format!("unix://{}", file("socket"))]);
        command.args(["--config-file", &file("daemon.json"), "--storage-driver", "vfs"]);
        command.args(["--bip", &env.subnet, "--mtu", &env.mtu.to_string()]);
        command.arg(format!("--ip-masq={}", !env.ip_masq));
        std::fs::create_dir_all(&directory).expect("create docker's directory");
        std::fs::write(directory.join("daemon.json"), "{}").expect("write docker's configuration");
        let mut process = Process::spawn("dockerd", command, host.directory());
        await_until(Duration::from_secs(40), "dockerd to serve", || {
            assert!(process.exited().is_none(), "dockerd ended:\n{}", process.log());
            process.log().contains("API listen on")
        });
        Self { process }
    }

    /// Stops it; rules and bridge stay, as docker leaves them.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.terminate(Duration::from_secs(20));
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // It ends its own containerd only when asked kindly. What is left goes with the namespace.
        self.process.signal(rustix::process::Signal::TERM);
        self.process.ended_within(Duration::from_secs(10));
    }
}

/// Docker keeps an identity and its plugins' sockets at fixed places: there it gets directories of its own.
const START: &str = r#"
    set -e
    for place in /etc/docker /run/docker; do mkdir -p $place; mount -t tmpfs docker $place; done
    exec dockerd "$@"
"#;
