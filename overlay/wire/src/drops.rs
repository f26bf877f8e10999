//! Why packets are dropped. A drop is counted, never logged by itself.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $label:literal,)*) => {
        /// Why a packet was not forwarded.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[doc = $doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of declaration.
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$name),*];

            /// Its name in `overlayctl` and in metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// The reason of this name.
            #[must_use]
            pub fn named(label: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|reason| reason.label() == label)
            }

            /// What it means, in sentences: what is said of it above.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                // Each line begins with the space that follows `///`.
                match self { $(Self::$name => concat!($($doc),*).trim_start(),)* }
            }
        }
    };
}

drop_reasons! {
    /// Fewer bytes than its headers announce, or too few for a header at all.
    Truncated = "truncated",
    /// A header contradicts itself: version, header length, total length or checksum.
    Malformed = "malformed",
    /// Not an IP packet, or one of a version that the network does not have.
    NotIp = "not_ip",
    /// The VXLAN header lacks the flag that says its VNI is valid (RFC 7348, section 5).
    BadVxlanHeader = "bad_vxlan_header",
    /// A VXLAN network that is not ours.
    WrongVni = "wrong_vni",
    /// The inner frame is addressed to another VTEP.
    WrongMac = "wrong_mac",
    /// The outer source is no node of the network, and the inner source no node's either.
    UnknownPeer = "unknown_peer",
    /// The outer source is no node of the network, but the inner source belongs to one: it may have several
    /// addresses or be behind a NAT. A forger can do the same.
    UnknownAddress = "unknown_address",
    /// The inner source belongs to another node than the one that the outer source is: a node that has several
    /// addresses, of which one is another's in the store, or a forger among the nodes.
    OtherPeersSource = "other_peers_source",
    /// From a node, but with an inner source of the network that is nobody's: of a subnet that the node had
    /// earlier, and its containers still have.
    StaleSource = "stale_source",
    /// From a node, but with an inner source outside of the network that is not its public address.
    WrongSource = "wrong_source",
    /// The inner source is an address of this host or of its own subnet.
    OwnSource = "own_source",
    /// The inner source is no host's address: loopback, link-local, multicast, broadcast and the like.
    MartianSource = "martian_source",
    /// The inner destination is no host's address.
    MartianDestination = "martian_destination",
    /// The sender says by which hosts the packet is to go.
    SourceRoute = "source_route",
    /// A tunnel's packet is to go into the tunnel: the way to a peer's public address leads through the overlay.
    Recursion = "recursion",
    /// A tunnel's packet has come out of the tunnel: taken in, it would speak for whomever its writer likes.
    Nested = "nested_tunnel",
    /// A router has marked it for congestion, and the inner sender takes no marks: to it, the loss is the mark (RFC 6040).
    Congestion = "congestion",
    /// The time to live has run out (flannel's UDP format counts each end of the tunnel as a hop).
    TtlExpired = "ttl_expired",
    /// No node owns the destination.
    NoRoute = "no_route",
    /// The destination is in this node's own subnet, and yet the host routed it into the overlay:
    /// the bridge that should have it is not up.
    OwnSubnet = "own_subnet",
    /// Larger than the overlay's MTU and not to be fragmented.
    TooBig = "too_big",
    /// The underlay socket refused it.
    SendFailed = "send_failed",
    /// The overlay device refused it.
    WriteFailed = "write_failed",
}

impl DropReason {
    /// What an operator can do.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Truncated | Self::Malformed => {
                "find out who sends it: 'overlayctl drops' shows the last one, 'overlayctl capture --drops' more"
            }
            Self::NotIp => "let pods use IPv4: no IPv6 subnets are leased",
            Self::BadVxlanHeader => {
                "something else sends to the tunnel's port: find out who ('overlayctl drops'), or give the network another Port"
            }
            Self::WrongVni => {
                "give all nodes of the network the same VNI, and another network on the same nodes another Port"
            }
            Self::WrongMac => {
                "the sender has an earlier lease of this node: it passes once that has followed the store; if it does not, look at its store ('overlayctl status' there)"
            }
            Self::UnknownPeer => {
                "if it is a node, see whether it has a lease ('overlayctl leases') and uses this store and prefix; otherwise somebody tries, and a firewall in front of the tunnel's port ends it"
            }
            Self::UnknownAddress => {
                "if a node has several addresses or is behind a NAT, give it --public-ip with the address that it is seen by (or --iface)"
            }
            Self::OtherPeersSource => {
                "if nodes share an address or have several, give each its own --public-ip; otherwise one of them forges"
            }
            Self::StaleSource => {
                "if a node has changed its subnet, restart its containers (docker), which still have addresses of the earlier one"
            }
            Self::WrongSource => {
                "what does not come from pods should be masqueraded by the node that sends it (--return-path-masq there); replies from another address of a node pass if it runs overlayd, and else if what pods send there is masqueraded here (--ip-masq), or with --source-check=loose"
            }
            Self::OwnSource => {
                "if another node has a bridge with this node's subnet, start its containers anew there; otherwise packets go round: compare 'overlayctl routes' of both nodes"
            }
            Self::MartianSource | Self::MartianDestination | Self::SourceRoute => {
                "no router would forward it: find the pod that sends it, on the node that 'overlayctl drops' shows"
            }
            Self::Recursion => {
                "the way to the other nodes must not lead through the overlay: see 'overlayctl routes', and keep Network apart from the nodes' addresses"
            }
            Self::Nested => {
                "a pod sends to the tunnel's port of a node: find it on the node that 'overlayctl drops' shows"
            }
            Self::Congestion => {
                "the underlay is congested: a router on the way marks packets, and senders without ECN learn it by this loss"
            }
            Self::TtlExpired => {
                "traceroute does this; otherwise packets go round: compare 'overlayctl routes' of both nodes"
            }
            Self::NoRoute => {
                "is the daemon of the node with that subnet running, with the same store and prefix? See 'overlayctl leases'"
            }
            Self::OwnSubnet => {
                "the bridge with this node's subnet is not up: start docker with --bip from the subnet file"
            }
            Self::TooBig => {
                "senders are told what fits; if it goes on, let ICMP 'fragmentation needed' reach pods, or give them the MTU of the subnet file"
            }
            Self::SendFailed => {
                "the underlay refuses: see 'ip route get' for the node, and the host's OUTPUT rules ('overlayctl check')"
            }
            Self::WriteFailed => {
                "the host takes no more: its processors are busy, or the overlay device is down ('overlayctl check')"
            }
        }
    }

    /// The remedy, for the log, where packets dropped for it need not be somebody's attempt.
    #[must_use]
    pub const fn hint(self) -> Option<&'static str> {
        match self {
            Self::UnknownAddress
            | Self::OtherPeersSource
            | Self::StaleSource
            | Self::WrongSource
            | Self::OwnSubnet
            | Self::Congestion => Some(self.remedy()),
            _ => None,
        }
    }

    /// What can stop a packet from the overlay device to the wire.
    pub const EGRESS: [Self; 9] = [
        Self::Truncated,
        Self::Malformed,
        Self::NotIp,
        Self::Recursion,
        Self::TtlExpired,
        Self::NoRoute,
        Self::OwnSubnet,
        Self::TooBig,
        Self::SendFailed,
    ];

    /// What can stop a packet from the wire to the overlay device.
    pub const INGRESS: [Self; 19] = [
        Self::Truncated,
        Self::Malformed,
        Self::NotIp,
        Self::BadVxlanHeader,
        Self::WrongVni,
        Self::WrongMac,
        Self::UnknownPeer,
        Self::UnknownAddress,
        Self::OtherPeersSource,
        Self::StaleSource,
        Self::WrongSource,
        Self::OwnSource,
        Self::MartianSource,
        Self::MartianDestination,
        Self::SourceRoute,
        Self::Nested,
        Self::Congestion,
        Self::TtlExpired,
        Self::WriteFailed,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_in_sentences() {
        for reason in DropReason::ALL {
            assert_eq!(DropReason::named(reason.label()), Some(reason));
            let meaning = reason.meaning();
            assert!(meaning.ends_with('.') && !meaning.contains("  "), "{meaning:?}");
            assert!(!reason.remedy().ends_with('.'), "{}", reason.remedy());
        }
        assert_eq!(DropReason::named("none"), None);
    }
}
