//! `/healthz` and `/readyz`, with flannel's codes and words (0.28, `main.go`), for what watches over the
//! host's services.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::info;

/// The daemon's own judgement of its state.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// `None` before the first judgement.
    problems: Arc<Mutex<Option<Vec<String>>>>,
}

/// Health is being served, until this is dropped.
#[derive(Debug)]
pub struct HealthServer(JoinHandle<()>);

/// Health cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve /healthz at {address}: {source} (is a flanneld or another daemon using the port? choose another --healthz-port or --healthz-ip, or 0 for none)"
)]
pub struct HealthError {
    address: SocketAddr,
    source: io::Error,
}

impl Health {
    /// What keeps the node from being ready; nothing makes it ready.
    pub fn set(&self, problems: Vec<String>) {
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = Some(problems);
    }

    /// Serves it at `address`.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve(&self, address: SocketAddr) -> Result<HealthServer, HealthError> {
        let listener = TcpListener::bind(address).await.map_err(|source| HealthError { address, source })?;
        info!(%address, "serving /healthz and /readyz");
        let router = Router::new()
            .route("/healthz", get(|| async { "flanneld is running" }))
            .route("/readyz", get(readyz))
            .with_state(self.clone());
        Ok(HealthServer(tokio::spawn(async move {
            // `serve` ends with the task only: it retries what fails.
            let _ = axum::serve(listener, router).await;
        })))
    }
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let problems = health.problems.lock().unwrap_or_else(PoisonError::into_inner);
    match problems.as_deref() {
        Some([]) => (StatusCode::OK, "flanneld is ready".to_owned()),
        None => (StatusCode::SERVICE_UNAVAILABLE, NOT_READY.to_owned()),
        Some(problems) => (StatusCode::SERVICE_UNAVAILABLE, format!("{NOT_READY}: {}", problems.join("; "))),
    }
}

const NOT_READY: &str = "flanneld is not ready yet";

#[cfg(test)]
mod tests {
    use super::*;

    async fn ready(health: &Health) -> (u16, String) {
        let (code, text) = readyz(State(health.clone())).await;
        (code.as_u16(), text)
    }

    #[tokio::test]
    async fn ready_is_what_has_no_problems() {
        let health = Health::default();
        assert_eq!(ready(&health).await, (503, "flanneld is not ready yet".to_owned()));
        health.set(Vec::new());
        assert_eq!(ready(&health).await, (200, "flanneld is ready".to_owned()));
        health.set(vec!["nft is gone".to_owned(), "no lease".to_owned()]);
        assert_eq!(
            ready(&health).await,
            (503, "flanneld is not ready yet: nft is gone; no lease".to_owned())
        );
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = Health::default().serve(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--healthz-port"), "{error}");
    }
}
