//! Whether two descriptions are of one store: endpoints may have been given in another order, with another scheme, or
//! a member may have come or gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::endpoint::Endpoint;

/// Whether what was `saved` is of the store that is described as `ours` ([`describe`](super::LeaseStore::describe)).
#[must_use]
pub fn is_same_store(saved: &str, ours: &str) -> bool {
    match (Identity::of(saved), Identity::of(ours)) {
        (Identity::Etcd(members, prefix), Identity::Etcd(others, other)) => {
            prefix == other && !members.is_disjoint(&others)
        }
        (saved, ours) => saved == ours,
    }
}

#[derive(PartialEq, Eq)]
enum Identity {
    /// The members that are named, and the prefix. One member in common is enough: it is of one cluster only.
    Etcd(BTreeSet<String>, String),
    Dir(PathBuf),
    Other(String),
}

impl Identity {
    fn of(description: &str) -> Self {
        let other = || Self::Other(description.to_owned());
        match description.split_once(' ') {
            Some(("etcd", place)) => {
                let (urls, prefix) = place.split_once(' ').unwrap_or((place, ""));
                let members = urls.split(',').map(member).filter(|member| !member.is_empty());
                Self::Etcd(members.collect(), prefix.trim_end_matches('/').to_owned())
            }
            // The components leave out what makes no difference.
            Some(("dir", path)) => Self::Dir(Path::new(path).components().collect()),
            _ => other(),
        }
    }
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
}
