//! What the unit lets overlayd do.

use integration::await_until;
use integration::machine::Machine;

use crate::{PATIENCE, said};

/// Its control socket is for the group that it is told, and a flanneld that runs keeps its device.
pub fn check_exceptions(machine: &Machine<'_>) {
    let drop_in = "/run/systemd/system/overlayd.service.d/group.conf";
    machine.write(
        drop_in,
        "[Service]\nSupplementaryGroups=adm\nEnvironment=FLANNELD_CONTROL_SOCKET_GROUP=adm\n",
    );
    machine.ok("systemctl daemon-reload && systemctl start overlayd");
    let member = "setpriv --reuid=nobody --regid=adm --clear-groups overlayctl status";
    await_until(PATIENCE, "an answer to a member of the group", || machine.run(member).status.success());
    machine.ok(&format!(
        "rm {drop_in} && systemctl daemon-reload && systemctl stop overlayd && overlayctl cleanup"
    ));

    machine.ok(
        "cp /bin/sleep /run/flanneld && systemd-run --unit=other /run/flanneld 1000 && \
         ip link add flannel.1 type vxlan id 1 dev eth2 dstport 8472 nolearning && ip link set flannel.1 up && \
         systemctl start --no-block overlayd",
    );
    await_until(PATIENCE, "word of the flanneld that runs", || {
        machine.journal("overlayd").contains("belongs to a flanneld that is running")
    });
    assert!(machine.ok("ip -d link show flannel.1").contains("vxlan id 1"), "its device is gone");
    machine.ok("systemctl stop overlayd other && ip link del flannel.1");
    said("the control socket is for the group that it is told, and a flanneld that runs keeps its device");
}

/// It is a user of its own with few capabilities, and its data plane has none; its group may ask it, and others may not.
pub fn check(machine: &Machine<'_>) {
    let exposure = machine.ok("systemd-analyze security --no-pager overlayd | tail -n 1");
    let level =
        exposure.split_once("overlayd.service: ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    assert!(level.is_some_and(|level: f64| level <= 2.6), "the unit is open to more than it was: {exposure}");

    let process = machine.property("overlayd", "MainPID");
    assert_eq!(machine.ok(&format!("ps -o user= -p {process}")), "overlayd");
    let of = |name: &str| {
        let texts = machine.ok(&format!("cd /proc/{process}/task && grep -h -E '^(Name|{name}):' */status"));
        let lines: Vec<&str> =
            texts.lines().filter_map(|line| line.split_once('\t').map(|(_, value)| value)).collect();
        let pairs = lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned()));
        // Who gives real time has only the capability for that.
        pairs.filter(|(name, _)| name != "warden").partition::<Vec<_>, _>(|(name, _)| name.contains("gress-"))
    };
    let (workers, others) = of("CapPrm");
    assert!(
        !workers.is_empty() && workers.iter().all(|(_, set)| set.trim_start_matches('0').is_empty()),
        "{workers:?}"
    );
    // NET_ADMIN, NET_RAW, BPF, SYS_NICE and, in reserve, DAC_READ_SEARCH.
    assert!(others.iter().all(|(_, set)| set == "0000008000803004"), "{others:?}");
    let (_, others) = of("CapEff");
    assert!(others.iter().all(|(_, set)| set == "0000008000803000"), "{others:?}");
    let (workers, others) = of("Seccomp_filters");
    let number = |pair: &(String, String)| pair.1.parse::<u32>().expect("a number");
    let outside = number(&others[0]);
    assert!(workers.iter().all(|worker| number(worker) == outside + 1), "{workers:?} beside {outside}");
    let log = machine.journal("overlayd");
    assert!(!log.contains("not confined") && !log.contains("capabilities that are not needed stay"), "{log}");

    let ask = |group: &str| {
        machine.run(&format!("setpriv --reuid=nobody --regid={group} --clear-groups overlayctl status"))
    };
    let member = ask("overlayd");
    assert!(member.status.success(), "{}", String::from_utf8_lossy(&member.stderr));
    let stranger = ask("nogroup");
    let text = String::from_utf8_lossy(&stranger.stderr);
    assert!(!stranger.status.success() && text.contains("members of its group"), "{text}");
    said(&format!(
        "overlayd is a user of its own, with its data plane's threads without capabilities; {}",
        exposure.trim_start_matches(['→', ' '])
    ));
}
