//! Who owns which subnet: leases, the stores that keep them, and this node's membership.

pub mod backend;
pub mod lease;
pub mod manager;
pub mod membership;
pub mod meters;
pub mod netconf;
pub mod state;
pub mod store;
pub mod subnet_file;
