//! `/healthz` and `/readyz`, with flannel's codes and words (0.28, `main.go`), for what watches over the
//! host's services.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use parking_lot::Mutex;

/// The daemon's own judgement of its state.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// `None` before the first judgement.
    problems: Arc<Mutex<Option<Vec<String>>>>,
}

impl Health {
    /// What keeps the node from being ready; nothing makes it ready.
    pub fn set(&self, problems: Vec<String>) {
        *self.problems.lock() = Some(problems);
    }

    /// Those; `None` before the first judgement.
    #[must_use]
    pub fn problems(&self) -> Option<Vec<String>> {
        self.problems.lock().clone()
    }

    /// Serves `/healthz` and `/readyz`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "flanneld is running" }))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let problems = health.problems.lock();
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
}
