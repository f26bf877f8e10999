//! Wire formats: pure functions over byte slices. A header is checked once, at the edge; what
//! comes after reads it through accessors that cannot fail.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod coalesce;
pub mod drops;
pub mod ecn;
mod families;
mod format;
pub mod frame;
pub mod glance;
mod header;
pub mod icmp;
pub mod ip;
mod ipv4;
mod ipv6;
pub mod mac;
pub mod martian;
pub mod outer;
#[cfg(any(test, feature = "samples"))]
pub mod samples;
pub mod segment;
pub mod tunnel;
pub mod vnet;
pub mod vxlan;

pub use families::{Addresses, Families, MacAddrs, Subnets};
pub use format::Format;
pub use mac::MacAddr;
