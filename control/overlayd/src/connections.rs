//! HTTP/1 connections within limits. Who connects may be a stranger, send half a request and never the rest, or
//! open as many connections as there are ports: it must cost the daemon no more than a few descriptors, and none
//! that its own work needs.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

/// What connections to one listener may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many there are at most. One more ends the oldest: who is served in turn needs milliseconds.
    pub connections: usize,
    /// For the headers of a request, and between one request and the next.
    pub patience: Duration,
}

impl Limits {
    /// For listeners that the network reaches.
    pub const STRANGERS: Self = Self { connections: 64, patience: Duration::from_secs(5) };
    /// For the control socket, where captures may last.
    pub const ADMINISTRATORS: Self = Self { connections: 128, patience: Duration::from_secs(10) };
}

/// Lets this process have as many descriptors as it may, as Go's runtime does.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        debug!(%error, "the limit of open files stays as it is");
    }
}

/// Serves `router` to whoever connects, for as long as the task lives.
pub async fn serve<L: Listener>(mut listener: L, router: Router, limits: Limits) {
    let router = router.layer(from_fn(without_body));
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        // Retries what fails, with a pause where descriptors are short.
        let (stream, _) = listener.accept().await;
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= limits.connections
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.patience)
            .max_buf_size(LONGEST_HEADERS)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        oldest_first.push_back(connections.spawn(async move {
            // What goes wrong is the other end's concern.
            let _ = connection.await;
        }));
    }
}

/// Nothing that can be asked has a body, so none is read.
async fn without_body(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body {
        let close = [(header::CONNECTION, "close")];
        return (StatusCode::PAYLOAD_TOO_LARGE, close, "no request has a body here\n").into_response();
    }
    next.run(request).await
}

/// Of one request, in bytes.
const LONGEST_HEADERS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, timeout};

    use super::*;

    const LIMITS: Limits = Limits { connections: 8, patience: Duration::from_millis(200) };

    async fn start(limits: Limits) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/healthz", get(async || "ok"));
        tokio::spawn(serve(listener, router, limits));
        address
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn any_number_of_half_requests_keeps_nobody_from_an_answer() {
        let address = start(Limits { patience: Duration::from_secs(3600), ..LIMITS }).await;
        let mut half = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /he").await.unwrap();
            half.push(stream);
        }
        assert!(ask(address, "GET /healthz HTTP/1.0\r\n\r\n").await.ends_with("ok"));
        // The oldest are closed. (Of a reset the reader may hear as an error.)
        for stream in &mut half[..92] {
            let end = timeout(Duration::from_secs(20), stream.read(&mut [0])).await.unwrap();
            assert!(end.is_err() || end.is_ok_and(|length| length == 0));
        }
    }

    #[tokio::test]
    async fn who_says_nothing_more_is_not_waited_for() {
        let address = start(LIMITS).await;
        let begun = Instant::now();
        for request in ["", "GET /healthz HTTP/1.1\r\nHost: x", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"] {
            ask(address, request).await;
        }
        assert!(begun.elapsed() >= LIMITS.patience * 3, "they were waited for, though");
    }

    #[tokio::test]
    async fn no_body_and_no_endless_header_is_read() {
        let address = start(LIMITS).await;
        for body in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
            let answer = ask(address, &format!("POST /healthz HTTP/1.1\r\nHost: x\r\n{body}\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        let long = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * LONGEST_HEADERS));
        // The other end may be gone before all is sent.
        let _ = stream.write_all(long.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}
