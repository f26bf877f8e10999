//! The metrics, as a scrape of a daemon that has something of everything shows them.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use overlay::offload::Offload;
use overlay::peer_state::PeerTotals;
use overlay::stats::Totals;
use overlay_leases::meters::Meters;
use overlayd::metrics::{HostMeter, Metrics, PeerSample, Sample};

use super::{WRITTEN, cell, code, table};

pub(super) fn document() -> Result<String, String> {
    let families = families(&scrape()?);
    Ok(format!("# Metrics\n\n{WRITTEN}{ABOUT}{}", table(["metric", "kind", "labels", "what"], families)))
}

/// A row for each family of `scrape`, in its order.
fn families(scrape: &str) -> Vec<[String; 4]> {
    let mut rows: Vec<[String; 4]> = Vec::new();
    let mut family = "";
    for line in scrape.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            family = name;
            rows.push([code(name), String::new(), String::new(), cell(help.trim_end_matches('.'))]);
            continue;
        }
        let Some([name, kind, labels, _]) = rows.last_mut() else { continue };
        if let Some((_, of)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            of.clone_into(kind);
            match of {
                "counter" => *name = code(&format!("{family}_total")),
                "info" => *name = code(&format!("{family}_info")),
                _ => {}
            }
        } else if let Some((_, series)) = line.split_once('{')
            && labels.is_empty()
        {
            // A histogram's own label says which bucket it is.
            let names = series.split("=\"").map(|part| part.rsplit([',', '"']).next().unwrap_or_default());
            let names: Vec<String> = names.filter(|name| is_label(name)).map(code).collect();
            *labels = names.join(", ");
        }
    }
    rows
}

fn is_label(name: &str) -> bool {
    name != "le" && !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// What a daemon with a lease, a tunnel and a peer tells.
fn scrape() -> Result<String, String> {
    let (meters, host) = (Meters::default(), HostMeter::default());
    host.built();
    meters.lease.taken(Some(Duration::from_secs(86_400)));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .map_err(|error| format!("no runtime: {error}"))?
        .block_on(meters.store.time("check", async { Ok::<_, ()>(()) }))
        .map_err(|()| "a request that cannot fail has failed")?;
    let status = serde_json::from_str(STATUS).map_err(|error| format!("the sample of a status: {error}"))?;
    let sample = Sample {
        status: Some(status),
        totals: Some((Totals::default(), Totals::default())),
        peers: vec![peer()?],
        offloads: Offload::ALL.into(),
        problems: Some(Vec::new()),
        store_connected: true,
    };
    let metrics = Metrics::new(&meters, &host, Arc::new(move || sample.clone()), 1);
    with_worker(|| metrics.text())
}

fn peer() -> Result<PeerSample, String> {
    let said = |error: &dyn std::fmt::Display| format!("the sample of a peer: {error}");
    let mut totals =
        PeerTotals { last_seen: Some(Duration::ZERO), path_mtu: Some(1400), ..PeerTotals::default() };
    // Only peers with traffic have series of their own.
    totals.egress.packets = 1;
    Ok(PeerSample {
        subnet: "10.1.63.0/24".parse().map_err(|error| said(&error))?,
        public_ip: "192.168.199.238".parse().map_err(|error| said(&error))?,
        totals,
    })
}

/// Calls `look` while a thread is named as a worker of the data plane is.
fn with_worker<T>(look: impl FnOnce() -> T) -> Result<T, String> {
    let (stop, stopped) = mpsc::channel::<()>();
    let (started, running) = mpsc::channel();
    let worker = thread::Builder::new().name("egress-0".to_owned()).spawn(move || {
        let _ = started.send(());
        let _ = stopped.recv();
    });
    let worker = worker.map_err(|error| format!("no thread: {error}"))?;
    let _ = running.recv();
    let seen = look();
    drop(stop);
    let _ = worker.join();
    Ok(seen)
}

/// A node with a tunnel, as the control socket tells it.
const STATUS: &str = r#"{
    "version": "", "device": {"name": "flannel.1", "mtu": 1450, "queues": 1, "address": "10.1.9.0"},
    "backend": {"type": "udp", "port": 8285}, "network": "10.1.0.0/16",
    "lease": {"subnet": "10.1.9.0/24", "public_ip": "192.168.1.12", "state": "held"},
    "store": {"kind": "dir", "where": "", "connected": true}, "peers": [],
    "ignored_leases": 0, "garbage_leases": 0, "refused_leases": 0, "refused": [],
    "offloads": {"gso": true}, "source_check": "strict",
    "counters": {"egress": {"packets": 0, "bytes": 0}, "ingress": {"packets": 0, "bytes": 0}},
    "drops": {"egress": {}, "ingress": {}}, "icmp_sent": 0, "host": {"restored": 0, "problems": []}
}"#;

const ABOUT: &str = "
[Operate](../operate.md#metrics) says where they are served. Counters begin with the data plane. They count inner packets,
as many as the wire sees, in bytes without encapsulation. `egress` is from the overlay device to the wire, `ingress` from
the wire to the device. A histogram has the series `…_bucket`, `…_sum` and `…_count`.

- `dropped_packets`: every [reason](drop-reasons.md) has its series from the start.
- `peer_…`: the first peers with traffic (`--metrics-peers`) have series of their own, as long as they are peers. All
  others are summed up as `subnet=\"other\"`.
- `lease_expiry_timestamp`: a reservation or a directory's lease has no end, and no such series.
- `store_…`: `operation=\"check\"` is what etcd is asked every 5 s while all is quiet.
- `host_repairs`: `kind` is `device`, `link` (address, MTU, settings, routes) or `rules`.
- `offload_wanted` without `offload_enabled` is a fallback.
";
