//! What `make install` puts where, and what `make uninstall` leaves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use integration::netns::succeed;

/// Installs below a directory of its own, with a prefix that is not the usual one, and removes all again.
pub fn check() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path();
    let make = |target: &str| {
        let mut command = Command::new("make");
        command.arg("-C").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).arg(target);
        succeed(command.arg(format!("DESTDIR={}", root.display())).arg("PREFIX=/opt/overlay"));
    };
    make("install");
    let installed = files(root);
    for wanted in [
        "opt/overlay/bin/overlayd",
        "opt/overlay/bin/overlayctl",
        "opt/overlay/libexec/overlayd/flanneld-start",
        "opt/overlay/libexec/overlayd/docker-options",
        "opt/overlay/libexec/flannel/mk-docker-opts.sh",
        "opt/overlay/share/man/man8/overlayd.8",
        "opt/overlay/share/overlayd/prometheus/overlayd.rules.yml",
        "opt/overlay/share/overlayd/grafana/overlayd.json",
        "etc/systemd/system/overlayd.service",
        "etc/systemd/system/overlayd-prepare.service",
        "etc/sysusers.d/overlayd.conf",
        "etc/systemd/system/docker.service.d/overlayd.conf",
        "etc/systemd/system-generators/overlayd-docker",
        DEFAULTS,
    ] {
        assert!(installed.contains(wanted), "no {wanted} among {installed:?}");
    }
    for text in ["etc/systemd/system/overlayd.service", "etc/systemd/system/docker.service.d/overlayd.conf"] {
        let text = fs::read_to_string(root.join(text)).expect("read a unit");
        let paths = text.lines().filter(|line| line.starts_with("Exec") && line.contains("libexec"));
        for line in paths {
            assert!(line.contains("/opt/overlay/libexec/"), "not below the prefix: {line}");
        }
    }
    for (script, path) in [
        ("flanneld-start", "/opt/overlay/bin/overlayd"),
        ("docker-options", "/opt/overlay/libexec/flannel/mk-docker-opts.sh"),
    ] {
        let script = root.join("opt/overlay/libexec/overlayd").join(script);
        let script = fs::read_to_string(script).expect("read a script");
        assert!(script.contains(path), "{script}");
    }

    // What an operator has written outlives both.
    fs::write(root.join(DEFAULTS), "FLANNELD_IFACE=eth2\n").expect("write the defaults");
    make("install");
    make("uninstall");
    assert_eq!(files(root), BTreeSet::from([DEFAULTS.to_owned()]));
    assert_eq!(fs::read_to_string(root.join(DEFAULTS)).expect("read"), "FLANNELD_IFACE=eth2\n");
}

fn files(root: &Path) -> BTreeSet<String> {
    let listed = succeed(Command::new("find").arg(root).args(["-type", "f", "-printf", "%P\n"]));
    listed.lines().map(str::to_owned).collect()
}

const DEFAULTS: &str = "etc/default/overlayd";
