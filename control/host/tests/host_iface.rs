//! The choice of the underlay, in a namespace with real interfaces.

mod namespace;

use namespace::Namespace;
use overlay_host::iface::{self, IfaceError, IfaceSpec, Underlay};

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
    choose_by(
        host,
        IfaceSpec {
            iface: iface.iter().map(ToString::to_string).collect(),
            public_ip: public_ip.map(|ip| ip.parse().unwrap()),
            ..IfaceSpec::default()
        },
    )
}

fn choose_by(host: &Namespace, spec: IfaceSpec) -> Result<Underlay, IfaceError> {
    host.block_on(move || async move { iface::choose(&spec).await })
}

fn by_regex(patterns: &[&str]) -> IfaceSpec {
    let regex = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
    IfaceSpec { regex, ..IfaceSpec::default() }
}

fn by_reach(target: &str) -> IfaceSpec {
    IfaceSpec { can_reach: Some(target.parse().unwrap()), ..IfaceSpec::default() }
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

#[test]
fn by_regex_addresses_are_tried_before_names() {
    let host = host();
    let by_address = choose_by(&host, by_regex(&[r"^10\.7\."])).unwrap();
    assert_eq!(chosen(&by_address), expect("eth1", "10.7.0.5", "10.7.0.5"), "the address that matched");
    let by_name = choose_by(&host, by_regex(&["^eth[1-3]$"])).unwrap();
    assert_eq!(chosen(&by_name), expect("eth1", "10.8.0.5", "10.8.0.5"), "the one to prefer");
    assert_eq!(by_name.reason, "--iface-regex=^eth[1-3]$");
    // lo's address does not count, and eth0 has the zero in its name only.
    assert_eq!(choose_by(&host, by_regex(&["nothing", "0"])).unwrap().name, "eth1");
}

#[test]
fn by_reach_the_kernels_route_decides() {
    let host = host();
    host.sh("ip route add default via 192.168.1.1
         ip route add 172.16.0.0/12 via 10.8.0.1 src 10.7.0.5
         ip route add unreachable 172.31.0.0/16");
    let reach = |target| choose_by(&host, by_reach(target));
    assert_eq!(chosen(&reach("9.9.9.9").unwrap()), expect("eth0", "192.168.1.12", "192.168.1.12"));
    let routed = reach("172.20.0.1").unwrap();
    assert_eq!(chosen(&routed), expect("eth1", "10.7.0.5", "10.7.0.5"));
    assert_eq!(routed.reason, "--iface-can-reach=172.20.0.1");
    let error = reach("172.31.0.1").unwrap_err().to_string();
    assert!(error.starts_with("--iface-can-reach=172.31.0.1: there is no route to it; this host"), "{error}");
    let error = reach("10.8.0.5").unwrap_err().to_string();
    assert!(error.contains("it is an address of this host"), "{error}");
}

#[test]
fn names_come_before_expressions_and_those_before_reach() {
    let host = host();
    let spec = |iface: &str, regex: &str| IfaceSpec {
        iface: vec![iface.to_owned()],
        can_reach: Some([192, 168, 1, 99].into()),
        ..by_regex(&[regex])
    };
    assert_eq!(choose_by(&host, spec("eth3", "eth1")).unwrap().name, "eth3");
    assert_eq!(choose_by(&host, spec("eth9", "eth1")).unwrap().name, "eth1");
    assert_eq!(choose_by(&host, spec("eth9", "eth9")).unwrap().name, "eth0");
    host.sh("ip link set eth0 down");
    let error = choose_by(&host, spec("eth9", "^eth9")).unwrap_err().to_string();
    for part in
        ["--iface=eth9: there is no", "--iface-regex=^eth9: it matches neither", "-can-reach=192.168.1.99"]
    {
        assert!(error.contains(part), "{part:?} in {error:?}");
    }
}

#[test]
fn a_public_address_that_is_the_hosts_own_names_the_interface() {
    let host = host();
    host.sh("ip route add default via 192.168.1.1");
    let own = choose(&host, &[], Some("10.7.0.5")).unwrap();
    assert_eq!(chosen(&own), expect("eth1", "10.7.0.5", "10.7.0.5"));
    assert_eq!(own.reason, "--public-ip=10.7.0.5");
    let behind_nat = choose(&host, &[], Some("203.0.113.9")).unwrap();
    assert_eq!(chosen(&behind_nat), expect("eth0", "192.168.1.12", "203.0.113.9"));
}

#[test]
fn what_still_has_its_address_is_kept_and_otherwise_the_choice_is_made_anew() {
    let host = host();
    host.sh("ip route add default via 192.168.1.1");
    let before = choose(&host, &[], None).unwrap();
    let again = |before: &Underlay| {
        let before = before.clone();
        host.block_on(move || async move { iface::choose_again(&IfaceSpec::default(), &before).await })
    };
    host.sh("ip route replace default via 10.8.0.1");
    assert_eq!(again(&before).unwrap(), before, "another default route is no reason to move");
    host.sh("ip link set eth0 mtu 1400");
    assert_eq!(again(&before).unwrap(), Underlay { mtu: 1400, ..before.clone() });
    host.sh("ip link del eth0; ip link add eth0 type bridge; ip addr add 192.168.1.12/24 dev eth0");
    let remade = again(&before).unwrap();
    assert!(remade.index != before.index && remade.address == before.address, "{remade:?}");
    host.sh("ip addr flush dev eth0; ip addr add 192.168.1.12/24 dev eth2");
    assert_eq!(again(&before).unwrap().name, "eth1", "the address alone is not the interface");
}

#[test]
fn a_public_address_that_another_interface_has_is_where_we_listen() {
    let host = host();
    let spec = IfaceSpec {
        iface: vec!["eth0".to_owned()],
        public_ip: Some([10, 8, 0, 5].into()),
        ..IfaceSpec::default()
    };
    let underlay = choose_by(&host, spec.clone()).unwrap();
    assert_eq!(chosen(&underlay), expect("eth0", "10.8.0.5", "10.8.0.5"));
    let again = |before: &Underlay| {
        let (spec, before) = (spec.clone(), before.clone());
        host.block_on(move || async move { iface::choose_again(&spec, &before).await }).unwrap()
    };
    assert_eq!(again(&underlay), underlay);
    host.sh("ip addr del 10.8.0.5/24 dev eth1");
    let without = again(&underlay);
    assert_eq!(chosen(&without), expect("eth0", "192.168.1.12", "10.8.0.5"), "as behind a NAT");
    assert_eq!(again(&without), without);
    host.sh("ip addr add 10.8.0.5/24 dev eth2");
    assert_eq!(chosen(&again(&without)), expect("eth0", "10.8.0.5", "10.8.0.5"), "it has come back");
}

#[test]
fn the_address_that_the_node_had_is_kept_and_a_deprecated_one_is_the_last_choice() {
    let host = host();
    host.sh("ip addr add 192.168.1.100/24 dev eth2 preferred_lft 0 valid_lft forever
         ip addr add 192.168.1.101/24 dev eth2");
    let by_name = |name: &str, earlier: Option<&str>| {
        let earlier = earlier.map(|ip| ip.parse().unwrap());
        let spec = IfaceSpec { iface: vec![name.to_owned()], earlier, ..IfaceSpec::default() };
        choose_by(&host, spec).unwrap().address.to_string()
    };
    for (name, earlier, expected) in [
        ("eth0", None, "192.168.1.12"),
        ("eth0", Some("192.168.1.13"), "192.168.1.13"),
        ("eth0", Some("192.168.1.77"), "192.168.1.12"),
        ("eth0", Some("10.8.0.5"), "192.168.1.12"),
        ("eth1", None, "10.8.0.5"),
        ("eth1", Some("10.7.0.5"), "10.7.0.5"),
        ("eth2", None, "192.168.1.101"),
    ] {
        assert_eq!(by_name(name, earlier), expected, "{name}, earlier {earlier:?}");
    }
    let regex = choose_by(&host, by_regex(&[r"^192\.168\.1\.10"])).unwrap();
    assert_eq!(regex.address.to_string(), "192.168.1.101");
    let earlier = Some([192, 168, 1, 13].into());
    let regex = choose_by(&host, IfaceSpec { earlier, ..by_regex(&[r"^192\.168\.1\."]) }).unwrap();
    assert_eq!(regex.address.to_string(), "192.168.1.13");
    let named = IfaceSpec { iface: vec!["192.168.1.12".to_owned()], earlier, ..IfaceSpec::default() };
    assert_eq!(choose_by(&host, named).unwrap().address.to_string(), "192.168.1.12", "what is named counts");
    host.sh("ip addr del 192.168.1.101/24 dev eth2");
    assert_eq!(by_name("eth2", None), "192.168.1.100", "better than none");
}
