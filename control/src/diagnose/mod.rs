//! What `overlayctl` finds out for an operator: whether this host is fit (`check`), and which way a packet would
//! take and where it would be dropped (`trace`). They ask the daemon and the kernel, and change nothing.

mod kernel;
pub mod trace;
