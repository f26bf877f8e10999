//! The store that the flags name.

use std::sync::Arc;

use tokio::task::{JoinError, spawn_blocking};

use super::{FlagError, Flags, StoreKind};
use overlay_leases::meters::StoreMeter;
use overlay_leases::store::{DirStore, EtcdStore, LeaseStore, StoreAddresses, StoreError};

/// A store cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Flags that do not go together.
    #[error(transparent)]
    Flags(#[from] FlagError),
    /// It refuses, or is not there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task that opens it has panicked.
    #[error("the store cannot be opened: {0}")]
    Task(#[from] JoinError),
}

impl Flags {
    /// The store that the flags name, measured by `meter`.
    ///
    /// Also says whether its certificates can be used as they are now; they may be put right later.
    ///
    /// # Errors
    /// It cannot be used at all.
    pub async fn connect_store(
        &self,
        meter: &StoreMeter,
    ) -> Result<(Arc<dyn LeaseStore>, Result<(), StoreError>), ConnectError> {
        Ok(match &self.store {
            StoreKind::Etcd => {
                let (endpoints, prefix) = (self.etcd_endpoints.0.clone(), self.etcd_prefix.clone());
                let access = self.etcd_access()?;
                let store = EtcdStore::connect_as(endpoints, prefix, access, meter.clone()).await?;
                let usable = store.check_files().await;
                (Arc::new(store), usable)
            }
            StoreKind::Dir(path) => {
                let path = path.clone();
                let store = spawn_blocking(move || DirStore::open(path)).await??;
                (Arc::new(store.measured(meter.clone())), Ok(()))
            }
        })
    }

    /// Where that store is on the network.
    pub async fn store_addresses(&self) -> StoreAddresses {
        match &self.store {
            StoreKind::Etcd => StoreAddresses::follow(&self.etcd_endpoints.0).await,
            StoreKind::Dir(_) => StoreAddresses::default(),
        }
    }
}
