//! The device's address and MTU, forwarding, and what changes, in a namespace with a real TUN.

mod namespace;

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use tokio::time::timeout;

use namespace::{Namespace, desired};
use overlay_host::link::{self, HostChanges};
use overlay_host::{Desired, HostError, forwarding};

fn apply(host: &Namespace, desired: &Desired) -> Result<(), HostError> {
    let desired = desired.clone();
    host.block_on(move || async move { link::apply(&desired).await.map(drop) })
}

/// A bridge stands for somebody else's device.
fn host() -> Namespace {
    let host = Namespace::new();
    host.sh("ip tuntap add mode tun name flannel.1
         ip link add br0 type bridge
         ip addr add 192.168.7.1/24 dev br0
         ip link set br0 up
         ip route add 172.30.0.0/16 via 192.168.7.2");
    host
}

fn state(host: &Namespace) -> (String, String) {
    (host.sh("ip -j -4 addr"), host.sh("ip -j route"))
}

#[test]
fn a_bare_device_is_configured_and_a_second_time_changes_nothing() {
    let host = host();
    apply(&host, &desired()).unwrap();

    let device = &host.json("ip -j addr show flannel.1")[0];
    assert_eq!(device["mtu"], 1450);
    assert!(device["flags"].as_array().unwrap().contains(&"UP".into()));
    let addresses = device["addr_info"].as_array().unwrap();
    assert_eq!(addresses.len(), 1, "and none of IPv6: {addresses:?}");
    assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&"10.1.9.0".into(), &32.into()));

    let before = state(&host);
    apply(&host, &desired()).unwrap();
    assert_eq!(state(&host), before);
}

#[test]
fn what_comes_from_pods_and_for_them_is_forwarded_whoever_has_switched_that_off() {
    let host = host();
    apply(&host, &desired()).unwrap();
    host.sh("ip link add docker0 type bridge
         ip addr add 10.1.9.1/24 dev docker0
         ip link add eth0 type bridge");
    let forwarding =
        |desired: Desired| host.block_on(move || async move { forwarding::apply(&desired).await }).unwrap();
    assert_eq!(forwarding(desired()).len(), 1, "with the switch for all, each device's is on");
    assert_eq!(forwarding(desired()), [""; 0]);
    let devices = ["flannel/1", "docker0", "br0", "eth0"];
    let value =
        |device: &str| host.sh(&format!("sysctl -n net.ipv4.conf.{device}.forwarding")).trim().to_owned();
    let after = |desired: Desired| {
        devices.iter().for_each(|device| {
            host.sh(&format!("sysctl -qw net.ipv4.conf.{device}.forwarding=0"));
        });
        forwarding(desired);
        devices.map(value).concat()
    };
    assert_eq!(after(desired()), "1100", "those of others are theirs");
    assert_eq!(after(Desired { direct: Some("eth0".to_owned()), ..desired() }), "1101");
}

#[test]
fn leftovers_on_the_device_go_and_everything_else_stays() {
    let host = host();
    let (addresses, routes) = (host.sh("ip -j -4 addr show br0"), host.sh("ip -j route show dev br0"));
    host.sh("ip addr add 10.1.9.0/24 dev flannel.1
         ip addr add 10.1.9.77/24 dev flannel.1
         ip addr add 10.2.0.0/32 dev flannel.1
         ip link set flannel.1 up mtu 1400");
    apply(&host, &desired()).unwrap();

    let left = host.json("ip -j -4 addr show flannel.1");
    let left = left[0]["addr_info"].as_array().unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!((&left[0]["local"], &left[0]["prefixlen"]), (&"10.1.9.0".into(), &32.into()));

    assert_eq!(host.sh("ip -j -4 addr show br0"), addresses);
    assert_eq!(host.sh("ip -j route show dev br0"), routes);
}

#[test]
fn another_lease_moves_the_address() {
    let host = host();
    apply(&host, &desired()).unwrap();
    apply(&host, &Desired { address: [10, 1, 44, 0].into(), mtu: 1472, ..desired() }).unwrap();
    let device = &host.json("ip -j -4 addr show flannel.1")[0];
    assert_eq!(device["mtu"], 1472);
    assert_eq!(device["addr_info"].as_array().unwrap().len(), 1);
    assert_eq!(device["addr_info"][0]["local"], "10.1.44.0");
}

#[test]
fn failures_name_the_object_and_the_reason() {
    let host = host();
    let missing = apply(&host, &Desired { device: "flannel9".to_owned(), ..desired() }).unwrap_err();
    assert!(missing.to_string().contains("no network device flannel9"), "{missing}");
    let refused = apply(&host, &Desired { mtu: 1_000_000, ..desired() }).unwrap_err();
    assert!(refused.to_string().contains("set flannel.1 up with an MTU of 1000000: Invalid"), "{refused}");
}

#[test]
fn a_device_that_cannot_have_ipv6_is_configured_all_the_same() {
    let host = host();
    // Below 1280 bytes the kernel gives a device no IPv6 at all, as on a host that has none.
    host.sh("ip link set flannel.1 mtu 1200");
    apply(&host, &desired()).unwrap();
    assert_eq!(host.json("ip -j addr show flannel.1")[0]["mtu"], 1450);
}

#[test]
fn all_addresses_are_listed() {
    let host = host();
    apply(&host, &desired()).unwrap();
    let addresses = host.block_on(link::addresses).unwrap();
    let expected: [Ipv4Addr; 3] = [[10, 1, 9, 0].into(), [127, 0, 0, 1].into(), [192, 168, 7, 1].into()];
    assert_eq!(addresses.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn changes_are_told_once_for_a_burst_and_never_without_one() {
    let host = host();
    host.block_on(|| async {
        let mut changes = HostChanges::subscribe().unwrap();
        let ip = |script: &str| assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success());
        let (limit, quiet) = (Duration::from_secs(30), Duration::from_millis(400));

        // On a busy machine one of several bursts may be torn, or followed by word of another matter.
        let burst = "addr replace 10.9.9.9/32 dev br0\\naddr replace 10.9.9.10/32 dev br0\\naddr del 10.9.9.9/32 dev br0\\n";
        let mut once = false;
        for _ in 0..5 {
            ip(&format!("printf '{burst}' | ip -batch -"));
            timeout(limit, changes.changed()).await.expect("told").unwrap();
            once |= timeout(quiet, changes.changed()).await.is_err();
        }
        assert!(once, "each burst is told more than once");

        for script in [
            "ip link set br0 mtu 1400",
            "ip route add 10.99.0.0/16 dev br0",
            "ip route del 10.99.0.0/16 dev br0",
            "ip link set br0 down",
            "ip link del br0",
        ] {
            ip(script);
            // Given up now and then, as by a loop that has something else to do: nothing is lost.
            while timeout(Duration::from_millis(20), changes.changed()).await.is_err() {}
        }
    });
}

#[test]
fn applying_what_is_there_is_no_change() {
    let host = host();
    apply(&host, &desired()).unwrap();
    host.block_on(|| async {
        let mut changes = HostChanges::subscribe().unwrap();
        let quiet = Duration::from_millis(400);
        // The kernel tells of a new device's state when it comes to it, which on a busy machine is late: what
        // `apply` itself changed would be told each time.
        for _ in 0..5 {
            link::apply(&desired()).await.unwrap();
            if timeout(quiet, changes.changed()).await.is_err() {
                return;
            }
        }
        panic!("each time there is something to tell");
    });
}
