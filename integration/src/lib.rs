//! The test harness: hosts, networks and pods made of network namespaces, the real programs
//! around the daemon (etcd, docker, iperf3, tcpdump), and the built `overlayd` itself.
//!
//! The ground that nearly all tests stand on, [`Site::two_hosts`]:
//!
//! ```text
//!                     router: forwards between the LANs; etcd runs here
//!        ┌──────────────────────┴───────────────────────┐
//!  lan1 192.168.1.1/24                        lan199 192.168.199.1/24
//!        │                                              │
//!  eth0 192.168.1.12/24                       eth0 192.168.199.238/24
//!  worker, rp_filter=1                        master, rp_filter=1
//!  flannel0 or flannel.1                      flannel0 or flannel.1
//!  docker0 <its FLANNEL_SUBNET>               docker0 <its FLANNEL_SUBNET>
//!     │      │                                   │
//!  pod .2  pod .3                             pod .2
//! ```
//!
//! Each LAN is a bare pair of interfaces, host and router, so that frames pass as they were sent,
//! super-packets whole and checksums unfilled ([`Wire::Virtual`]), or, where a test wants that, like
//! a cable of 1500 octets ([`Wire::Plain`]). More hosts have more LANs.
//! The pods' network is 10.1.0.0/16, cut into /24 subnets, one per host.
//!
//! A harness function that cannot do its work panics and says what failed: in a test that is the
//! wanted end. Everything a [`Site`] made is gone when it is dropped, also on a panic; what a killed
//! run left behind is removed by the next one.

pub mod capture;
pub mod certificates;
pub mod datagrams;
pub mod dockerd;
pub mod etcd;
pub mod faults;
pub mod flood;
pub mod frozen;
pub mod guard;
pub mod hostile;
pub mod http;
pub mod kernel_vxlan;
pub mod leak;
pub mod limits;
pub mod machine;
pub mod netns;
pub mod noise;
pub mod overlayd;
pub mod packets;
pub mod pair;
pub mod process;
pub mod service;
pub mod service_manager;
pub mod site;
pub mod soak;
pub mod steady;
pub mod store;
pub mod traffic;

pub use etcd::Etcd;
pub use netns::Namespace;
pub use overlayd::{Overlayd, Status};
pub use pair::Pair;
pub use process::{SOON, await_until};
pub use site::{Host, Pod, Site, SubnetEnv, Wire};
pub use store::{Backend, Store};
