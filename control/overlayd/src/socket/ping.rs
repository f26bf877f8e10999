//! `GET /v1/ping?peer=ADDRESS&bytes=N&patience_ms=N`: one echo to the daemon of another node.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use overlay::echo;
use overlay::peer_state::PeerFlag;
use overlay_wire::ip::Version;
use serde::Deserialize;

use super::source::{Source, not_yet};
use overlay_api::ping::Answer;

/// What is asked.
#[derive(Debug, Deserialize)]
pub struct Question {
    /// An address in the subnet of the node, or its public address.
    peer: Ipv4Addr,
    /// The length of the inner packet, both ways; by default the shortest.
    bytes: Option<usize>,
    /// How long the answer is waited for, in milliseconds.
    patience_ms: Option<u64>,
}

const PATIENCE: Duration = Duration::from_secs(1);
/// Whoever asks for more wants to block the socket.
const MOST_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn ping(
    State(source): State<Arc<dyn Source>>,
    Query(Question { peer, bytes, patience_ms }): Query<Question>,
) -> Response {
    let Some(node) = source.node() else { return not_yet(source.as_ref()) };
    let Some(tunnel) = node.tunnel() else {
        return (StatusCode::CONFLICT, "this backend has no tunnel that an echo could go through")
            .into_response();
    };
    let plan = node.plan();
    if [plan.underlay.public_ip, plan.underlay.address].contains(&peer) || plan.subnet.contains(&peer) {
        let text = format!("{peer} is this node itself: ask another, of 'overlayctl peers'");
        return (StatusCode::NOT_FOUND, text).into_response();
    }
    let lease = node.peers().into_iter().map(|reached| reached.lease);
    let lease = lease.filter(|lease| lease.subnet.contains(&peer) || lease.attrs.public_ip == peer);
    let Some(lease) = lease.max_by_key(|lease| lease.subnet.prefix_len()) else {
        let text = format!("no node has {peer}: see 'overlayctl peers'");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let overlay_address = lease.subnet.network();
    let bytes = bytes.unwrap_or(0).clamp(echo::min_len(Version::V4), node.plan().mtu() as usize);
    let patience = patience_ms.map_or(PATIENCE, Duration::from_millis).min(MOST_PATIENCE);
    let state = tunnel.state(&lease).unwrap_or_default();
    let last_seen = state.totals().last_seen;
    let asked = tunnel.ping(overlay_address.into(), bytes);
    // Whoever waits must not keep a node that is to be taken down.
    drop(node);
    let round_trip = match asked {
        Ok(ping) => ping.answer(patience).await,
        // A full buffer loses it, like any packet.
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => {
            let text = format!("cannot send to {}: {error}", lease.attrs.public_ip);
            return (StatusCode::BAD_GATEWAY, text).into_response();
        }
    };
    if round_trip.is_some() {
        state.set(PeerFlag::Answers, true);
    }
    Json(Answer {
        overlay_address,
        public_ip: lease.attrs.public_ip,
        bytes,
        round_trip_us: round_trip.map(|time| time.as_secs_f64() * 1e6),
        last_seen_s: last_seen.map(|time| time.as_secs_f64()),
        answers: state.has(PeerFlag::Answers),
    })
    .into_response()
}
