//! The network configuration as etcd has it.

use etcd_client::{Client, GetOptions, GetResponse, KeyValue};

use super::cluster::{Cluster, is_too_long};
use super::keys::revision_of;
use crate::store::entry::Revision;
use crate::store::lease_store::StoreError;
use crate::store::limits::{MAX_CONFIG, config_text};

/// What is known of the network configuration.
pub(super) struct Config {
    /// The store's revision when it was read.
    pub(super) now: Revision,
    /// Its own; 0 without a configuration.
    pub(super) revision: Revision,
    pub(super) text: Option<String>,
}

impl Config {
    pub(super) async fn get(cluster: &Cluster, action: &str, key: &str) -> Result<Self, StoreError> {
        let request = |mut client: Client, _| async move {
            match client.get(key, None).await {
                Err(error) if is_too_long(&error) => {
                    let name = client.get(key, Some(GetOptions::new().with_keys_only())).await?;
                    Ok(Self::of(&name, |_| config_text(&[0; MAX_CONFIG + 1])))
                }
                found => Ok(Self::of(&found?, |kv| config_text(kv.value()))),
            }
        };
        cluster.call(action, request).await
    }

    fn of(found: &GetResponse, text: impl Fn(&KeyValue) -> String) -> Self {
        let kv = found.kvs().first();
        let revision = kv.map_or(0, KeyValue::mod_revision);
        Self { now: revision_of(found.header()), revision, text: kv.map(text) }
    }
}
