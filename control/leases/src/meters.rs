//! What is counted where leases are asked for: the store's answers, and this node's lease.
//!
//! A handle is cheap to clone; all clones count together. One that nobody has registered counts for nobody.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    /// The store.
    pub store: StoreMeter,
    /// This node's lease.
    pub lease: LeaseMeter,
}

impl Meters {
    /// Has `registry` tell them.
    pub fn register(&self, registry: &mut Registry) {
        self.store.register(registry);
        self.lease.register(registry);
    }
}

/// How the store answers.
#[derive(Debug, Clone)]
pub struct StoreMeter {
    durations: Family<Operation, Histogram, fn() -> Histogram>,
    errors: Family<Operation, Counter>,
    watches: Counter,
    connected: Gauge,
}

type Operation = [(&'static str, String); 1];

/// When the lease was taken and renewed.
#[derive(Debug, Clone, Default)]
pub struct LeaseMeter {
    renewals: Counter,
    losses: Counter,
    times: Arc<Mutex<Option<LeaseTimes>>>,
}

/// The moments of a lease that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// When this process took it.
    pub taken: SystemTime,
    /// When it was renewed last, or taken.
    pub renewed: SystemTime,
    /// When it ends unless it is renewed; a reservation, or a lease in a directory, does not end.
    pub expires: Option<SystemTime>,
}

impl Default for StoreMeter {
    fn default() -> Self {
        Self {
            durations: Family::new_with_constructor(|| Histogram::new(STORE_BUCKETS)),
            errors: Family::default(),
            watches: Counter::default(),
            connected: Gauge::default(),
        }
    }
}

impl StoreMeter {
    fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "store_request_duration",
            "How long requests to the lease store took, with all attempts, by their first word in the log",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "store_errors",
            "Requests to the lease store that failed at every endpoint",
            self.errors.clone(),
        );
        registry.register(
            "store_watches",
            "How often following the store's changes was begun: once, and again after each interruption",
            self.watches.clone(),
        );
        registry.register(
            "store_connected",
            "Whether the store's changes are being followed at this moment",
            self.connected.clone(),
        );
    }

    /// Takes the time of `request`, whose first word in `action` is its name.
    ///
    /// # Errors
    /// Those of `request`, counted.
    pub async fn time<T, E>(
        &self,
        action: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begin = Instant::now();
        let result = request.await;
        let operation = [("operation", action.split(' ').next().unwrap_or_default().to_owned())];
        self.durations.get_or_create(&operation).observe(begin.elapsed().as_secs_f64());
        // The series is there from the first request on, so that a first error shows as a change.
        self.errors.get_or_create(&operation).inc_by(u64::from(result.is_err()));
        result
    }

    /// Following changes has begun, or again.
    pub fn watching(&self) {
        self.watches.inc();
    }

    /// Whether changes are being followed.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.get() == 1
    }

    /// Notes whether they are.
    pub fn set_connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }
}

impl LeaseMeter {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "lease_renewals",
            "How often this node's lease was renewed, or written with another address",
            self.renewals.clone(),
        );
        registry.register(
            "lease_losses",
            "How often the store turned out to have this node's lease no more",
            self.losses.clone(),
        );
    }

    /// The lease was taken, for so long if it ends at all.
    #[expect(clippy::disallowed_methods, reason = "metrics have dates")]
    pub fn taken(&self, lasts: Option<Duration>) {
        let now = SystemTime::now();
        self.set(Some(LeaseTimes { taken: now, renewed: now, expires: lasts.map(|ttl| now + ttl) }));
    }

    /// The lease was renewed, for so long if it ends at all.
    #[expect(clippy::disallowed_methods, reason = "metrics have dates")]
    pub fn renewed(&self, lasts: Option<Duration>) {
        self.renewals.inc();
        let now = SystemTime::now();
        let taken = self.times().map_or(now, |times| times.taken);
        self.set(Some(LeaseTimes { taken, renewed: now, expires: lasts.map(|ttl| now + ttl) }));
    }

    /// The store has the lease no more.
    pub fn lost(&self) {
        self.losses.inc();
        self.set(None);
    }

    /// Its moments; nothing while it is not held.
    #[must_use]
    pub fn times(&self) -> Option<LeaseTimes> {
        *self.times.lock()
    }

    fn set(&self, times: Option<LeaseTimes>) {
        *self.times.lock() = times;
    }
}

/// From an etcd on the same rack to the last moment before a request is given up (`store/etcd/cluster.rs`).
const STORE_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_keeps_its_beginning_when_it_is_renewed_and_has_none_when_it_is_lost() {
        let lease = LeaseMeter::default();
        lease.taken(Some(Duration::from_secs(60)));
        let first = lease.times().unwrap();
        assert_eq!(first.expires, Some(first.taken + Duration::from_secs(60)));
        lease.renewed(None);
        let second = lease.times().unwrap();
        assert_eq!((second.taken, second.expires), (first.taken, None));
        assert!(second.renewed >= first.renewed);
        lease.lost();
        assert_eq!(lease.times(), None);
    }

    fn told(meters: &Meters) -> String {
        let mut registry = Registry::with_prefix("overlayd");
        meters.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[tokio::test]
    async fn requests_are_counted_by_their_first_word_whether_they_succeed_or_not() {
        let meters = Meters::default();
        let good = meters.store.time("list /coreos.com/network/subnets/", async { Ok::<_, String>(7) }).await;
        assert_eq!(good, Ok(7));
        let clone = meters.store.clone();
        let bad = clone.time("list x", async { Err::<(), _>("no") });
        assert!(bad.await.is_err());
        let text = told(&meters);
        for line in [
            "overlayd_store_request_duration_seconds_count{operation=\"list\"} 2",
            "overlayd_store_errors_total{operation=\"list\"} 1",
            "overlayd_store_connected 0",
        ] {
            assert!(text.lines().any(|got| got == line), "no {line} in\n{text}");
        }
    }
}
