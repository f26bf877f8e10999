//! What the kernel tells by netlink of changes, gathered for a moment.

use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::HostError;

/// A message, or word that some were lost.
pub(super) type Payload = NetlinkPayload<RouteNetlinkMessage>;

/// Changes in the network namespace of the thread that subscribed. They come in crowds: what they mean (`N`) is told
/// a moment after the first, as the greatest of what each of them means.
pub(super) struct Changes<N> {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
    settle: Duration,
    /// What has changed so far, and when it is told.
    gathered: Option<(N, Instant)>,
}

impl<N: Ord + Copy> Changes<N> {
    /// Those of these groups from now on, each with those of the time `settle` after it.
    pub(super) fn subscribe(groups: &[MulticastGroup], settle: Duration) -> Result<Self, HostError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(groups)
            .map_err(|error| failed("subscribe to changes of this host", error.to_string()))?;
        Ok(Self { messages, connection: tokio::spawn(connection), settle, gathered: None })
    }

    /// What has changed since the last call, by what a message `means`, if anything. May be cancelled without
    /// losing any.
    pub(super) async fn next(&mut self, means: impl Fn(&Payload) -> Option<N>) -> Result<N, HostError> {
        loop {
            let message = match self.gathered {
                None => self.messages.next().await,
                Some((news, at)) => match timeout_at(at, self.messages.next()).await {
                    Ok(message) => message,
                    Err(_) => {
                        self.gathered = None;
                        return Ok(news);
                    }
                },
            };
            let (message, _) = message
                .ok_or_else(|| failed("follow changes of this host", "the socket failed".to_owned()))?;
            if let Some(news) = means(&message.payload) {
                let (before, at) = self.gathered.unwrap_or((news, Instant::now() + self.settle));
                self.gathered = Some((before.max(news), at));
            }
        }
    }
}

impl<N> Drop for Changes<N> {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn failed(action: &str, reason: String) -> HostError {
    HostError::Netlink { action: action.to_owned(), reason }
}
