//! When the service manager is told that we are ready.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use overlay_node::service_manager;

/// Whoever tells it.
pub(super) struct Ready {
    task: Option<JoinHandle<()>>,
    /// Whether the store has had its say.
    confirmed: watch::Sender<bool>,
}

impl Ready {
    pub(super) fn new() -> Self {
        Self { task: None, confirmed: watch::channel(false).0 }
    }

    /// The store has had its say.
    pub(super) fn confirm(&self) {
        self.confirmed.send_replace(true);
    }

    /// Tells it once the subnet file is `written`, or cannot be, and the socket is `served`: who waits for us reads that
    /// file, docker's options above all. So the store is to have its say before, if it answers soon.
    pub(super) fn tell_after(
        &mut self,
        written: impl Future<Output = ()> + Send + 'static,
        served: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut confirmed = self.confirmed.subscribe();
        let task = tokio::spawn(async move {
            let _ = timeout(STORE_PATIENCE, confirmed.wait_for(|confirmed| *confirmed)).await;
            tokio::join!(written, served);
            service_manager::ready();
        });
        if let Some(before) = self.task.replace(task) {
            before.abort();
        }
    }
}

/// A store that answers does so by then.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
