//! What the daemon serves: over TCP, and on its control socket. Without them it forwards all the same, and tries again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::report::Shared;
use crate::events::Events;
use crate::health::Health;
use crate::listen::{self, Group, Service};
use crate::metrics::{Metrics, Sample, SampleSource};
use crate::page::Page;
use crate::problems::{Part, Problems};
use crate::socket::ControlSocket;
use overlay_api::path;
use overlay_flags::Flags;
use overlay_leases::meters::Meters;
use overlay_support::backoff::Backoff;
use overlay_support::problem::Problem;

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
        ..shared.lock().sample(offloads.clone())
    })
}

/// What `flags` ask to be served.
fn services(flags: &Flags, health: &Health, metrics: &Metrics, page: Page, events: &Events) -> Vec<Service> {
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

/// The tasks that serve.
pub(super) struct Serving {
    /// What the control socket is named after.
    name: watch::Sender<String>,
    /// By which name it was tried to serve it.
    tried: watch::Receiver<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Serves over TCP what `flags` ask for, and on a control socket that is named after the device, or, while that is
    /// not known, after this process.
    pub(super) fn start(
        flags: &Flags,
        health: &Health,
        metrics: &Metrics,
        page: Page,
        events: &Events,
        shared: &Arc<Mutex<Shared>>,
        problems: &Problems,
    ) -> Self {
        let groups = listen::groups(services(flags, health, metrics, page, events));
        let mut tasks: Vec<_> =
            groups.into_iter().map(|group| tokio::spawn(serve(group, problems.clone()))).collect();
        let (name, names) = watch::channel(path::waiting());
        let (tell, tried) = watch::channel(String::new());
        let socket = Socket {
            shared: Arc::clone(shared),
            others: metrics.router("/v1/metrics").merge(events.router()),
            group: flags.control_socket_group,
            problems: problems.clone(),
        };
        tasks.push(tokio::spawn(socket.run(names, tell)));
        Self { name, tried, tasks }
    }

    /// Names the control socket after `device` from now on.
    pub(super) fn name(&self, device: &str) {
        self.name.send_if_modified(|name| {
            let differs = name != device;
            device.clone_into(name);
            differs
        });
    }
}

impl Serving {
    /// Ends when the control socket is served by its name, or has failed to be, or has not for a second.
    pub(super) fn socket_tried(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut tried, name) = (self.tried.clone(), self.name.borrow().clone());
        async move {
            let _ = timeout(PATIENCE, tried.wait_for(|tried| *tried == name)).await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Serves `group`, as soon as its address is to be had.
async fn serve(group: Group, problems: Problems) {
    let mut pauses = Backoff::of_this_host();
    let part = Part::Served(group.flag());
    let _served = loop {
        match group.serve().await {
            Ok(listener) => break listener,
            Err(error) => problems.report(part, Some(Problem::io(error.system(), &error))),
        }
        sleep(pauses.pause()).await;
    };
    problems.report(part, None);
    std::future::pending::<()>().await;
}

/// The control socket.
struct Socket {
    shared: Arc<Mutex<Shared>>,
    others: axum::Router,
    group: Option<u32>,
    problems: Problems,
}

impl Socket {
    /// Serves it by the latest name.
    async fn run(self, mut names: watch::Receiver<String>, tried: watch::Sender<String>) {
        // Others' directories are none of this thread's to wait for.
        let _ = spawn_blocking(path::remove_dead).await;
        let mut pauses = Backoff::of_this_host();
        loop {
            let name = names.borrow_and_update().clone();
            let outcome = self.serve(&name).await;
            tried.send_replace(name);
            let failed = outcome.is_err();
            let served = match outcome {
                Ok(socket) => {
                    self.problems.report(Part::Socket, None);
                    pauses.reset();
                    Some(socket)
                }
                Err(problem) => {
                    self.problems.report(Part::Socket, Some(problem));
                    None
                }
            };
            tokio::select! {
                changed = names.changed() => if changed.is_err() { return },
                () = sleep(pauses.pause()), if failed => {}
            }
            drop(served);
        }
    }

    async fn serve(&self, name: &str) -> Result<ControlSocket, Problem> {
        let path = path::socket(name).map_err(|error| {
            Problem::io(&error, format_args!("the network namespace cannot be told: {error}"))
        })?;
        let problem = |path: &Path, error| {
            Problem::io(&error, format_args!("cannot serve the control socket {}: {error}", path.display()))
        };
        let socket = ControlSocket::serve(&path, Arc::clone(&self.shared) as _, self.others.clone())
            .await
            .map_err(|error| problem(&path, error))?;
        if let Some(group) = self.group
            && let Err(error) = socket.give_to(group)
        {
            warn!(group, %error, "the control socket stays with the group that overlayd runs as: in its unit, SupplementaryGroups= makes it a member of another");
        }
        Ok(socket)
    }
}

/// How long a control socket is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
