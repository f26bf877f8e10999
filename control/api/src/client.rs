//! Asking a daemon over its control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not to this user.
    #[error("no daemon answers at {path}: {source} ({})", remedy(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens, and says nothing.
    #[error(
        "the daemon does not answer within {} s: is it stuck, or stopped? See its log, and 'systemctl status overlayd'",
        .0.as_secs()
    )]
    Silent(Duration),
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

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "its socket is for root, and for the members of its group: be one of them, or see overlayd's --control-socket-group"
        }
        _ => "is overlayd running?",
    }
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
/// Nobody listens there or nobody answers, the conversation broke off, or the answer is an error.
pub async fn get(path: &Path, resource: &str) -> Result<Bytes, ClientError> {
    let whole = async { Ok::<_, ClientError>(ask(path, resource).await?.collect().await?.to_bytes()) };
    within(PATIENCE, whole).await
}

/// The same body, piece by piece as it comes.
///
/// # Errors
/// As [`get`].
pub async fn open(path: &Path, resource: &str) -> Result<Incoming, ClientError> {
    within(PATIENCE, ask(path, resource)).await
}

async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(patience, answer).await.unwrap_or(Err(ClientError::Silent(patience)))
}

/// What the body says that `POST resource`, without a body of its own, gets from the daemon at `path`.
///
/// # Errors
/// As [`get_json`].
pub async fn post_json<T: DeserializeOwned>(path: &Path, resource: &str) -> Result<T, ClientError> {
    let body = async {
        let answer = request(path, Method::POST, resource).await?;
        Ok::<_, ClientError>(answer.collect().await?.to_bytes())
    };
    Ok(serde_json::from_slice(&within(PATIENCE, body).await?)?)
}

async fn ask(path: &Path, resource: &str) -> Result<Incoming, ClientError> {
    request(path, Method::GET, resource).await
}

async fn request(path: &Path, method: Method, resource: &str) -> Result<Incoming, ClientError> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its end shows in the body too, where it is reported.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(resource)
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

/// A daemon that has to ask its store answers later, but not so late.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_daemon_that_stands_still_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel0.sock");
        // It takes every connection, as the kernel does for a stopped process, and answers none.
        let _stopped = UnixListener::bind(&path).unwrap();
        let answer = within(Duration::from_millis(20), ask(&path, "/v1/status")).await;
        assert!(matches!(answer, Err(ClientError::Silent(_))), "{answer:?}");
    }
}
