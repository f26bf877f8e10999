//! Where this node's lease comes from, and what it learns of the others: a trait, and what stands behind it.
//!
//! The daemon and the tools know leases by this trait alone. What is behind it may let the node choose its subnet, as
//! stores of keys and values do, or have it assigned.

mod key_value;
mod lease_manager;

pub use key_value::KeyValueManager;
pub use lease_manager::{LeaseList, LeaseManager, Links, ListedLease, Nodes, Released};
