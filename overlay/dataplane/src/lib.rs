//! The data plane of `overlayd`: knows packets, peers and devices; nothing of etcd, JSON or systemd.
//!
//! [`egress`] and [`ingress`] are the packet's way, top to bottom; [`admit`] says which packets go it. [`forwarder`]
//! starts them.

#![forbid(unsafe_code)]

pub mod admit;
pub mod announced;
pub mod answers;
pub mod batch;
pub mod capture;
pub mod confine;
pub mod echo;
pub mod egress;
pub mod error;
pub mod forwarder;
pub mod handover;
mod idle;
pub mod ingress;
pub mod limits;
pub mod offload;
pub mod path_mtu;
pub mod peer_state;
pub mod priority;
pub mod stats;
pub mod table;
pub mod trace;
pub mod tun;
pub mod underlay;
pub mod warden;
pub mod witness;

#[cfg(test)]
mod fake;

pub use error::SetupError;
pub use overlay_wire as wire;
pub use overlay_wire::{MacAddr, drops};
