//! `GET /v1/capture?…`: packets as they pass, as a pcapng file without end, or with one if bounds are given.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use overlay::capture::{Capturing, Filter, Layer, MOST, Tap};
use overlay::peer_state::Direction;
use tokio::sync::mpsc;

use super::source::{Source, not_yet};
use overlay_api::capture::Question;
use overlay_api::pcapng;

/// As long as any packet is.
const WHOLE: usize = 65_535 + 64;
/// How often a capture looks whether anybody still wants it.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes handed to the reader at a time, if there are so many.
const CHUNK: usize = 256 << 10;

pub(super) async fn capture(
    State(source): State<Arc<dyn Source>>,
    Query(question): Query<Question>,
) -> Response {
    let Some(node) = source.node() else { return not_yet(source.as_ref()) };
    let Some(tunnel) = node.tunnel() else {
        return (StatusCode::CONFLICT, "this backend has no tunnel that packets pass").into_response();
    };
    let filter = match filter(&question) {
        Ok(filter) => filter,
        Err(error) => return (StatusCode::BAD_REQUEST, error).into_response(),
    };
    let Some(capturing) = Tap::open(&tunnel.forwarder().watched().tap, filter) else {
        let text = format!("{MOST} captures are running, and no more are at a time");
        return (StatusCode::CONFLICT, text).into_response();
    };
    let interface = if question.outer { node.plan().underlay.name.clone() } else { node.plan().device() };
    let (out, blocks) = mpsc::channel(64);
    let thread = std::thread::Builder::new().name("capture".to_owned());
    let spawned = thread.spawn(move || write(capturing, &question, &interface, &out));
    if let Err(error) = spawned {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("cannot start a thread: {error}")).into_response();
    }
    let next = |mut blocks: mpsc::Receiver<Bytes>| async move {
        blocks.recv().await.map(|block| (Ok::<_, std::io::Error>(block), blocks))
    };
    let body = Body::from_stream(stream::unfold(blocks, next));
    ([(header::CONTENT_TYPE, "application/x-pcapng")], body).into_response()
}

fn filter(question: &Question) -> Result<Filter, String> {
    let direction = match question.direction.as_deref() {
        None => None,
        Some("egress") => Some(Direction::Egress),
        Some("ingress") => Some(Direction::Ingress),
        Some(other) => return Err(format!("direction is egress or ingress, not {other}")),
    };
    Ok(Filter {
        layer: if question.outer { Layer::Outer } else { Layer::Inner },
        drops_only: question.drops,
        direction,
        hosts: question.host.into_iter().collect(),
        peer: question.peer.map(Into::into),
        protocol: question.protocol,
        port: question.port,
        snaplen: question.snaplen.unwrap_or(WHOLE).clamp(1, WHOLE),
    })
}

/// Writes blocks until there are enough, or nobody reads any more, or the data plane is gone.
fn write(capturing: Capturing, question: &Question, interface: &str, out: &mpsc::Sender<Bytes>) {
    let mut writer = pcapng::Writer::new(interface);
    let head = writer.blocks();
    let mut written = head.len() as u64;
    let mut count = 0;
    let end = question.millis.map(|millis| Instant::now() + Duration::from_millis(millis));
    if out.blocking_send(head.into()).is_err() {
        return;
    }
    while question.count.is_none_or(|most| count < most) {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) || out.is_closed() {
            break;
        }
        let patience = end.map_or(LOOK, |end| LOOK.min(end - now));
        let packet = match capturing.packets.recv_timeout(patience) {
            Ok(packet) => packet,
            Err(_) if capturing.is_over() => break,
            Err(_) => continue,
        };
        // What has come meanwhile goes with it.
        let mut blocks = Vec::new();
        let mut full = false;
        for packet in std::iter::once(packet).chain(capturing.packets.try_iter()) {
            writer.packet(&packet);
            let block = writer.blocks();
            full = question.bytes.is_some_and(|most| written + block.len() as u64 > most);
            if full {
                break;
            }
            written += block.len() as u64;
            count += 1;
            blocks.extend(block);
            if blocks.len() >= CHUNK || question.count.is_some_and(|most| count >= most) {
                break;
            }
        }
        if out.blocking_send(blocks.into()).is_err() || full {
            break;
        }
    }
    writer.end(count, capturing.missed());
    // Who reads the last block may begin another capture in its place.
    drop(capturing);
    // Who has gone does not want to know.
    let _ = out.blocking_send(writer.blocks().into());
}
