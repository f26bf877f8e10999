//! The program, run as a user runs it: short, and with no word about how fast anything was.

use std::path::Path;
use std::process::{Command, Output};

use bench::client::Target;
use bench::ground::Ground;
use bench::plan::{HostLoad, Place, Subject, Topology, Wire};
use bench::record::{Record, Sample};
use bench::server::{Ports, Server};
use bench::subject::{Running, Settings};
use bench::wire;
use integration::process::Process;
use integration::traffic::await_listening;
use integration::{Namespace, SOON, await_until};
use rustix::process::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_overlay-bench");
const SHORT: [&str; 4] = ["--rounds", "1", "--seconds", "1"];

#[test]
fn two_scenarios_of_two_subjects_in_namespaces() {
    let directory = tempfile::tempdir().unwrap();
    let files = ["run.json", "run.md", "run.html"].map(|name| directory.path().join(name));
    let output = Command::new(PROGRAM)
        .args(["run", "--load", "busy", "--wires", "plain", "--scenarios", "tcp-1,udp-rtt"])
        .args(["--subjects", "kernel-vxlan,overlayd-vxlan", "--overlayd-flags", "-v=1"])
        .args(SHORT)
        .args([&"--json".as_ref(), &files[0].as_os_str(), &"--markdown".as_ref(), &files[1].as_os_str()])
        .args([&"--html".as_ref(), &files[2].as_os_str()])
        .output()
        .unwrap();
    assert_success(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("routed/plain: TCP throughput") && text.contains("× kernel-vxlan"), "{text}");

    let record = read(&files[0]);
    assert_eq!(record.load, HostLoad::Busy);
    assert_eq!(
        record.samples.iter().map(name).collect::<Vec<_>>(),
        [
            "routed/plain kernel-vxlan tcp-1",
            "routed/plain kernel-vxlan udp-rtt",
            "routed/plain overlayd-vxlan tcp-1",
            "routed/plain overlayd-vxlan udp-rtt",
        ]
    );
    assert!(record.samples.iter().all(|sample| sample.round == 1 && sample.measured.value > 0.0));
    assert!(record.samples[0].cost.is_none() && record.samples[0].measured.retransmits.is_some());
    let cost = record.samples[2].cost.expect("what the daemons spent");
    assert!(cost.cpu_seconds > 0.0 && cost.resident > 1 << 20, "{cost:?}");
    let longest = record.samples[3].measured.round_trip.expect("round trips");
    assert!(longest.p50 <= longest.p99 && longest.p99 <= longest.max, "{longest:?}");
    let ratio = |index: usize| record.summary[index].ratio.map(|ratio| ratio.median);
    assert_eq!(ratio(0), None);
    let expected = record.samples[2].measured.value / record.samples[0].measured.value;
    // Reading JSON may change a number's last digit.
    assert!(
        ratio(2).is_some_and(|ratio| (ratio / expected - 1.0).abs() < 1e-9),
        "{expected}: {:?}",
        ratio(2)
    );
    assert!(!record.remarks.iter().any(|remark| remark.contains("not plain")), "{:?}", record.remarks);

    for file in &files[1..] {
        let report = std::fs::read_to_string(file).unwrap();
        assert!(report.contains("overlayd-vxlan") && report.contains(&record.machine.kernel), "{report}");
        assert!(report.contains("ordinary processor hogs") && report.contains("busy host"), "{report}");
    }
}

/// Whatever carries the packets takes for its own what the client's host puts on the wire.
#[test]
fn what_is_put_on_the_wire_arrives_by_every_overlay() {
    let ports = Ports(5201);
    for subject in [Subject::None, Subject::KernelVxlan, Subject::OverlaydUdp, Subject::OverlaydXdp] {
        let ground = Ground::build(Place { topology: Topology::Link, wire: Wire::Plain });
        let running = Running::start(subject, &ground, &Settings::default());
        let _server = running.server.ns.within(|| Server::start(ports)).unwrap();
        let target = Target { address: running.server.address.into(), ports, seconds: 0.2, udp_rate: 0 };
        for flows in [1, 64] {
            let measured = wire::measure(&running, 64, flows, &target).unwrap();
            let (sent, arrived) = (measured.sent.unwrap(), measured.packets.unwrap());
            assert!(64 <= arrived && arrived <= sent, "{subject}, {flows} flows: {measured:?}");
            assert_eq!(measured.bytes, 64 * arrived);
        }
    }
}

/// Both hosts have the program installed; one serves, the other measures over the overlay, where the
/// first is known by its bridge's address, and beside it.
#[test]
fn between_two_hosts_over_the_overlay_and_beside_it() {
    let ground = Ground::build(Place { topology: Topology::Routed, wire: Wire::Veth });
    let _running = Running::start(Subject::OverlaydVxlan, &ground, &Settings::default());
    let (worker, master) = (&ground.worker, &ground.master);
    let mut serve = master.ns.command(PROGRAM);
    serve.arg("serve");
    let mut server = Process::spawn("serve", serve, master.directory());
    for port in [5201, 5204] {
        await_listening(&master.ns, port);
    }

    let bridge = address_of(&master.ns, "docker0");
    let file = worker.directory().join("run.json");
    let beside = master.public_ip.to_string();
    let output = worker
        .ns
        .command(PROGRAM)
        .args(["run", "--to", &bridge, "--beside", &beside, "--scenarios", "udp-64,tcp-rtt,connect"])
        .args(SHORT)
        .args(["--json".as_ref(), file.as_os_str()])
        .output()
        .unwrap();
    assert_success(&output);

    let record = read(&file);
    let names: Vec<_> = record.samples.iter().map(name).collect();
    let expected = ["overlay", "beside"]
        .map(|way| ["udp-64", "tcp-rtt", "connect"].map(|scenario| format!("installed {way} {scenario}")));
    assert_eq!(names, expected.as_flattened());
    assert_eq!(record.baseline.as_deref(), Some("beside"));
    assert!(record.samples.iter().all(|sample| sample.measured.value > 0.0 && sample.cost.is_none()));
    assert!(record.summary[..3].iter().all(|row| row.ratio.is_some()));

    assert_eq!(server.terminate(SOON).code(), Some(0), "{}", server.log());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--subjects", "kernel-vxlan", "--scenarios", "tcp-1", "--seconds", "60"]);
    let mut run = Process::spawn("run", command, directory.path());
    let prefix = format!("ovl-{}-", run.id());
    await_until(SOON, "the measurement to begin", || {
        namespaces(&prefix).iter().any(|name| name.ends_with("master-pod0"))
    });
    run.signal(Signal::INT);
    let status = run.wait(SOON);
    assert_eq!(status.code(), Some(130), "{}", run.log());
    assert_eq!(namespaces(&prefix), [""; 0]);
}

#[test]
fn a_daemon_that_does_not_start_is_reported_with_its_own_words() {
    let run = |flags: &[&str]| Command::new(PROGRAM).arg("run").args(flags).output().unwrap();
    let output = run(&["--subjects", "overlayd-vxlan", "--overlayd-flags=--no-such-flag"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("overlay-bench: ") && error.contains("no-such-flag"), "{error}");

    let output = run(&["--to", "127.0.0.1", "--port", "9", "--scenarios", "connect"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("nothing could be measured: connect to 127.0.0.1:11"), "{error}");
}

fn assert_success(output: &Output) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&text));
}

fn read(file: &Path) -> Record {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn name(sample: &Sample) -> String {
    format!("{} {} {}", sample.key.place, sample.key.subject, sample.key.scenario)
}

fn address_of(ns: &Namespace, device: &str) -> String {
    let shown = ns.ok(&format!("ip -4 -o address show dev {device}"));
    let address = shown.split("inet ").nth(1).and_then(|rest| rest.split('/').next());
    address.unwrap_or_else(|| panic!("no address in {shown}")).to_owned()
}

fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}
