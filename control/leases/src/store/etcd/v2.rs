//! etcd's old v2 store, which its v3 API does not see: only to tell that a configuration is there.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The value of `key` in the v2 store of the server at `url`, if it has such a store and key. Only
/// over plain HTTP: of a server that speaks TLS nothing is known.
pub(super) async fn value(url: &str, key: &str) -> Option<String> {
    let url = format!("{}/v2/keys/{}", url.trim_end_matches('/'), key.trim_start_matches('/'));
    let url: Uri = url.parse().ok().filter(|url: &Uri| url.scheme_str() == Some("http"))?;
    timeout(TIMEOUT, get(url)).await.ok().flatten()
}

async fn get(url: Uri) -> Option<String> {
    let authority = url.authority()?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    // It ends with the answer.
    tokio::spawn(connection);
    let request =
        Request::get(url.path()).header(HOST, authority.as_str()).body(Empty::<Bytes>::new()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    let body = Limited::new(response.into_body(), LARGEST).collect().await.ok()?.to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).ok()?;
    Some(answer["node"]["value"].as_str()?.to_owned())
}

/// The server has just answered another request: it is there.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More than any network configuration, in octets.
const LARGEST: usize = 64 * 1024;
