//! The status page (`--http`): this node, its peers with their traffic, drops and events, for a browser.
//!
//! Read-only and of one piece: nothing is loaded from elsewhere, and the browser is told to run and ask nothing
//! but what came with the page. The script shows what others wrote (leases, the log) as text only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use overlay::peer_state::Exchanged;
use serde::Serialize;

use crate::events::Events;
use crate::metrics::{Sample, SampleSource};
use overlay_api::status::Status;
use overlay_leases::meters::LeaseMeter;

/// What the page needs to know.
#[derive(Clone)]
pub struct Page {
    source: SampleSource,
    lease: LeaseMeter,
    started: SystemTime,
}

/// What the page shows, as its script asks for it every two seconds. Its shape is the script's business:
/// `/v1/status` is what others ask.
#[derive(Debug, Serialize)]
struct Summary {
    version: &'static str,
    /// Seconds since 1970.
    time: f64,
    started: f64,
    status: Option<Status>,
    problems: Option<Vec<String>>,
    store_connected: bool,
    lease: Option<LeaseSummary>,
    peers: Vec<PeerSummary>,
}

#[derive(Debug, Serialize)]
struct LeaseSummary {
    taken: f64,
    renewed: f64,
    expires: Option<f64>,
}

#[derive(Debug, Serialize)]
struct PeerSummary {
    subnet: String,
    public_ip: String,
    egress: Counted,
    ingress: Counted,
    /// Seconds ago.
    last_seen: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Counted {
    packets: u64,
    bytes: u64,
    drops: u64,
}

impl Page {
    /// A page on what `source` and `lease` know.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the page shows dates")]
    pub fn new(source: SampleSource, lease: LeaseMeter) -> Self {
        Self { source, lease, started: SystemTime::now() }
    }

    /// Serves it, with `events`, at `address`.
    pub fn router(self, events: &Events, address: SocketAddr) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/summary.json", get(summary))
            .with_state(Arc::new(self))
            .merge(events.router())
            .layer(middleware::from_fn(move |request: Request, next: Next| async move {
                if address.ip().is_loopback() && !asks_for_loopback(request.headers()) {
                    return (StatusCode::MISDIRECTED_REQUEST, NOT_HERE).into_response();
                }
                let mut response = next.run(request).await;
                for (name, value) in HEADERS {
                    response.headers_mut().insert(name, HeaderValue::from_static(value));
                }
                response
            }))
    }
}

/// The page, which a nonce of its own allows to run its one script and style.
async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let html = HTML.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT).replace("NONCE", &nonce);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    ([(CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
}

#[expect(clippy::disallowed_methods, reason = "the page shows dates")]
async fn summary(State(page): State<Arc<Page>>) -> Json<Summary> {
    let Sample { status, peers, problems, store_connected, .. } = (page.source)();
    let unix =
        |moment: SystemTime| moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let counted = |Exchanged { packets, bytes, drops }| Counted { packets, bytes, drops };
    Json(Summary {
        version: env!("CARGO_PKG_VERSION"),
        time: unix(SystemTime::now()),
        started: unix(page.started),
        status,
        problems,
        store_connected,
        lease: page.lease.times().map(|times| LeaseSummary {
            taken: unix(times.taken),
            renewed: unix(times.renewed),
            expires: times.expires.map(unix),
        }),
        peers: peers
            .into_iter()
            .map(|peer| PeerSummary {
                subnet: peer.subnet.to_string(),
                public_ip: peer.public_ip.to_string(),
                egress: counted(peer.totals.egress),
                ingress: counted(peer.totals.ingress),
                last_seen: peer.totals.last_seen.map(|ago| ago.as_secs_f64()),
            })
            .collect(),
    })
}

/// Whether the browser means this host by the name that it asks for. A page from elsewhere can have a name of
/// its own lead to 127.0.0.1, and would then be allowed to read what is answered.
fn asks_for_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host else { return true };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const NOT_HERE: &str = "this page is for those who ask by a loopback address or as localhost\n";
const HEADERS: [(HeaderName, &str); 4] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (X_FRAME_OPTIONS, "DENY"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_answered_on_loopback() {
        let asked = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            asks_for_loopback(&headers)
        };
        for good in ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "127.0.0.1", "[::1]"] {
            assert!(asked(good), "{good}");
        }
        for bad in
            ["evil.example:8080", "localhost.evil.example", "192.168.1.12:8080", "", "127.0.0.1.evil:80"]
        {
            assert!(!asked(bad), "{bad}");
        }
        assert!(asks_for_loopback(&HeaderMap::new()), "HTTP/1.0 names no host, and browsers do not speak it");
    }

    #[test]
    fn the_page_loads_nothing_and_has_a_place_for_each_part() {
        for part in ["/*STYLE*/", "/*SCRIPT*/", "nonce=\"NONCE\""] {
            assert!(HTML.contains(part), "{part}");
        }
        for part in [HTML, STYLE, SCRIPT] {
            // The one address in it is the name of SVG.
            let elsewhere = part.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !elsewhere.contains("http:") && !elsewhere.contains("https:") && !elsewhere.contains("//cdn")
            );
        }
        for dangerous in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(dangerous), "{dangerous}");
        }
        assert!(!STYLE.contains("NONCE") && !SCRIPT.contains("NONCE"));
    }
}
