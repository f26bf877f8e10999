//! The control plane of `overlayd`: who owns which subnet, and what this host needs for it.

pub mod lease;
pub mod store;
