//! `--ip-blackhole-route`: where packets for this node's subnet end, with and without a bridge.

mod namespace;

use control::host::{Desired, blackhole};
use namespace::Namespace;

fn desired(pod_subnet: &str, blackhole: bool) -> Desired {
    Desired { pod_subnet: pod_subnet.parse().unwrap(), blackhole, ..namespace::desired() }
}

fn apply(host: &Namespace, subnet: &str, wanted: bool) {
    let desired = desired(subnet, wanted);
    host.block_on(|| async move { blackhole::apply(&desired).await }).unwrap();
}

fn blackholes(host: &Namespace) -> Vec<String> {
    host.sh("ip route show type blackhole").lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn it_is_put_once_and_removed_when_it_is_not_wanted() {
    let host = Namespace::new();
    apply(&host, "10.1.9.0/24", false);
    for _ in 0..2 {
        apply(&host, "10.1.9.0/24", true);
        assert_eq!(blackholes(&host), ["blackhole 10.1.9.0/24 proto 222 metric 4294967295"]);
    }
    apply(&host, "10.1.9.0/24", false);
    assert!(blackholes(&host).is_empty());
}

#[test]
fn a_bridge_made_before_or_after_comes_first() {
    let host = Namespace::new();
    let bridge = "ip link add docker0 type bridge
                  ip link set docker0 up
                  ip addr add 10.1.9.1/24 dev docker0";
    let way = || host.json("ip -j route get 10.1.9.7")[0]["dev"].as_str().map(str::to_owned);
    apply(&host, "10.1.9.0/24", true);
    host.sh("if ip route get 10.1.9.7; then exit 1; fi");
    host.sh(bridge);
    assert_eq!(way().as_deref(), Some("docker0"));
    host.sh("ip route del blackhole 10.1.9.0/24 metric 4294967295");
    apply(&host, "10.1.9.0/24", true);
    assert_eq!(way().as_deref(), Some("docker0"));
    assert_eq!(blackholes(&host).len(), 1);
}

#[test]
fn those_of_an_earlier_life_go_and_others_stay() {
    let host = Namespace::new();
    host.sh("ip route add blackhole 10.1.7.0/24
         ip route add blackhole 10.1.6.0/24 proto 222
         ip route add blackhole 10.2.5.0/24 proto 222 metric 4294967295");
    let others = blackholes(&host);
    apply(&host, "10.1.8.0/24", true);
    apply(&host, "10.1.9.0/24", true);
    let network = "10.1.0.0/16".parse().unwrap();
    let kept = "10.1.9.0/24".parse().unwrap();
    let removed = host.block_on(move || async move { blackhole::remove(network, Some(kept)).await }).unwrap();
    assert_eq!(removed, ["10.1.8.0/24".parse().unwrap()]);
    assert_eq!(blackholes(&host).len(), others.len() + 1);
    host.block_on(move || async move { blackhole::remove(network, None).await }).unwrap();
    assert_eq!(blackholes(&host), others);
}
