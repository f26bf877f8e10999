//! Which store it is that a lease is in.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;

/// Which store it is. Written, also in the saved state, as its kind and its place: `etcd http://127.0.0.1:2379
/// /coreos.com/network`, `dir /var/lib/overlay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum StoreId {
    /// What etcd has below a prefix.
    Etcd {
        /// The members as they were named.
        endpoints: Vec<String>,
        /// What all keys begin with.
        prefix: String,
    },
    /// A directory.
    Dir(PathBuf),
    /// One that only its own implementation knows, or another version of the daemon.
    Other {
        /// What it is.
        kind: String,
        /// Where it is; empty if there is only one.
        place: String,
    },
}

impl StoreId {
    /// Reads what was written.
    #[must_use]
    pub fn read(text: &str) -> Self {
        match text.split_once(' ') {
            Some(("etcd", place)) => {
                let (urls, prefix) = place.split_once(' ').unwrap_or((place, ""));
                let endpoints = urls.split(',').map(str::to_owned).collect();
                Self::Etcd { endpoints, prefix: prefix.to_owned() }
            }
            Some(("dir", path)) => Self::Dir(path.into()),
            Some((kind, place)) => Self::Other { kind: kind.to_owned(), place: place.to_owned() },
            None => Self::Other { kind: text.to_owned(), place: String::new() },
        }
    }

    /// What it is, in one word.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Self::Etcd { .. } => "etcd",
            Self::Dir(_) => "dir",
            Self::Other { kind, .. } => kind,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Etcd { endpoints, prefix } => format!("{} {prefix}", endpoints.join(",")),
            Self::Dir(path) => path.display().to_string(),
            Self::Other { place, .. } => place.clone(),
        }
    }

    /// Whether both are one store: endpoints may have been given in another order, with another scheme, or a member may
    /// have come or gone.
    #[must_use]
    pub fn is_same_store(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Etcd { endpoints, prefix }, Self::Etcd { endpoints: others, prefix: other }) => {
                // One member in common is enough: it is of one cluster only.
                let is_prefix = prefix.trim_end_matches('/') == other.trim_end_matches('/');
                is_prefix && !members(endpoints).is_disjoint(&members(others))
            }
            // The components leave out what makes no difference.
            (Self::Dir(path), Self::Dir(other)) => components(path) == components(other),
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self.place() {
            place if place.is_empty() => Ok(()),
            place => write!(f, " {place}"),
        }
    }
}

impl From<String> for StoreId {
    fn from(text: String) -> Self {
        Self::read(&text)
    }
}

impl From<StoreId> for String {
    fn from(id: StoreId) -> Self {
        id.to_string()
    }
}

fn components(path: &Path) -> PathBuf {
    path.components().collect()
}

fn members(endpoints: &[String]) -> BTreeSet<String> {
    endpoints.iter().map(|url| member(url)).filter(|member| !member.is_empty()).collect()
}

/// Host and port of an endpoint, without what tells how it is spoken to.
fn member(url: &str) -> String {
    let endpoint = Endpoint::of(url);
    let host = endpoint.authority.to_ascii_lowercase();
    let secured = endpoint.scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    match (endpoint.has_port() || host.is_empty(), secured) {
        (true, _) => host,
        (false, true) => format!("{host}:443"),
        (false, false) => format!("{host}:80"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_same_store(one: &str, other: &str) -> bool {
        StoreId::read(one).is_same_store(&StoreId::read(other))
    }

    #[test]
    fn one_store_is_known_however_it_is_written() {
        let ours = "etcd http://a:2379,http://b:2379 /coreos.com/network";
        for same in [
            "etcd http://b:2379,http://a:2379 /coreos.com/network",
            "etcd http://A:2379/,http://b:2379/ /coreos.com/network/",
            "etcd http://a:2379 /coreos.com/network",
            "etcd http://c:2379,https://b:2379 /coreos.com/network",
            "etcd http://me:secret@a:2379 /coreos.com/network",
        ] {
            assert!(is_same_store(same, ours) && is_same_store(ours, same), "{same}");
        }
        for another in [
            "etcd http://c:2379 /coreos.com/network",
            "etcd http://a:2380 /coreos.com/network",
            "etcd http://a:2379 /other/network",
            "etcd http://a /coreos.com/network",
            "dir /coreos.com/network",
            "memory",
        ] {
            assert!(!is_same_store(another, ours) && !is_same_store(ours, another), "{another}");
        }
        assert!(is_same_store("etcd https://a,http://[::1]:2379 /x", "etcd https://a:443 /x"));
        assert!(is_same_store("etcd http://[FE80::1] ", "etcd http://[fe80::1]:80 "));
        assert!(is_same_store("dir /var/lib//overlay/", "dir /var/lib/./overlay"));
        assert!(!is_same_store("dir /var/lib/overlay", "dir /var/lib/overlay2"));
        assert!(is_same_store("memory", "memory"));
    }

    #[test]
    fn an_identity_is_written_as_it_is_read() {
        for (text, kind, place) in [
            (
                "etcd http://b:2379,http://a:2379 /coreos.com/network",
                "etcd",
                "http://b:2379,http://a:2379 /coreos.com/network",
            ),
            ("dir /var/lib/my overlay", "dir", "/var/lib/my overlay"),
            ("consul http://a", "consul", "http://a"),
            ("memory", "memory", ""),
        ] {
            let id = StoreId::read(text);
            assert_eq!((id.to_string().as_str(), id.kind(), id.place().as_str()), (text, kind, place));
        }
    }
}
