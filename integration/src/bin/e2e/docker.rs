//! What a site says to docker stays, and docker has the subnet besides.

use integration::machine::Machine;
use integration::{Pod, await_until};

use crate::{PATIENCE, said};

/// Under a drop-in with a command line, a `daemon.json` and an environment of the site's own; and when the drop-in of
/// the first versions, which had a command line itself, makes way for a package without.
pub fn keeps_what_the_site_says(machine: &Machine<'_>, package: &str, pod: Pod) -> Pod {
    drop(pod);
    let subnet = machine.env().subnet;
    let restarted = || {
        machine.ok("systemctl daemon-reload && systemctl restart docker");
        machine.await_active("docker");
        let bridge = machine.ok("ip -o -4 address show docker0");
        (machine.ok("docker info --format '{{.Labels}} {{.Debug}}'"), bridge.contains(&subnet))
    };
    machine.write("/etc/docker/daemon.json", r#"{"labels": ["from=config"]}"#);
    machine.write(SITES, "[Service]\nEnvironment=DOCKER_OPTS=--debug\n");
    assert_eq!(restarted(), ("[from=config] true".to_owned(), true), "docker.io's unit, with options");

    let own = "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H fd:// \\\n    -H tcp://127.0.0.1:2375\n";
    machine.write(SITES, own);
    assert_eq!(restarted(), ("[from=config] false".to_owned(), true), "a command line of the site's");
    machine.ok("docker -H tcp://127.0.0.1:2375 version");

    // A bip of the site's own is left to it, and told wherever one looks.
    machine.write("/etc/docker/daemon.json", r#"{"bip": "10.99.0.1/24"}"#);
    assert!(!restarted().1, "docker0 has the address of the site's");
    let told = "/etc/docker/daemon.json has a bip, which stays";
    assert!(machine.ok("journalctl -b --no-pager -u docker").contains(told));
    await_until(PATIENCE, "the status to tell of docker's bridge", || {
        machine.ok("overlayctl status").contains("PROBLEM       docker0 has 10.99.0.1/24")
    });
    assert_eq!(machine.run("overlayctl check").status.code(), Some(2));
    machine.ok("rm /etc/docker/daemon.json");

    // As the first versions left it: the package takes their drop-in away, and docker goes on.
    machine.write("/lib/systemd/system/docker.service.d/overlayd.conf", FIRST_DROP_IN);
    machine.write(SITES, "[Service]\nEnvironment=DOCKER_OPTS=--debug\n");
    assert_eq!(restarted(), ("[] true".to_owned(), true), "under the first versions' drop-in");
    let process = machine.property("docker", "MainPID");
    machine.ok(&format!("dpkg -i {package}"));
    machine.await_active("overlayd");
    assert_eq!(machine.property("docker", "MainPID"), process, "docker was restarted");
    assert!(!machine.ok("cat /lib/systemd/system/docker.service.d/overlayd.conf").contains("ExecStart="));
    assert_eq!(restarted(), ("[] true".to_owned(), true), "after it");

    machine.ok(&format!("rm {SITES}"));
    assert_eq!(restarted(), ("[] false".to_owned(), true), "as before all that");
    let pod = machine.pod("pod");
    said(
        "docker keeps the site's command line, daemon.json and options, and has the subnet; an upgrade does not restart it",
    );
    pod
}

const SITES: &str = "/etc/systemd/system/docker.service.d/10-site.conf";

const FIRST_DROP_IN: &str = "\
[Unit]
Wants=overlayd.service
After=overlayd.service
StartLimitIntervalSec=0

[Service]
ExecStartPre=/usr/libexec/flannel/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/docker-overlay.env
EnvironmentFile=-/run/docker-overlay.env
ExecStart=
ExecStart=dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS $DOCKER_NETWORK_OPTIONS
";
