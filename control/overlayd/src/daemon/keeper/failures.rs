//! What workers say when they give up.

use std::io;
use std::sync::Arc;

use overlay::forwarder::OnFailure;
use tokio::sync::mpsc;

/// A worker has given up.
pub(super) struct Failure {
    pub(super) worker: String,
    pub(super) error: io::Error,
}

impl Failure {
    /// Whether the cause is that its device is gone.
    pub(super) fn is_for_its_device(&self) -> bool {
        self.error.raw_os_error() == Some(EBADFD)
    }
}

/// Those of the latest node's workers. The last words of others concern the node that they belonged to.
pub(super) struct Failures {
    /// How many nodes there have been.
    generation: u64,
    tell: mpsc::UnboundedSender<(u64, Failure)>,
    told: mpsc::UnboundedReceiver<(u64, Failure)>,
}

impl Failures {
    pub(super) fn new() -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self { generation: 0, tell, told }
    }

    /// What the workers of the next node tell; from now on it is the latest.
    pub(super) fn of_next_node(&mut self) -> OnFailure {
        self.generation += 1;
        let (generation, tell) = (self.generation, self.tell.clone());
        Arc::new(move |worker: &str, error: io::Error| {
            // The receiver is gone only when the daemon is stopping anyway.
            let _ = tell.send((generation, Failure { worker: worker.to_owned(), error }));
        })
    }

    /// The next one. May be cancelled.
    pub(super) async fn next(&mut self) -> Failure {
        loop {
            match self.told.recv().await {
                Some((generation, failure)) if generation == self.generation => return failure,
                Some(_) => {}
                // Not while there is a sender here.
                None => std::future::pending().await,
            }
        }
    }
}

/// What a TUN says once its device is gone (`drivers/net/tun.c`).
const EBADFD: i32 = 77;
