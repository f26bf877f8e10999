//! What the daemon knew when it last had the store's word, saved beside the subnet file, so that
//! after a restart it forwards before the store has answered.

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lease::{Lease, LeaseAttrs};
use crate::store::StoreId;
use overlay_support::files;
use overlay_support::json::JsonError;

/// One node's knowledge of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// The store it came from. Another store's leases are not ours to use ([`StoreId::is_same_store`]).
    pub store: StoreId,
    /// Our own address in the underlay at that time.
    pub public_ip: Ipv4Addr,
    /// The network configuration, as the store had it.
    pub config: String,
    /// Our own lease.
    pub lease: Lease,
    /// The other nodes' leases.
    pub peers: Vec<Lease>,
}

/// Why there is no saved state to use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be read; also if it is not there (`NotFound`).
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a saved state: cut off, or somebody else's file.
    #[error("{}: {source}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where and how it differs.
        source: serde_json::Error,
    },
    /// Another version of the daemon wrote it.
    #[error("{}: version is {found}, this daemon reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it says.
        found: u64,
    },
}

impl SavedState {
    /// The file that goes with `subnet_file`: `/run/flannel/subnet.env` → `/run/flannel/subnet.env.state.json`.
    #[must_use]
    pub fn path(subnet_file: &Path) -> PathBuf {
        let mut path = OsString::from(subnet_file);
        path.push(".state.json");
        path.into()
    }

    /// The file in `directory`, which outlives a reboot, that goes with `subnet_file`: its path with dashes, as in
    /// `/var/lib/overlayd/run-flannel-subnet.env.state.json`.
    #[must_use]
    pub fn lasting_path(directory: &Path, subnet_file: &Path) -> PathBuf {
        let path = Self::path(subnet_file);
        directory.join(path.to_string_lossy().trim_matches('/').replace('/', "-"))
    }

    /// Writes the state to `path` in one step, for nobody else to read (0600).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let saved = Saved {
            version: VERSION,
            store: self.store.clone(),
            public_ip: self.public_ip,
            config: self.config.clone(),
            lease: SavedLease::from(&self.lease),
            peers: self.peers.iter().map(SavedLease::from).collect(),
        };
        files::replace(path, &serde_json::to_vec(&saved)?, 0o600)
    }

    /// Reads what `write` wrote.
    pub fn read(path: &Path) -> Result<Self, StateError> {
        let read = |source| StateError::Read { path: path.to_owned(), source };
        let form = |source| StateError::Form { path: path.to_owned(), source };
        let text = files::read(path, LONGEST).map_err(read)?;

        // The version first: what else is there depends on it.
        let Version { version } = serde_json::from_slice(&text).map_err(form)?;
        if version != VERSION {
            return Err(StateError::Version { path: path.to_owned(), found: version });
        }
        let saved: Saved = serde_json::from_slice(&text).map_err(form)?;
        Ok(Self {
            store: saved.store,
            public_ip: saved.public_ip,
            config: saved.config,
            lease: saved.lease.into(),
            peers: saved.peers.into_iter().map(Lease::from).collect(),
        })
    }
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u64,
    store: StoreId,
    public_ip: Ipv4Addr,
    config: String,
    lease: SavedLease,
    peers: Vec<SavedLease>,
}

/// A lease with its value as in the store.
#[derive(Serialize, Deserialize)]
struct SavedLease {
    subnet: Ipv4Net,
    value: SavedAttrs,
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "Value")]
struct SavedAttrs(LeaseAttrs);

impl TryFrom<Value> for SavedAttrs {
    type Error = JsonError;

    fn try_from(value: Value) -> Result<Self, JsonError> {
        value.try_into().map(Self)
    }
}

impl From<&Lease> for SavedLease {
    fn from(lease: &Lease) -> Self {
        Self { subnet: lease.subnet, value: SavedAttrs(lease.attrs.clone()) }
    }
}

impl From<SavedLease> for Lease {
    fn from(saved: SavedLease) -> Self {
        Self { subnet: saved.subnet.trunc(), attrs: saved.value.0 }
    }
}

/// The unit's directory for what outlives a reboot.
pub const LASTING: &str = "/var/lib/overlayd";
/// Some hundred thousand peers, in bytes.
const LONGEST: usize = 64 << 20;
/// Raised with every change of form that an earlier daemon would misread.
const VERSION: u64 = 1;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::lease::LeaseBackend;

    fn lease(subnet: &str, last: u8) -> Lease {
        let vtep_mac = overlay_wire::MacAddr([2, 0, 0, 0, 0, last]);
        let backend = LeaseBackend::Vxlan { vni: 1, vtep_mac };
        let public_ip = Ipv4Addr::new(192, 168, 1, last);
        Lease { subnet: subnet.parse().unwrap(), attrs: LeaseAttrs { public_ip, backend } }
    }

    fn state() -> SavedState {
        SavedState {
            store: StoreId::read("etcd http://127.0.0.1:2379 /coreos.com/network"),
            public_ip: Ipv4Addr::new(192, 168, 1, 12),
            config: "{ \"Network\": \"10.1.0.0/16\" }\n".to_owned(),
            lease: lease("10.1.86.0/24", 12),
            peers: vec![lease("10.1.15.0/24", 13), lease("10.1.16.0/24", 14)],
        }
    }

    #[test]
    fn it_lies_beside_the_subnet_file() {
        assert_eq!(
            SavedState::path(Path::new("/run/flannel/subnet.env")),
            Path::new("/run/flannel/subnet.env.state.json")
        );
    }

    #[test]
    fn what_lasts_lies_apart_for_each_subnet_file() {
        let path = |file| SavedState::lasting_path(Path::new(LASTING), Path::new(file));
        assert_eq!(
            path("/run/flannel/subnet.env"),
            Path::new("/var/lib/overlayd/run-flannel-subnet.env.state.json")
        );
        assert_ne!(path("/run/other/subnet.env"), path("/run/flannel/subnet.env"));
    }

    #[test]
    fn it_is_read_as_it_was_written_with_flannels_values_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = SavedState::path(&dir.path().join("subnet.env"));
        state().write(&path).unwrap();
        assert_eq!(SavedState::read(&path).unwrap(), state());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(r#""value":{"PublicIP":"192.168.1.12","PublicIPv6":null,"BackendType":"vxlan""#),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_our_state_is_a_typed_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert!(
            matches!(SavedState::read(&path), Err(StateError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound)
        );

        state().write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).unwrap();
            assert!(matches!(SavedState::read(&path), Err(StateError::Form { .. })), "cut at {cut}");
        }
        fs::write(&path, text.replace("192.168.1.13", "0.0.0.0")).unwrap();
        assert!(SavedState::read(&path).unwrap_err().to_string().contains("PublicIP is \"0.0.0.0\""));

        fs::write(&path, r#"{"version":2,"peers":{}}"#).unwrap();
        assert!(matches!(SavedState::read(&path), Err(StateError::Version { found: 2, .. })));
    }
}
