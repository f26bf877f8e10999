//! What can be asked, noun by noun; the shapes are in [`overlay_api`].

mod drops;
mod leases;
mod offloads;
mod peers;
mod routes;
mod stats;

use std::fmt::Display;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::source::{Facts, Source, not_yet};
use super::{capture, ping, trace};
use overlay_api::config::Config;
use overlay_node::Node;

type Asked = State<Arc<dyn Source>>;

/// Everything below `/v1`.
pub(super) fn router(source: Arc<dyn Source>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/peers", get(peers))
        .route("/v1/leases", get(leases))
        .route("/v1/routes", get(routes))
        .route("/v1/drops", get(drops))
        .route("/v1/stats", get(stats))
        .route("/v1/config", get(config))
        .route("/v1/offloads", get(offloads))
        .route("/v1/ping", get(ping::ping))
        .route("/v1/capture", get(capture::capture))
        .route(overlay_api::trace::RESOURCE, post(trace::trace))
        .with_state(source)
}

async fn status(State(source): Asked) -> Response {
    source.status().map_or_else(|| not_yet(source.as_ref()), |status| Json(status).into_response())
}

async fn peers(State(source): Asked) -> Response {
    of_node(source.as_ref(), |node, facts| peers::peers(node, at_ms(facts)))
}

async fn leases(State(source): Asked) -> Response {
    let (Some(view), Some(facts)) = (source.view(), source.facts()) else { return not_yet(source.as_ref()) };
    or_bad_gateway(leases::leases(facts.leases.as_ref(), &view).await)
}

async fn routes(State(source): Asked) -> Response {
    let Some(node) = source.node() else { return not_yet(source.as_ref()) };
    or_bad_gateway(routes::routes(&node).await)
}

async fn drops(State(source): Asked) -> Response {
    of_node(source.as_ref(), |node, _| drops::drops(node.tunnel()))
}

async fn stats(State(source): Asked) -> Response {
    of_node(source.as_ref(), |node, facts| stats::stats(node.tunnel(), at_ms(facts)))
}

async fn config(State(source): Asked) -> Response {
    let (Some(view), Some(facts)) = (source.view(), source.facts()) else { return not_yet(source.as_ref()) };
    let network = serde_json::from_str(&view.config_text).unwrap_or_default();
    let flags = facts.settings.clone();
    Json(Config { version: env!("CARGO_PKG_VERSION").to_owned(), flags, network }).into_response()
}

async fn offloads(State(source): Asked) -> Response {
    of_node(source.as_ref(), |node, facts| offloads::offloads(node, &facts.offloads))
}

fn of_node<T: serde::Serialize>(source: &dyn Source, answer: impl FnOnce(&Node, &Facts) -> T) -> Response {
    match (source.node(), source.facts()) {
        (Some(node), Some(facts)) => Json(answer(&node, &facts)).into_response(),
        _ => not_yet(source),
    }
}

fn or_bad_gateway<T: serde::Serialize>(answer: Result<T, impl Display>) -> Response {
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn at_ms(facts: &Facts) -> u64 {
    u64::try_from(facts.started.elapsed().as_millis()).unwrap_or(u64::MAX)
}
