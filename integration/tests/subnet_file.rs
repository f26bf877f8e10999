//! The subnet file as others use it, too.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::{SOON, Site, Store, await_until};
use rustix::process::Signal;

#[test]
fn lines_of_others_outlive_whatever_happens_to_the_node() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir_with(&site, "one", r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let mut w = worker.overlayd(&store).start();
    let file = w.subnet_file().to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bin/mk-docker-opts.sh");
    let mut command = Command::new(script);
    command.args(["-c", "-k", "DOCKER_NETWORK_OPTIONS", "-f"]).arg(&file).arg("-d").arg(&file);
    assert!(command.status().expect("run the script").success());
    let dockers = |text: &str| text.lines().find(|line| line.starts_with("DOCKER_")).map(str::to_owned);
    let written = fs::read_to_string(&file).expect("read the subnet file");
    let line = dockers(&written).expect("docker's line");
    assert!(written.contains("FLANNEL_SUBNET="), "{written}");

    let becomes = |what: &str, port: &str, mtu: u32| {
        await_until(SOON, what, || {
            let text = fs::read_to_string(&file).expect("there is always one");
            assert_eq!(dockers(&text), Some(line.clone()), "after {what}: {text}");
            text.contains(&format!("FLANNEL_MTU={mtu}\n")) && worker.ns.ok("ss -uln").contains(port)
        });
    };
    worker.ns.ip("link set eth0 mtu 1400");
    becomes("another MTU", ":8472", 1350);
    worker.ns.ip("link del flannel.1");
    await_until(SOON, "the device", || worker.ns.ok("ip -o link").contains("flannel.1"));
    store.put_config(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#);
    w.process().signal(Signal::HUP);
    becomes("another port", ":4789", 1350);
    w.stop();
    let w = worker.overlayd(&store).start();
    becomes("a restart", ":4789", 1350);
    assert_eq!(w.subnet_file(), file);
}
