//! The keys of a network in etcd, and what is read of them.

use std::fmt;

use etcd_client::{KeyValue, ResponseHeader};
use ipnet::Ipv4Net;

use crate::store::entry::{Entry, Revision};
use crate::store::key::parse_key;
use crate::store::limits::{MAX_VALUE, bounded};

/// What all keys of a network begin with, without a trailing slash.
pub(super) struct Prefix(String);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Prefix {
    /// `prefix` as flannel joins it to what follows: without a trailing slash or a repeated one.
    pub(super) fn of(prefix: &str) -> Self {
        let inner: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
        let root = if prefix.starts_with('/') && !inner.is_empty() { "/" } else { "" };
        Self(format!("{root}{}", inner.join("/")))
    }

    pub(super) fn config_key(&self) -> String {
        format!("{self}/config")
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.subnets())
    }

    pub(super) fn subnets(&self) -> String {
        format!("{self}/subnets/")
    }
}

/// The key without its prefix, and the subnet that it names.
pub(super) fn name_of(kv: &KeyValue, subnets_prefix: &str) -> Option<(String, Ipv4Net)> {
    let name = std::str::from_utf8(kv.key().strip_prefix(subnets_prefix.as_bytes())?).ok()?;
    Some((name.to_owned(), parse_key(name).ok()?))
}

pub(super) fn entry((key, subnet): (String, Ipv4Net), kv: &KeyValue) -> Entry {
    Entry {
        key,
        subnet,
        value: bounded(kv.value(), MAX_VALUE),
        revision: kv.mod_revision(),
        created: kv.create_revision(),
        expiry: Some(kv.lease()).filter(|lease| *lease != NO_LEASE),
    }
}

pub(super) fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, ResponseHeader::revision)
}

/// etcd's word for a key that never expires.
pub(super) const NO_LEASE: i64 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_trailing_slash() {
        for prefix in ["/coreos.com/network", "/coreos.com/network/", "//coreos.com//network//"] {
            assert_eq!(Prefix::of(prefix).to_string(), "/coreos.com/network", "{prefix}");
        }
        assert_eq!(Prefix::of("kube-centos/network/").to_string(), "kube-centos/network");
        assert_eq!(Prefix::of("/").to_string(), "");
    }
}
