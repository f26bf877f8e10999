//! The system calls for which no safe wrapper does what overlayd needs. Every `unsafe` block of the project is here, but
//! for the one of `overlay-simd`. Each function is safe to call; its blocks say why they are sound.

#![allow(unsafe_code)]

pub mod affinity;
pub mod bpf;
pub mod clock;
pub mod ethtool;
pub mod link;
pub mod listen_fds;
pub mod mmsg;
pub mod mtu;
pub mod priority;
pub mod redirect;
pub mod seccomp;
mod sockopt;
pub mod tun;
pub mod wake;
pub mod xdp_prog;
pub mod xsk;
pub mod xtables;
