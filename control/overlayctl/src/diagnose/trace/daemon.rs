//! What the daemon is asked.

use std::path::Path;

use overlay_api::client::{self, ClientError};
use overlay_api::trace::{Answer, Question, RESOURCE};
use overlay_host::HostError;

/// A packet cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The kernel or the firewall cannot be asked.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The daemon cannot be asked.
    #[error(transparent)]
    Daemon(ClientError),
    /// The daemon does not know such questions.
    #[error(
        "the running overlayd is older than this overlayctl, and cannot say what it does with a packet: restart it (systemctl restart overlayd)"
    )]
    OlderDaemon,
}

/// What the daemon's data plane does with a packet.
pub(super) async fn ask(socket: &Path, question: &Question) -> Result<Answer, TraceError> {
    let query = serde_urlencoded::to_string(question).expect("plain values have a form");
    client::post_json(socket, &format!("{RESOURCE}?{query}")).await.map_err(|error| match error {
        ClientError::Answer { code: 404, .. } => TraceError::OlderDaemon,
        other => TraceError::Daemon(other),
    })
}

#[cfg(test)]
mod tests {
    use overlay_api::trace::Direction;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_daemon_that_knows_no_such_question_is_to_be_restarted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel0.sock");
        let older = UnixListener::bind(&path).unwrap();
        let answering = tokio::spawn(async move {
            let (mut asked, _) = older.accept().await.unwrap();
            asked.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            asked
        });
        let [src, dst] = ["10.1.9.3", "10.1.63.2"].map(|address| address.parse().unwrap());
        let question = Question::new(Direction::Egress, src, dst);
        let error = ask(&path, &question).await.unwrap_err();
        assert!(matches!(error, TraceError::OlderDaemon) && error.to_string().contains("restart"), "{error}");
        answering.await.unwrap();
    }
}
