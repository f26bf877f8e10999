//! `overlayctl trace`: the way of one packet through this host, step by step, as daemon and kernel have it now. What the
//! data plane does with it, the daemon says.

mod inwards;
mod outwards;
mod rules;
mod steps;
mod tracer;

use std::path::Path;

use super::kernel::Kernel;
use overlay_api::client::{self, ClientError};
use overlay_api::status::Status;
use overlay_api::trace::{Answer, RESOURCE};
use overlay_host::HostError;
use overlay_host::firewall::ruleset::Ruleset;

pub use steps::{Dropped, Question, Step, Trace};
use tracer::Tracer;

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

/// Follows the packet of `question` through the host of the daemon that says `status` and answers at `socket`.
///
/// # Errors
/// The kernel, the firewall or the daemon cannot be asked.
pub async fn trace(question: &Question, status: &Status, socket: &Path) -> Result<Trace, TraceError> {
    let mut tracer = Tracer {
        question,
        status,
        socket,
        kernel: Kernel::open().await?,
        ruleset: Ruleset::read().await?,
        trace: Trace { steps: Vec::new() },
    };
    let own = status.lease.subnet;
    match (own.contains(&question.src), own.contains(&question.dst)) {
        (true, true) => tracer.trace.pass(
            "route",
            format!(
                "{} and {} are both in {own}: the bridge carries it, not the overlay",
                question.src, question.dst
            ),
        ),
        (false, true) => tracer.inwards().await?,
        _ => tracer.outwards().await?,
    }
    Ok(tracer.trace)
}

/// What the daemon's data plane does with a packet.
async fn ask(socket: &Path, question: &overlay_api::trace::Question) -> Result<Answer, TraceError> {
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
        let question = overlay_api::trace::Question::new(Direction::Egress, src, dst);
        let error = ask(&path, &question).await.unwrap_err();
        assert!(matches!(error, TraceError::OlderDaemon) && error.to_string().contains("restart"), "{error}");
        answering.await.unwrap();
    }
}
