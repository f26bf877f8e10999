//! A daemon with nothing to forward leaves the processor alone. `make test-full` runs this with the release build:
//! what a control plane without optimisation takes is no measure of what an operator's processor has to give.

use std::time::{Duration, Instant};

use integration::{Backend, Pair, Site, Store, traffic};

#[test]
fn full_idle_daemons_use_hardly_any_processor_time() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        let (site, worker, master) = Site::two_hosts();
        let store = Store::dir(&site, backend);
        let mut pair = Pair::start([&worker, &master], &store, &[]);
        // Having been busy, each worker has to find its way back to sleep.
        traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 50);
        let used = |pair: &mut Pair| [pair.left.process().cpu_time(), pair.right.process().cpu_time()];
        // What is idle is idle in one of a few windows, whatever stray packet comes in another.
        let mut shares = Vec::new();
        let idle = (0..3).any(|_| {
            let (before, start) = (used(&mut pair), Instant::now());
            std::thread::sleep(WINDOW);
            let (after, window) = (used(&mut pair), start.elapsed().as_secs_f64());
            let share = [0, 1].map(|daemon| (after[daemon] - before[daemon]).as_secs_f64() / window);
            shares.push(share);
            share.iter().all(|share| *share < LIMIT)
        });
        assert!(idle, "{backend:?}: the daemons used {shares:?} of a core");
        println!("{backend:?}: the daemons used {shares:?} of a core");
    }
}

/// As long as the daemon's slowest habit takes: it checks the firewall every five seconds.
const WINDOW: Duration = Duration::from_secs(5);
/// Of one core, for each daemon.
const LIMIT: f64 = 0.005;
