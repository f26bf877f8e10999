//! The overlay at work on one machine: two hosts in namespaces, a router between them, a pod on
//! each, and traffic from pod to pod. `BACKEND` is `vxlan` (default) or `udp`; `STORE` is `dir`
//! (default) or `etcd`. Needs root. Leaves nothing behind, also when interrupted.

use std::error::Error;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Instant;

use integration::overlayd::{await_mesh, program};
use integration::traffic::{self, Throughput};
use integration::{Backend, Host, Namespace, Overlayd, Pod, Site, Store, guard};

fn main() -> ExitCode {
    match check().and_then(|(backend, engine)| run(backend, engine)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overlay-demo: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy)]
enum Engine {
    Directory,
    Etcd,
}

/// Reads the settings and looks for what the demonstration needs.
fn check() -> Result<(Backend, Engine), Box<dyn Error>> {
    let setting = |name: &str| std::env::var(name).unwrap_or_default();
    let backend = match setting("BACKEND").as_str() {
        "" | "vxlan" => Backend::Vxlan,
        "udp" => Backend::Udp,
        other => return Err(format!("BACKEND={other}: give vxlan or udp").into()),
    };
    let engine = match setting("STORE").as_str() {
        "" | "dir" => Engine::Directory,
        "etcd" => Engine::Etcd,
        other => return Err(format!("STORE={other}: give dir or etcd").into()),
    };
    if !rustix::process::geteuid().is_root() {
        return Err("making network namespaces takes root".into());
    }
    let mut needed = vec!["ip", "ping", "iperf3"];
    if matches!(engine, Engine::Etcd) {
        needed.extend(["etcd", "etcdctl"]);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in needed {
        if !std::env::split_paths(&path).any(|directory| directory.join(name).is_file()) {
            return Err(format!("{name} is not installed").into());
        }
    }
    Ok((backend, engine))
}

fn run(backend: Backend, engine: Engine) -> Result<(), Box<dyn Error>> {
    guard::clean_up_whatever_happens("overlay-demo")?;
    println!("{}", picture(backend));
    let begun = Instant::now();

    step(1, "two hosts that share no layer 2, and a router");
    let (site, worker, master) = Site::two_hosts();
    done(&format!("{} and {} know each other only by way of the router", worker.public_ip, master.public_ip));

    step(2, "the store of the leases");
    let store = match engine {
        Engine::Directory => Store::dir(&site, backend),
        Engine::Etcd => Store::etcd(&site, backend),
    };
    done(&match &store {
        Store::Dir(path) => format!("directory {}", path.display()),
        Store::Etcd(etcd) => format!("etcd at {}", etcd.endpoint),
    });
    println!("    config: {}", backend.config());

    step(3, "overlayd on both hosts, a pod on each");
    let (w, m) = (worker.overlayd(&store).start(), master.overlayd(&store).start());
    await_mesh(&[&w, &m]);
    let a = pod(&worker, &w);
    let b = pod(&master, &m);

    step(4, "ping, pod to pod");
    let round_trip = round_trip(&a.ns, b.address)?;
    done(&format!("{} → {}: round trip {round_trip} ms", a.address, b.address));

    step(5, "iperf3 over the overlay, one TCP stream, 5 s each way");
    let there = traffic::iperf3(&a.ns, &b.ns, b.address, "-t 5", worker.directory());
    done(&format!("worker → master  {}", gigabits(there)));
    let back = traffic::iperf3(&b.ns, &a.ns, a.address, "-t 5", worker.directory());
    done(&format!("master → worker  {}", gigabits(back)));

    step(6, "what the operator sees on the worker: overlayctl status");
    let table = worker.ns.ok(&format!("{} status", program("overlayctl").display()));
    table.lines().for_each(|line| println!("    {line}"));

    w.stop();
    m.stop();
    println!("\nSummary");
    println!("    backend     {}, MTU {} in the pods", name(backend), 1500 - backend.overhead());
    println!("    ping        {round_trip} ms");
    println!("    throughput  {} / {}", gigabits(there), gigabits(back));
    println!("    took        {:.1} s; all namespaces and files are removed", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Both hosts' way to the other, drawn.
fn picture(backend: Backend) -> String {
    let (device, port, name) = (backend.device(), backend.port(), name(backend));
    format!(
        "overlayd, {name} over UDP port {port}\n\
         \n\
         \x20     pod                                   pod\n\
         \x20      │ docker0                             │ docker0\n\
         \x20 ┌────┴─────┐  pod to pod, encapsulated  ┌────┴─────┐\n\
         \x20 │ {device:<9}│ ══════════════════════════ │ {device:<9}│\n\
         \x20 │  worker  │                            │  master  │\n\
         \x20 └────┬─────┘                            └────┬─────┘\n\
         \x20 192.168.1.12 ─────────── router ──────── 192.168.199.238"
    )
}

/// Brings up `docker0` and a pod from the daemon's subnet file.
fn pod(host: &Host, daemon: &Overlayd<'_>) -> Pod {
    let env = daemon.env();
    let pod = host.bridge_and_pod(&env);
    done(&format!("{} got {}, its pod is {}", host.name, env.base_with_length(), pod.address));
    pod
}

/// The average round trip of some pings, in milliseconds, as ping prints it.
fn round_trip(ns: &Namespace, address: Ipv4Addr) -> Result<String, Box<dyn Error>> {
    let text = ns.ok(&format!("ping -n -q -c 20 -i 0.02 -W 2 {address}"));
    let average = text.lines().find(|line| line.starts_with("rtt")).and_then(|line| line.split('/').nth(4));
    Ok(average.ok_or_else(|| format!("no round trip in: {text}"))?.to_owned())
}

fn gigabits(throughput: Throughput) -> String {
    format!("{:.2} Gbit/s", throughput.bits_per_second / 1e9)
}

fn name(backend: Backend) -> &'static str {
    match backend {
        Backend::Udp => "flannel's udp format",
        Backend::Vxlan => "VXLAN",
    }
}

fn step(number: u32, title: &str) {
    println!("\n[{number}/6] {title}");
}

fn done(what: &str) {
    println!("    ✓ {what}");
}
