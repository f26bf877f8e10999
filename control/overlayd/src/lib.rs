//! The daemon: brings leases, host and data plane together, and tells people and programs about it.

pub mod connections;
pub mod daemon;
pub mod events;
pub mod health;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod page;
pub mod privileges;
pub mod problems;
pub mod socket;
pub mod threads;
