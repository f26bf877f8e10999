//! The workers: for each queue of the device one thread in each direction.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::answers::{Answers, RawSocket};
use crate::egress::Egress;
use crate::error::SetupError;
use crate::ingress::{Ingress, SourceCheck};
use crate::stats::{Totals, WorkerStats};
use crate::sys::wake::StopFlag;
use crate::table::SharedTable;
use crate::tun::TunQueue;
use crate::underlay::udp::{self, UdpReceiver, UdpTransmitter};

/// What the forwarder stands between, and how strict it is.
pub struct Config {
    /// The overlay device, one queue for each pair of workers.
    pub queues: Vec<TunQueue>,
    /// The address and port that peers send to.
    pub listen: SocketAddrV4,
    /// What is asked of sources.
    pub source_check: SourceCheck,
    /// The network's state; the forwarder follows what is published there.
    pub table: SharedTable,
}

/// Running workers. They stop when this is dropped.
pub struct Forwarder {
    stop: Arc<StopFlag>,
    threads: Vec<JoinHandle<()>>,
    egress: Vec<Arc<WorkerStats>>,
    ingress: Vec<Arc<WorkerStats>>,
}

/// Told once for each worker that had to give up: its name and why.
pub type OnFailure = Arc<dyn Fn(&str, std::io::Error) + Send + Sync>;

impl Forwarder {
    /// Starts the workers. `on_failure` is called from a worker that cannot go on, for instance
    /// since the device has been deleted.
    ///
    /// # Errors
    /// A socket or a thread is not to be had; nothing runs then.
    pub fn start(config: Config, on_failure: &OnFailure) -> Result<Self, SetupError> {
        let count = config.queues.len();
        let setup = |call, source| SetupError {
            call,
            object: format!("for {count} workers"),
            remedy: "raise the limit of open files or of processes",
            source,
        };
        let icmp = RawSocket::open()?;
        let sockets = udp::open(config.listen, count)?;
        let stop = Arc::new(StopFlag::new().map_err(|source| setup("create an eventfd", source))?);
        let mut forwarder =
            Self { stop, threads: Vec::with_capacity(2 * count), egress: Vec::new(), ingress: Vec::new() };
        for (index, (queue, socket)) in config.queues.into_iter().zip(sockets).enumerate() {
            let queue_in = queue.try_clone().map_err(|source| setup("duplicate a queue", source))?;
            let socket_in = socket.try_clone().map_err(|source| setup("duplicate a socket", source))?;
            let answers = || Answers::new(Box::new(icmp.clone()));

            let stats = Arc::<WorkerStats>::default();
            forwarder.egress.push(Arc::clone(&stats));
            let wire = UdpTransmitter::new(socket);
            let egress = Egress::new(queue, wire, config.table.reader(), answers(), stats, udp::BATCH);
            forwarder
                .spawn(format!("egress-{index}"), on_failure, move |stop| egress.run(stop))
                .map_err(|source| setup("start a thread", source))?;

            let stats = Arc::<WorkerStats>::default();
            forwarder.ingress.push(Arc::clone(&stats));
            let wire = UdpReceiver::new(socket_in);
            let check = config.source_check;
            let ingress = Ingress::new(queue_in, wire, check, config.table.reader(), answers(), stats);
            forwarder
                .spawn(format!("ingress-{index}"), on_failure, move |stop| ingress.run(stop))
                .map_err(|source| setup("start a thread", source))?;
        }
        Ok(forwarder)
    }

    /// The counters of each worker from the device to the wire.
    #[must_use]
    pub fn egress(&self) -> Vec<Totals> {
        self.egress.iter().map(|stats| stats.totals()).collect()
    }

    /// The counters of each worker from the wire to the device.
    #[must_use]
    pub fn ingress(&self) -> Vec<Totals> {
        self.ingress.iter().map(|stats| stats.totals()).collect()
    }

    fn spawn(
        &mut self,
        name: String,
        on_failure: &OnFailure,
        run: impl FnOnce(&StopFlag) -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let stop = Arc::clone(&self.stop);
        let on_failure = Arc::clone(on_failure);
        let thread = Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = run(&stop) {
                on_failure(&name, error);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.raise();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so itself, and there is nothing left to stop.
            let _ = thread.join();
        }
    }
}
