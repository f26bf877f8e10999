//! `--io=xdp` under the unit: refused for want of rights, and allowed by the drop-in that deploy/README.md gives.

use integration::machine::Machine;
use integration::steady::Steady;
use integration::{Pod, await_until, traffic};
use serde_json::Value;

use crate::{INTERFACE, PATIENCE, said};

/// Has a host's daemon use the rings of its interface, and replaces it in all ways meanwhile.
pub fn check(machine: &Machine<'_>, a: &Pod, b: &Pod, other: &Machine<'_>) {
    machine.write(&format!("{DROP_INS}/io.conf"), "[Service]\nEnvironment=FLANNELD_IO=xdp\n");
    let restart = "systemctl daemon-reload && systemctl restart overlayd";
    machine.ok(restart);
    machine.await_active("overlayd");
    let fallback = io(machine)["fallback"].as_str().map(str::to_owned);
    assert!(fallback.is_some_and(|why| why.contains(INTERFACE)), "no reason for sockets: {}", io(machine));
    traffic::ping(&a.ns, b.address);

    machine.write(&format!("{DROP_INS}/rights.conf"), drop_in());
    machine.ok(restart);
    machine.await_active("overlayd");
    by_rings(machine, a, b);
    let (here, there) = (machine.host(), other.host());
    let others = Steady::start(&there.ns, &here.ns, here.public_ip);
    for end in ["systemctl restart overlayd", "kill -9 $(systemctl show --value -p MainPID overlayd)"] {
        let before = machine.property("overlayd", "MainPID");
        machine.ok(end);
        await_until(PATIENCE, "another process", || {
            let now = machine.property("overlayd", "MainPID");
            now != "0" && now != before
        });
        machine.await_active("overlayd");
        by_rings(machine, a, b);
    }
    let sent = others.nothing_lost();
    traffic::transfer(&a.ns, &b.ns, b.address, 20);

    machine.ok(&format!("rm -r {DROP_INS}"));
    machine.ok(restart);
    machine.await_active("overlayd");
    let link = here.ns.ok(&format!("ip link show {INTERFACE}"));
    assert!(io(machine)["rings"].is_null() && !link.contains("prog/xdp"), "{link}");
    said(&format!(
        "--io=xdp by the drop-in of deploy/README.md; a restart and a crash lose none of {sent} datagrams of others"
    ));
}

/// Waits until what a pod sends leaves by the ring.
fn by_rings(machine: &Machine<'_>, a: &Pod, b: &Pod) {
    let sent = || io(machine)["rings"]["datagrams"]["egress"].as_u64();
    await_until(PATIENCE, "pings to leave by the ring", || {
        let before = sent();
        before.is_some() && traffic::answers(&a.ns, b.address) && sent() > before
    });
}

fn io(machine: &Machine<'_>) -> Value {
    let status: Value = serde_json::from_str(&machine.ok("overlayctl status --json")).expect("JSON");
    status["io"].clone()
}

/// The block that deploy/README.md gives.
fn drop_in() -> &'static str {
    let after = README.split_once("`--io=xdp` and `--io=auto` need more").expect("what --io=xdp needs").1;
    let block = after.split_once("```ini\n").and_then(|(_, block)| block.split_once("```"));
    block.expect("a drop-in").0
}

const README: &str = include_str!("../../../../deploy/README.md");
const DROP_INS: &str = "/run/systemd/system/overlayd.service.d";

#[cfg(test)]
mod tests {
    #[test]
    fn the_drop_in_is_there() {
        let text = super::drop_in();
        assert!(text.starts_with("[Service]\n") && text.contains("AF_XDP"), "{text}");
    }
}
