//! The store that the flags name.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::{JoinError, spawn_blocking};

use crate::endpoints::endpoints;
use crate::flags::Flags;
use crate::go::FlagError;
use crate::values::StoreKind;
use overlay_api::config::Setting;
use overlay_leases::manager::{KeyValueManager, LeaseManager};
use overlay_leases::meters::StoreMeter;
use overlay_leases::store::{
    Access, DirStore, EtcdStore, IdentityFiles, LeaseStore, StoreAddresses, StoreError, StoreId, User,
};

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

/// A lease manager, and whether what it needs (certificates, for one) can be used as it is now: it may be put right
/// later.
pub type Connected = (Arc<dyn LeaseManager>, Result<(), StoreError>);

impl Flags {
    /// What the connection to etcd is secured with.
    ///
    /// # Errors
    /// A flag without the one that belongs to it.
    pub fn etcd_access(&self) -> Result<Access, FlagError> {
        // Given as nothing, as units made from templates do, is not given.
        let file = |flag: &Option<PathBuf>| flag.clone().filter(|path| !path.as_os_str().is_empty());
        let name = self.etcd_username.clone().filter(|name| !name.is_empty());
        let password = self.etcd_password.clone().filter(|password| !password.0.is_empty());
        let certificate = ("etcd-certfile", file(&self.etcd_certfile));
        let identity = together(certificate, ("etcd-keyfile", file(&self.etcd_keyfile)))?;
        let user = together(("etcd-username", name), ("etcd-password", password))?;
        Ok(Access {
            ca: file(&self.etcd_cafile),
            identity: identity.map(|(certificate, key)| IdentityFiles { certificate, key }),
            user: user.map(|(name, password)| User { name, password }),
        })
    }

    /// The leases of the network that the flags name, measured by `meter`.
    ///
    /// # Errors
    /// They cannot be had at all.
    pub async fn lease_manager(&self, meter: &StoreMeter) -> Result<Connected, ConnectError> {
        let (store, usable): (Arc<dyn LeaseStore>, _) = match &self.store {
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
        };
        Ok((Arc::new(KeyValueManager::new(store)), usable))
    }

    /// Where that store is on the network.
    pub async fn store_addresses(&self) -> StoreAddresses {
        match &self.store {
            StoreKind::Etcd => StoreAddresses::follow(&self.etcd_endpoints.0).await,
            StoreKind::Dir(_) => StoreAddresses::default(),
        }
    }

    /// The same with that `store`; nothing if they name one themselves.
    #[must_use]
    pub fn with_store(&self, store: &StoreId) -> Option<Self> {
        let names_store = |setting: &Setting| {
            setting.given && matches!(setting.name.as_str(), "store" | "etcd-endpoints" | "etcd-prefix")
        };
        if self.settings.iter().any(names_store) {
            return None;
        }
        let mut flags = self.clone();
        match store {
            StoreId::Dir(path) => flags.store = StoreKind::Dir(path.clone()),
            StoreId::Etcd { endpoints: urls, prefix } => {
                flags.etcd_endpoints = endpoints(&urls.join(",")).ok()?;
                prefix.clone_into(&mut flags.etcd_prefix);
            }
            StoreId::Other { .. } => return None,
        }
        Some(flags)
    }
}

/// Both or neither of two flags.
fn together<A, B>(
    (one, a): (&str, Option<A>),
    (other, b): (&str, Option<B>),
) -> Result<Option<(A, B)>, FlagError> {
    let alone = |given: &str, missing: &str| {
        FlagError::Syntax(format!("the flag --{given} is given without --{missing}: they belong together"))
    };
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(alone(one, other)),
        (None, Some(_)) => Err(alone(other, one)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::tests::parse;

    #[test]
    fn etcd_is_reached_by_certificates_and_a_user() {
        let flags = parse(
            &[
                "-etcd-endpoints=https://a:2379,http://b:2379",
                "-etcd-cafile=/ca.pem",
                "-etcd-certfile",
                "/cert.pem",
            ],
            &[
                ("FLANNELD_ETCD_KEYFILE", "/key.pem"),
                ("FLANNELD_ETCD_USERNAME", "flannel"),
                ("FLANNELD_ETCD_PASSWORD", "secret"),
            ],
        )
        .unwrap();
        assert_eq!(flags.etcd_endpoints.0, ["https://a:2379", "http://b:2379"]);
        let access = flags.etcd_access().unwrap();
        assert_eq!(access.ca, Some("/ca.pem".into()));
        let identity = IdentityFiles { certificate: "/cert.pem".into(), key: "/key.pem".into() };
        assert_eq!(access.identity, Some(identity));
        let user = access.user.unwrap();
        assert_eq!((user.name.as_str(), user.password.0.as_str()), ("flannel", "secret"));
        assert!(!format!("{flags:?}").contains("secret"), "{flags:?}");
        let nothing =
            ["-etcd-cafile=", "-etcd-certfile=", "-etcd-keyfile=", "-etcd-username=", "-etcd-password="];
        assert_eq!(parse(&nothing, &[]).unwrap().etcd_access().unwrap(), Access::default());
    }

    #[test]
    fn a_store_that_no_flag_names_may_be_that_of_an_earlier_run() {
        let with = |args: &[&str], store: &str| {
            let flags = parse(args, &[]).unwrap().with_store(&StoreId::read(store))?;
            Some((flags.store, flags.etcd_endpoints.0.join(","), flags.etcd_prefix))
        };
        let dir = |path: &str| StoreKind::Dir(path.into());
        assert_eq!(with(&[], "dir /var/lib/my overlay").unwrap().0, dir("/var/lib/my overlay"));
        let etcd = "etcd https://a:2379,http://b:2379 /my/net";
        let (kind, urls, prefix) = with(&["-iface=eth0"], etcd).unwrap();
        assert_eq!(kind, StoreKind::Etcd);
        assert_eq!((urls.as_str(), prefix.as_str()), ("https://a:2379,http://b:2379", "/my/net"));
        assert_eq!(with(&[], "etcd http://127.0.0.1:7 ").unwrap().2, "", "the prefix may be empty");
        for args in [["--store=etcd"], ["-etcd-endpoints=http://c:2379"], ["-etcd-prefix=/other"]] {
            assert_eq!(with(&args, etcd), None, "{args:?}");
        }
        for unreadable in ["", "etcd", "consul http://a"] {
            assert_eq!(with(&[], unreadable), None, "{unreadable}");
        }
    }
}
