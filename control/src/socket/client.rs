//! Asking a daemon over its control socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers at {path}: {source} (is overlayd running, and may you use its socket?)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("asking the daemon failed: {0}")]
    Http(#[from] hyper::Error),
    /// The daemon answered with an error.
    #[error("the daemon answered {code}: {text}")]
    Answer {
        /// The HTTP status code.
        code: u16,
        /// What it said.
        text: String,
    },
    /// The daemon is of another version.
    #[error("the daemon's answer is not understood: {0} (is it of another version? try --json)")]
    Unknown(#[from] serde_json::Error),
}

/// What the body says that `GET resource` gets from the daemon at `path`.
///
/// # Errors
/// As [`get`], or the daemon says something else.
pub async fn get_json<T: DeserializeOwned>(path: &Path, resource: &str) -> Result<T, ClientError> {
    Ok(serde_json::from_slice(&get(path, resource).await?)?)
}

/// The body that `GET resource` gets from the daemon at `path`.
///
/// # Errors
/// Nobody listens there, the conversation broke off, or the answer is an error.
pub async fn get(path: &Path, resource: &str) -> Result<Bytes, ClientError> {
    Ok(open(path, resource).await?.collect().await?.to_bytes())
}

/// The same body, piece by piece as it comes.
///
/// # Errors
/// As [`get`].
pub async fn open(path: &Path, resource: &str) -> Result<Incoming, ClientError> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its end shows in the body too, where it is reported.
    tokio::spawn(connection);
    let request = Request::get(resource)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .expect("a resource of this project is a valid path");
    let response = sender.send_request(request).await?;
    let code = response.status();
    if !code.is_success() {
        let body = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        return Err(ClientError::Answer { code: code.as_u16(), text });
    }
    Ok(response.into_body())
}
