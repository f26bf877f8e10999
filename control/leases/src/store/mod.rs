//! Where leases live: a trait, and its implementations for etcd v3 and for a directory of files.
//!
//! A store knows keys and bytes; what they mean is `lease`'s business. It never retries by itself
//! for ever: an error says what failed, and the caller decides when to try again.

mod addresses;
mod dir;
mod endpoint;
mod entry;
mod etcd;
mod identity;
mod key;
mod lease_store;
mod limits;

pub use addresses::StoreAddresses;
pub use dir::DirStore;
pub use endpoint::Endpoint;
pub use entry::{Entry, Event, Listing, Revision, Written};
pub use etcd::{Access, EtcdStore, IdentityFiles, Password, User};
pub use identity::StoreId;
pub use key::{KeyError, key_of, parse_key};
pub use lease_store::{EventStream, LeaseStore, StoreError};
pub use limits::{MAX_KEYS, MAX_VALUE, Room};
