//! The data plane of `overlayd`: knows packets, peers and devices; nothing of etcd, JSON or systemd.

pub mod mac;

pub use mac::MacAddr;
