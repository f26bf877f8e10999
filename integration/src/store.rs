//! The store of a test: real etcd or a directory, with the network's configuration in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::etcd::Etcd;
use crate::site::Site;

/// The overlay's wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Bare IP packets in UDP, port 8285.
    Udp,
    /// VXLAN, port 8472, VNI 1.
    Vxlan,
}

/// Where configuration and leases are.
#[derive(Debug)]
pub enum Store {
    /// A real etcd.
    Etcd(Etcd),
    /// A directory with the same names and contents.
    Dir(PathBuf),
}

impl Backend {
    /// The overlay's device.
    pub fn device(self) -> &'static str {
        match self {
            Self::Udp => "flannel0",
            Self::Vxlan => "flannel.1",
        }
    }

    /// The UDP port on the underlay.
    pub fn port(self) -> u16 {
        match self {
            Self::Udp => 8285,
            Self::Vxlan => 8472,
        }
    }

    /// What one packet grows by on the underlay, in octets.
    pub fn overhead(self) -> u32 {
        match self {
            Self::Udp => 28,
            Self::Vxlan => 50,
        }
    }

    /// The network configuration, as an operator writes it.
    pub fn config(self) -> String {
        let backend = match self {
            Self::Udp => r#"{"Type":"udp","Port":8285}"#,
            Self::Vxlan => r#"{"Type":"vxlan"}"#,
        };
        format!(r#"{{"Network":"10.1.0.0/16","SubnetLen":24,"Backend":{backend}}}"#)
    }
}

impl Store {
    /// A directory, configured so that no node leases 10.1.200.0/24 or one above: a test may say whose they are.
    #[track_caller]
    pub fn dir_with_free_subnets(site: &Site, name: &str, backend: Backend) -> Self {
        let config = backend.config().replacen('{', r#"{"SubnetMax":"10.1.199.0","#, 1);
        Self::dir_with(site, name, &config)
    }

    /// A real etcd on the site's router, configured for `backend`.
    #[track_caller]
    pub fn etcd(site: &Site, backend: Backend) -> Self {
        Self::of(Etcd::start(site), backend)
    }

    /// An etcd that runs already, configured for `backend`.
    #[track_caller]
    pub fn of(etcd: Etcd, backend: Backend) -> Self {
        let store = Self::Etcd(etcd);
        store.put_config(&backend.config());
        store
    }

    /// A directory, configured for `backend`.
    #[track_caller]
    pub fn dir(site: &Site, backend: Backend) -> Self {
        Self::dir_with(site, "store", &backend.config())
    }

    /// A directory of this name with this configuration.
    #[track_caller]
    pub fn dir_with(site: &Site, name: &str, config: &str) -> Self {
        let directory = site.directory(name);
        fs::create_dir_all(directory.join("subnets")).expect("create the lease directory");
        let store = Self::Dir(directory);
        store.put_config(config);
        store
    }

    /// The flags by which the daemon finds it.
    pub fn flags(&self) -> Vec<String> {
        match self {
            Self::Etcd(etcd) => vec![format!("--etcd-endpoints={}", etcd.endpoint)],
            Self::Dir(path) => vec![format!("--store=dir:{}", path.display())],
        }
    }

    /// The etcd server.
    #[track_caller]
    pub fn server(&mut self) -> &mut Etcd {
        match self {
            Self::Etcd(etcd) => etcd,
            Self::Dir(path) => panic!("{} is a directory", path.display()),
        }
    }

    /// Writes the network configuration.
    #[track_caller]
    pub fn put_config(&self, json: &str) {
        self.put("config", json);
    }

    /// Writes a lease key (`10.1.86.0-24`), without expiry.
    #[track_caller]
    pub fn put_lease(&self, key: &str, value: &str) {
        self.put(&format!("subnets/{key}"), value);
    }

    /// Removes a lease key.
    #[track_caller]
    pub fn delete_lease(&self, key: &str) {
        match self {
            Self::Etcd(etcd) => etcd.delete(&format!("{PREFIX}/subnets/{key}")),
            Self::Dir(path) => fs::remove_file(path.join("subnets").join(key)).expect("remove a lease file"),
        }
    }

    /// All lease keys with their values.
    #[track_caller]
    pub fn leases(&self) -> BTreeMap<String, String> {
        match self {
            Self::Etcd(etcd) => {
                let prefix = format!("{PREFIX}/subnets/");
                let keys = etcd.list(&prefix).into_iter();
                keys.map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect()
            }
            Self::Dir(path) => fs::read_dir(path.join("subnets"))
                .expect("read the lease directory")
                .flatten()
                .filter_map(|file| {
                    // A leading dot marks a draft that is about to be renamed.
                    let key = file.file_name().into_string().ok().filter(|key| !key.starts_with('.'))?;
                    Some((key, fs::read_to_string(file.path()).ok()?))
                })
                .collect(),
        }
    }

    #[track_caller]
    fn put(&self, key: &str, value: &str) {
        match self {
            Self::Etcd(etcd) => etcd.put(&format!("{PREFIX}/{key}"), value),
            Self::Dir(path) => {
                // As a configuration tool does it: whole, by rename.
                let draft = path.with_extension("draft");
                fs::write(&draft, value).expect("write a store file");
                fs::rename(&draft, path.join(key)).expect("rename a store file");
            }
        }
    }
}

const PREFIX: &str = "/coreos.com/network";
