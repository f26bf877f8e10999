//! What flannel calls a lease: a subnet, who owns it, and how its owner is reached.
//!
//! The shapes here are flannel's own, byte for byte: the key `10.1.86.0-24` (`store::key`) and the JSON
//! value `{"PublicIP":…,"PublicIPv6":null,…}` (`value`), as flannel 0.28 has them in
//! `pkg/subnet/etcd` and `pkg/lease`. `LeaseSet` is all leases as the store has them, `gate`
//! says which of them are used, `choose` picks the subnet to ask for, `Rivals` notices a second node that takes
//! itself for this one.

mod attrs;
mod choose;
mod conflict;
mod gate;
mod judgement;
mod rivals;
mod set;
mod value;
mod vtep_mac;

pub use attrs::{Lease, LeaseAttrs, LeaseBackend};
pub use choose::{Choice, NetworkFull, choose};
pub use conflict::Conflict;
pub use gate::{Gateway, Ground, HostFacts};
pub use judgement::{Admitted, Judgement, Reason, Refused};
pub use rivals::Rivals;
pub use set::{Changes, GRACE, Garbage, Known, LeaseSet};
pub use value::is_one_host;
pub use vtep_mac::derive_vtep_mac;
