//! What the gate has decided about the leases of a store.

use std::net::Ipv4Addr;
use std::ops::Deref;

use ipnet::Ipv4Net;

use super::attrs::Lease;
use super::conflict::Conflict;
use overlay_wire::MacAddr;

/// Leases of other nodes that have passed the gate. Only the gate makes one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted(pub(super) Vec<Lease>);

/// What is made of the leases of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The other nodes of our backend type, by subnet.
    pub peers: Admitted,
    /// How many leases are of another backend type. Their subnets are taken all the same.
    pub other_backend: usize,
    /// The subnets of all leases that pass, ours and those of other backend types among them.
    pub held: Vec<Ipv4Net>,
    /// The leases that are not used.
    pub refused: Vec<Refused>,
    /// Nodes that share what only one may have; the first of them, if there are many.
    pub conflicts: Vec<Conflict>,
}

/// A lease that is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} of {public_ip}: {reason}")]
pub struct Refused {
    /// Its key.
    pub key: String,
    /// The subnet that the key names.
    pub subnet: Ipv4Net,
    /// Whose it says it is.
    pub public_ip: Ipv4Addr,
    /// Why it is not used.
    pub reason: Reason,
}

/// Why a lease is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Its addresses are none of the network's.
    #[error("its subnet is not inside the network {0}")]
    Outside(Ipv4Net),
    /// It would take all there is.
    #[error("its subnet is the whole network")]
    WholeNetwork,
    /// Nobody can be reached there.
    #[error("its PublicIP {0} is {1}, not the address of a host")]
    NoHost(Ipv4Addr, &'static str),
    /// Frames cannot be addressed to it.
    #[error("its VtepMAC {0} is not the address of one station")]
    Mac(MacAddr),
    /// The way to its owner would lead through its owner.
    #[error("its PublicIP {0} lies in its own subnet")]
    Inside(Ipv4Addr),
    /// Packets to that node would go to its pods instead.
    #[error("its subnet holds the public address {0} of another node")]
    HoldsNode(Ipv4Addr),
    /// Its owner would be one of somebody's pods.
    #[error("its PublicIP {0} lies in the subnet of the lease {1}")]
    PodsAddress(Ipv4Addr, String),
    /// Somebody else has these addresses.
    #[error("its addresses belong to the lease {0} of {1}")]
    Overlaps(String, Ipv4Addr),
}

impl Deref for Admitted {
    type Target = [Lease];

    fn deref(&self) -> &[Lease] {
        &self.0
    }
}

impl Admitted {
    /// Those whose owner is not reached at one of `addresses`, which are this host's: a packet sent there would
    /// come back for ever.
    #[must_use]
    pub fn beyond(&self, addresses: &[Ipv4Addr]) -> Self {
        let is_beyond = |lease: &&Lease| !addresses.contains(&lease.attrs.public_ip);
        Self(self.iter().filter(is_beyond).cloned().collect())
    }
}
