//! What the daemon serves over TCP, and where.

use std::sync::{Arc, Mutex, PoisonError};

use super::report::Shared;
use crate::events::Events;
use crate::flags::Flags;
use crate::health::Health;
use crate::listen::Service;
use crate::metrics::{Meters, Metrics, Sample, SampleSource};
use crate::page::Page;

/// What there is to tell of `meters` and `health`, and of the node that `shared` knows at the time.
pub(super) fn source(
    flags: &Flags,
    meters: &Meters,
    health: &Health,
    shared: &Arc<Mutex<Shared>>,
) -> SampleSource {
    let (store, health, shared) = (meters.store.clone(), health.clone(), Arc::clone(shared));
    let offloads = flags.offload.0.clone();
    Arc::new(move || Sample {
        problems: health.problems(),
        store_connected: store.is_connected(),
        ..shared.lock().unwrap_or_else(PoisonError::into_inner).sample(offloads.clone())
    })
}

/// What `flags` ask to be served.
pub(super) fn services(
    flags: &Flags,
    health: &Health,
    metrics: &Metrics,
    page: Page,
    events: &Events,
) -> Vec<Service> {
    let health_at = (flags.healthz_port != 0).then_some((flags.healthz_ip, flags.healthz_port).into());
    let metrics_at = match flags.metrics_port {
        Some(0) => None,
        Some(port) => Some((flags.metrics_ip, port).into()),
        None => health_at,
    };
    let mut services = Vec::new();
    let mut serve = |address, what, flag, router| {
        services.extend(Option::map(address, |address| Service { what, flag, address, router }));
    };
    serve(health_at, "/healthz and /readyz", "healthz-port", health.router());
    // Where the flag is not given, it is health that has the address.
    let flag = if flags.metrics_port.is_some() { "metrics-port" } else { "healthz-port" };
    serve(metrics_at, "/metrics", flag, metrics.router("/metrics"));
    if let Some(address) = flags.http {
        serve(Some(address), "the status page", "http", page.router(events, address));
    }
    services
}
