//! The container image in the place of the service, started as `deploy/README.md` says.

use std::path::Path;

use integration::await_until;
use integration::machine::Machine;

use crate::PATIENCE;

/// Runs the image's daemon instead of the service while `check` looks.
pub fn run(machine: &Machine<'_>, image: &Path, check: impl FnOnce()) {
    std::fs::copy(image, machine.file("/root/overlayd-image.tar")).expect("copy the image");
    let before = machine.env();
    machine.ok("systemctl stop overlayd && rm /run/flannel/subnet.env");
    let mut blocks = README.split("\n```").filter_map(|block| block.strip_prefix("sh\n"));
    let lines = blocks.find(|block| block.contains("docker import")).expect("lines that run the image");
    machine.ok(&format!(
        "set -eu\nmkdir -p /root/target\nmv /root/overlayd-image.tar /root/target\ncd /root\n{lines}"
    ));
    await_until(PATIENCE, "the container to write the subnet file", || {
        machine.file("/run/flannel/subnet.env").exists()
    });
    assert_eq!(machine.env(), before, "another subnet in a container");
    check();
    machine.ok("docker rm -f overlayd && systemctl start overlayd");
}

const README: &str = include_str!("../../../../deploy/README.md");
