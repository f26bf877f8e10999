//! What every store can do.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use ipnet::Ipv4Net;

use super::entry::{Entry, Event, Listing, Revision, Written};
use super::identity::StoreId;

/// A store failed: what was tried, where, and why it did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct StoreError {
    /// The operation and its object, as in `list /coreos.com/network/subnets/`.
    pub action: String,
    /// What the store or the network said, and at which endpoint.
    pub reason: String,
}

impl StoreError {
    pub(crate) fn new(action: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { action: action.into(), reason: reason.to_string() }
    }
}

/// A place that keeps the network configuration and the leases of all nodes.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// What and where it is.
    fn id(&self) -> StoreId;

    /// What an operator does to put a network configuration there, as a command.
    fn how_to_configure(&self, config: &str) -> String;

    /// The network configuration's text; `None` while nobody has put one.
    async fn config(&self) -> Result<Option<String>, StoreError>;

    /// All leases.
    async fn list(&self) -> Result<Listing, StoreError>;

    /// What is under the key of `subnet`, which a listing may have no room for.
    async fn entry_of(&self, subnet: Ipv4Net) -> Result<Option<Entry>, StoreError>;

    /// Creates the key of `subnet` if there is none, to expire after `ttl` unless renewed
    /// (in a store that knows expiry).
    async fn create(&self, subnet: Ipv4Net, value: &[u8], ttl: Duration) -> Result<Written, StoreError>;

    /// Renews `held`: writes `value` and starts its time anew, only if the key has not changed since.
    /// A key without expiry keeps having none.
    async fn renew(&self, held: &Entry, value: &[u8], ttl: Duration) -> Result<Written, StoreError>;

    /// Removes `held`, and the store's expiry that went with it, only if the key has not changed
    /// since; otherwise nothing is removed, and the answer is `false`.
    async fn release(&self, held: &Entry) -> Result<bool, StoreError>;

    /// How long `held` has until it ends by itself, unless it is renewed; `None` if it does not.
    async fn expires_in(&self, _held: &Entry) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Whether leases end here by themselves, so that one without an end is a reservation.
    fn knows_expiry(&self) -> bool {
        false
    }

    /// Follows all changes after `from`, the revision of a listing or of an event. The stream ends
    /// with `Relist` or with an error, never silently. After an error, watching again from the last
    /// revision seen loses nothing; what cannot be made up for is told as `Relist`.
    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError>;
}

/// The changes after a revision, in order; each with the revision that it leads to.
pub type EventStream = BoxStream<'static, Result<(Revision, Event), StoreError>>;
