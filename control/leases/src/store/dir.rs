//! A directory as the store: `config` and `subnets/<key>`, the names and contents that etcd would hold.
//!
//! Anybody may put files there: several daemons of one machine, a configuration tool, an operator's
//! shell. Writers of ours hold a lock and replace files as a whole. Nothing expires: a file stays
//! until it is removed. Files whose name begins with a dot are nobody's lease. Who writes a file in
//! place rather than renaming it risks that a listing shows it half done; a watch waits for its end.
//!
//! A revision is a fingerprint: that of an entry stands for its content, that of a listing for the
//! whole directory, `config` included. It needs no memory and no agreement among the writers, and a
//! directory that is as it was has lost nobody any change. Events carry what is in the files when
//! they are looked at: of several changes in a row to one file, only the last may be seen.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use ipnet::Ipv4Net;

use super::entry::{Entry, Listing, Revision, Written};
use super::identity::StoreId;
use super::key::key_of;
use super::lease_store::{EventStream, LeaseStore, StoreError};
use super::limits::{MAX_CONFIG, MAX_VALUE, config_text};
use overlay_support::files;

mod directory;
mod snapshot;
mod watch;

pub use directory::DirStore;
use directory::read_one;
use snapshot::{entry, fingerprint};
use watch::Watch;

#[async_trait]
impl LeaseStore for DirStore {
    fn id(&self) -> StoreId {
        StoreId::Dir(self.path.clone())
    }

    fn how_to_configure(&self, config: &str) -> String {
        format!("echo '{config}' > {}", self.config_file().display())
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        let action = format!("read {}", self.config_file().display());
        let config = self.blocking(action, |store| {
            fs::metadata(&store.path)?;
            read_one(store.config_file(), MAX_CONFIG)
        });
        Ok(config.await?.map(|text| config_text(&text)))
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let action = format!("list {}", self.subnets().display());
        self.blocking(action, |store| {
            let snapshot = store.snapshot()?;
            *store.listed.lock() = snapshot.clone();
            Ok(snapshot.listing())
        })
        .await
    }

    async fn entry_of(&self, subnet: Ipv4Net) -> Result<Option<Entry>, StoreError> {
        let key = key_of(subnet);
        let file = self.file_of(&key);
        let action = format!("read {}", file.display());
        self.blocking(action, move |_| Ok(read_one(file, MAX_VALUE)?.map(|value| entry(key, subnet, value))))
            .await
    }

    async fn create(&self, subnet: Ipv4Net, value: &[u8], _ttl: Duration) -> Result<Written, StoreError> {
        let key = key_of(subnet);
        let file = self.file_of(&key);
        let value = value.to_vec();
        self.blocking(format!("create {}", file.display()), move |store| {
            let _lock = store.lock()?;
            match files::create(&file, &value, FILE_MODE) {
                Ok(()) => Ok(Written::Done(entry(key, subnet, value))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Written::Conflict),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn renew(&self, held: &Entry, value: &[u8], _ttl: Duration) -> Result<Written, StoreError> {
        let held = held.clone();
        let file = self.file_of(&held.key);
        let value = value.to_vec();
        self.blocking(format!("renew {}", file.display()), move |store| {
            let _lock = store.lock()?;
            if !is_unchanged(&held, &file)? {
                return Ok(Written::Conflict);
            }
            files::replace(&file, &value, FILE_MODE)?;
            Ok(Written::Done(entry(held.key, held.subnet, value)))
        })
        .await
    }

    async fn release(&self, held: &Entry) -> Result<bool, StoreError> {
        let held = held.clone();
        let file = self.file_of(&held.key);
        self.blocking(format!("remove {}", file.display()), move |store| {
            let _lock = store.lock()?;
            let unchanged = is_unchanged(&held, &file)?;
            if unchanged {
                fs::remove_file(&file)?;
            }
            Ok(unchanged)
        })
        .await
    }

    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError> {
        let action = format!("watch {}", self.path.display());
        let watch = self.blocking(action, move |store| Watch::start(store.clone(), from)).await?;
        Ok(stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }).boxed())
    }
}

fn is_unchanged(held: &Entry, file: &Path) -> io::Result<bool> {
    Ok(read_one(file.to_owned(), MAX_VALUE)?
        .is_some_and(|current| fingerprint(&held.key, &current) == held.revision))
}

/// Leases are no secret: any node's tools may read them.
const FILE_MODE: u32 = 0o644;
