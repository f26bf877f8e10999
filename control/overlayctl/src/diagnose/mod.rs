//! What `overlayctl` finds out for an operator: whether this host is fit (`check`), which way a packet would
//! take and where it would be dropped (`trace`), and whether another node's daemon is there (`ping`). They ask the
//! daemon and the kernel, and change nothing.

pub mod bugreport;
pub mod check;
mod icmp;
mod kernel;
pub mod ping;
pub mod trace;
