//! Every choice of offloads carries TCP and UDP, and is what the operator is told.

use integration::datagrams::Line;
use integration::noise::Noise;
use integration::{Backend, Pair, Site, Store, traffic};

#[test]
fn vxlan_works_with_each_offload_alone_and_with_each_left_out() {
    each_offload_alone_and_left_out(Backend::Vxlan);
}

#[test]
fn udp_works_with_each_offload_alone_and_with_each_left_out() {
    each_offload_alone_and_left_out(Backend::Udp);
}

fn each_offload_alone_and_left_out(backend: Backend) {
    let (site, worker, master) = Site::two_hosts();
    let (hosts, store) = ([&worker, &master], Store::dir(&site, backend));
    let mut pair = Pair::start(hosts, &store, &["--offload=off"]);
    for one in ALL {
        let others: Vec<_> = ALL.into_iter().filter(|other| *other != one).collect();
        for wanted in [vec![one], others] {
            println!("{backend:?} with {wanted:?}");
            pair = pair.restart(hosts, &store, &[&format!("--offload={}", wanted.join(","))]);
            for daemon in [&pair.left, &pair.right] {
                assert_eq!(daemon.status().offloads(), wanted);
            }
            carries_traffic(&pair);
        }
    }
}

#[track_caller]
fn carries_traffic(pair: &Pair<'_>) {
    let Pair { a, b, .. } = pair;
    traffic::transfer(&a.ns, &b.ns, b.address, 20);
    traffic::transfer(&b.ns, &a.ns, a.address, 20);
    for (from, to) in [(a, b), (b, a)] {
        let line = Line::new(&from.ns, &to.ns, to.address);
        let noise = Noise::default().octets(50_000);
        line.segmented(&noise, 1300);
        line.burst(&noise.chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
    pair.assert_nothing_dropped();
}

/// Sorted, as the daemon reports them. (`tunnel-gso` is for peers of another kind: see `tunnel_gso.rs`.)
const ALL: [&str; 4] = ["gro", "gso", "tso", "uso"];
