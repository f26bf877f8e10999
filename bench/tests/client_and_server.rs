//! Client and server on the loopback of one namespace, where nothing is lost.

use bench::client::{Measured, Target, measure};
use bench::plan::Scenario;
use bench::server::{Ports, Server};
use integration::Namespace;
use integration::traffic::await_listening;

#[test]
fn what_is_sent_is_what_is_counted() {
    let ns = Namespace::new("loopback");
    let _server = ns.within(|| Server::start(PORTS)).unwrap();
    for (scenario, len) in [(Scenario::Loss64, 64), (Scenario::Loss1400, 1400), (Scenario::Loss64, 64)] {
        let measured = run(&ns, scenario);
        let sent = measured.sent.expect("a number of datagrams");
        assert!((900..=1100).contains(&sent), "{sent} in half a second, at 2,000 a second");
        assert_eq!((measured.value, measured.packets, measured.bytes), (0.0, Some(sent), sent * len));
    }
}

#[test]
fn requests_are_answered_one_by_one() {
    let ns = Namespace::new("loopback");
    let _server = ns.within(|| Server::start(PORTS)).unwrap();
    for scenario in [Scenario::TcpRtt, Scenario::UdpRtt] {
        let measured = run(&ns, scenario);
        let sent = measured.sent.expect("a number of requests");
        assert!(sent > 10 && measured.packets == Some(2 * sent), "{measured:?}");
        let round_trip = measured.round_trip.expect("round trips");
        assert_eq!(measured.value, round_trip.p50 as f64);
        assert!(round_trip.max as f64 <= measured.seconds * 1e9, "{measured:?}");
    }
    let measured = run(&ns, Scenario::Ping);
    let round_trip = measured.round_trip.expect("round trips");
    assert!(measured.packets == measured.sent.map(|sent| 2 * sent), "{measured:?}");
    assert!(measured.value == round_trip.mean as f64 && round_trip.mean <= round_trip.max, "{measured:?}");
    let measured = run(&ns, Scenario::Connect);
    assert!(measured.sent > Some(10) && measured.packets.is_none(), "{measured:?}");
}

#[test]
fn streams_go_both_ways() {
    let ns = Namespace::new("loopback");
    // Every kernel has it, and none for a default.
    ns.ok("sysctl -w net.ipv4.tcp_congestion_control=reno");
    let mut server = ns.within(|| Server::start(PORTS)).unwrap();
    await_listening(&ns, PORTS.iperf3());
    for scenario in [Scenario::Tcp4, Scenario::TcpReverse, Scenario::TcpBoth] {
        let measured = run(&ns, scenario);
        assert!(measured.value > 1e6 && measured.bytes > 1_000_000, "{scenario}: {measured:?}");
        assert_eq!(measured.congestion.as_deref(), Some("reno"));
    }
    server.check().unwrap();
}

#[test]
fn nobody_there_is_an_error_that_says_where() {
    let ns = Namespace::new("loopback");
    for scenario in [Scenario::TcpRtt, Scenario::Connect, Scenario::UdpRtt, Scenario::Udp64, Scenario::Tcp1] {
        let error = ns.within(|| measure(scenario, &TARGET)).unwrap_err();
        assert!(format!("{error:#}").contains("refused"), "{scenario}: {error:#}");
    }
}

#[track_caller]
fn run(ns: &Namespace, scenario: Scenario) -> Measured {
    let result = ns.within(|| measure(scenario, &TARGET));
    result.unwrap_or_else(|error| panic!("{scenario}: {error:#}"))
}

const PORTS: Ports = Ports(5201);
const TARGET: Target = Target {
    address: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    ports: PORTS,
    seconds: 1.0,
    udp_rate: 2_000,
};
