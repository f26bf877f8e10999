//! What Prometheus is told, in the OpenMetrics text format: `/metrics` on the address of health or one of its
//! own, and `/v1/metrics` on the control socket.
//!
//! Nothing is counted for it in the packet path: a scrape reads the counters that each worker keeps anyway.

mod collect;
mod host;
mod peers;
mod process;
mod sample;
mod writer;

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use overlay_leases::meters::Meters;

pub use host::{HostMeter, Repaired};
pub use peers::PeerSample;
pub use sample::{Sample, SampleSource};

/// All metrics of this daemon.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Registry>);

impl Metrics {
    /// Those of `meters` and `host`, and those of the state that `source` knows, with so many peers of their own.
    #[must_use]
    pub fn new(meters: &Meters, host: &HostMeter, source: SampleSource, peers: usize) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process::default()));
        let ours = registry.sub_registry_with_prefix("overlayd");
        meters.register(ours);
        host.register(ours);
        ours.register_collector(Box::new(collect::State::new(source, meters.lease.clone(), peers)));
        Self(Arc::new(registry))
    }

    /// Serves them at `path`: as OpenMetrics text, or in Prometheus's older format to those who know only that.
    pub fn router(&self, path: &str) -> Router {
        let metrics = self.clone();
        Router::new().route(path, get(async move |headers: HeaderMap| metrics.respond(&headers)))
    }

    /// All of them, as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.0);
        text
    }

    fn older_text(&self) -> String {
        let mut text = String::new();
        let _ = prometheus_text::encode(&mut text, &self.0);
        text
    }

    fn respond(&self, headers: &HeaderMap) -> Response {
        let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        let older = accepted.contains("text/plain") && !accepted.contains("application/openmetrics-text");
        match older {
            true => ([(CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], self.older_text()).into_response(),
            false => ([(CONTENT_TYPE, OPENMETRICS)], self.text()).into_response(),
        }
    }
}

/// The format's name, which Prometheus asks for first.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
