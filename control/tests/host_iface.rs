//! The choice of the underlay, in a namespace with real interfaces.

mod namespace;

use control::iface::{self, IfaceError, IfaceSpec, Underlay};
use namespace::Namespace;

/// eth0 with two addresses, eth1 with a temporary and a lasting one, eth2 with none, eth3 link-local only.
fn host() -> Namespace {
    let host = Namespace::new();
    host.sh("for i in 0 1 2 3; do ip link add eth$i type bridge; ip link set eth$i up; done
         ip link set eth1 mtu 9000
         ip addr add 192.168.1.12/24 dev eth0
         ip addr add 192.168.1.13/24 dev eth0
         ip addr add 10.7.0.5/24 dev eth1 valid_lft 600 preferred_lft 600
         ip addr add 10.8.0.5/24 dev eth1
         ip addr add 169.254.3.3/16 dev eth3");
    host
}

fn choose(host: &Namespace, iface: &[&str], public_ip: Option<&str>) -> Result<Underlay, IfaceError> {
    let spec = IfaceSpec {
        iface: iface.iter().map(ToString::to_string).collect(),
        public_ip: public_ip.map(|ip| ip.parse().unwrap()),
    };
    host.block_on(move || async move { iface::choose(&spec).await })
}

fn chosen(underlay: &Underlay) -> (String, String, String) {
    (underlay.name.clone(), underlay.address.to_string(), underlay.public_ip.to_string())
}

fn expect(name: &str, address: &str, public_ip: &str) -> (String, String, String) {
    (name.to_owned(), address.to_owned(), public_ip.to_owned())
}

#[test]
fn by_name_the_first_lasting_global_address_is_taken() {
    let host = host();
    assert_eq!(
        chosen(&choose(&host, &["eth0"], None).unwrap()),
        expect("eth0", "192.168.1.12", "192.168.1.12")
    );
    let eth1 = choose(&host, &["eth1"], None).unwrap();
    assert_eq!(chosen(&eth1), expect("eth1", "10.8.0.5", "10.8.0.5"));
    assert_eq!(eth1.mtu, 9000);
    assert_eq!(host.json("ip -j link show eth1")[0]["ifindex"], eth1.index);
    assert_eq!(
        chosen(&choose(&host, &["eth3"], None).unwrap()),
        expect("eth3", "169.254.3.3", "169.254.3.3")
    );
}

#[test]
fn by_address_the_interface_that_has_it_is_taken() {
    let host = host();
    let underlay = choose(&host, &["192.168.1.13"], Some("203.0.113.9")).unwrap();
    assert_eq!(chosen(&underlay), expect("eth0", "192.168.1.13", "203.0.113.9"));
    assert_eq!(underlay.reason, "--iface=192.168.1.13");
}

#[test]
fn the_first_entry_that_fits_wins() {
    let host = host();
    let underlay = choose(&host, &["eth9", "10.0.0.1", "eth2", "eth1", "eth0"], None).unwrap();
    assert_eq!(chosen(&underlay), expect("eth1", "10.8.0.5", "10.8.0.5"));
}

#[test]
fn without_an_entry_the_default_route_of_the_lowest_metric_decides() {
    let host = host();
    host.sh("ip route add default via 192.168.1.1 metric 100
         ip route add default via 10.8.0.1 metric 50
         ip route add default via 192.168.1.2 metric 10 table 77");
    let underlay = choose(&host, &[], None).unwrap();
    assert_eq!(chosen(&underlay), expect("eth1", "10.8.0.5", "10.8.0.5"));
    host.sh("ip route replace default proto static nexthop via 192.168.1.1 nexthop via 10.8.0.1");
    assert_eq!(choose(&host, &[], None).unwrap().name, "eth0", "multipath: the first hop's");
}

#[test]
fn errors_say_what_was_asked_what_is_there_and_what_to_do() {
    let host = host();
    let error = choose(&host, &["eth9", "10.0.0.1", "eth2"], None).unwrap_err().to_string();
    for part in [
        "--iface=eth9: there is no such interface",
        "--iface=10.0.0.1: no interface has this address",
        "--iface=eth2: it has no IPv4 address to send from",
        "eth0 (192.168.1.12, 192.168.1.13)",
        "eth2 (no IPv4 address)",
        "name one of these with --iface",
    ] {
        assert!(error.contains(part), "{part:?} in {error:?}");
    }
    let error = choose(&host, &[], None).unwrap_err().to_string();
    assert!(
        error.starts_with("there is no IPv4 default route; this host has lo (127.0.0.1), eth0"),
        "{error}"
    );
    host.sh("ip route add default dev eth2");
    let error = choose(&host, &[], None).unwrap_err().to_string();
    assert!(error.starts_with("eth2, of the default route, has no IPv4 address"), "{error}");
}
