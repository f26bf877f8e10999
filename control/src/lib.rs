//! The control plane of `overlayd`: who owns which subnet, and what this host needs for it.

pub mod arguments;
pub mod cleanup;
pub mod daemon;
pub mod diagnose;
mod files;
pub mod flags;
pub mod health;
pub mod host;
pub mod iface;
pub mod json;
pub mod lease;
pub mod logging;
pub mod membership;
pub mod netconf;
pub mod node;
pub mod ping;
pub mod reconcile;
pub mod service_manager;
pub mod socket;
pub mod state;
pub mod status;
pub mod store;
pub mod subnet_file;
pub mod takeover;
