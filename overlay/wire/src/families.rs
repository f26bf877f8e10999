//! What a node has in each family of IP: in IPv4, in IPv6, or in both, and never in neither.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ip::Version;
use crate::mac::MacAddr;

/// Something of IPv4, something of IPv6, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Families<V4, V6> {
    /// IPv4 alone.
    V4(V4),
    /// Dual stack.
    Both(V4, V6),
    /// IPv6 alone.
    V6(V6),
}

/// The subnets that belong together: a node's, or the whole network's.
pub type Subnets = Families<Ipv4Net, Ipv6Net>;

/// The addresses that belong together: a node's on the underlay, or its device's.
pub type Addresses = Families<Ipv4Addr, Ipv6Addr>;

/// The Ethernet addresses that a node answers to: flannel's has a device for each family of the underlay.
pub type MacAddrs = Families<MacAddr, MacAddr>;

impl<V4: Copy, V6: Copy> Families<V4, V6> {
    /// What there is of both; `None` if that is nothing.
    #[must_use]
    pub fn of(v4: Option<V4>, v6: Option<V6>) -> Option<Self> {
        match (v4, v6) {
            (Some(v4), Some(v6)) => Some(Self::Both(v4, v6)),
            (Some(v4), None) => Some(Self::V4(v4)),
            (None, Some(v6)) => Some(Self::V6(v6)),
            (None, None) => None,
        }
    }

    /// The part of IPv4.
    #[inline]
    #[must_use]
    pub fn v4(&self) -> Option<V4> {
        match *self {
            Self::V4(v4) | Self::Both(v4, _) => Some(v4),
            Self::V6(_) => None,
        }
    }

    /// The part of IPv6.
    #[inline]
    #[must_use]
    pub fn v6(&self) -> Option<V6> {
        match *self {
            Self::V6(v6) | Self::Both(_, v6) => Some(v6),
            Self::V4(_) => None,
        }
    }

    /// Whether there is a part of that family.
    #[inline]
    #[must_use]
    pub fn has(&self, family: Version) -> bool {
        match family {
            Version::V4 => self.v4().is_some(),
            Version::V6 => self.v6().is_some(),
        }
    }
}

impl Subnets {
    /// The subnet of each family, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4().map(IpNet::V4).into_iter().chain(self.v6().map(IpNet::V6))
    }

    /// Their first addresses, which flannel's nodes give to their devices.
    #[must_use]
    pub fn bases(&self) -> Addresses {
        match self {
            Self::V4(v4) => Addresses::V4(v4.network()),
            Self::Both(v4, v6) => Addresses::Both(v4.network(), v6.network()),
            Self::V6(v6) => Addresses::V6(v6.network()),
        }
    }

    /// Whether `address` lies in one of them.
    #[inline]
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4().is_some_and(|subnet| subnet.contains(&address)),
            IpAddr::V6(address) => self.v6().is_some_and(|subnet| subnet.contains(&address)),
        }
    }

    /// Whether every one of `inner` lies in the one of its family.
    #[must_use]
    pub fn cover(&self, inner: &Self) -> bool {
        inner.iter().all(|inner| self.iter().any(|outer| outer.contains(&inner)))
    }

    /// Whether some address lies in both.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> bool {
        self.iter().any(|ours| other.iter().any(|theirs| ours.contains(&theirs) || theirs.contains(&ours)))
    }
}

impl<T: Copy> Families<T, T> {
    /// What there is of that family, or else of the other.
    #[must_use]
    pub fn prefer(&self, family: Version) -> T {
        match (*self, family) {
            (Self::V4(one) | Self::V6(one), _)
            | (Self::Both(one, _), Version::V4)
            | (Self::Both(_, one), Version::V6) => one,
        }
    }
}

impl Addresses {
    /// The address of each family, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4().map(IpAddr::V4).into_iter().chain(self.v6().map(IpAddr::V6))
    }

    /// Whether `address` is one of them.
    #[inline]
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4() == Some(address),
            IpAddr::V6(address) => self.v6() == Some(address),
        }
    }

    /// Whether some address is one of both.
    #[must_use]
    pub fn share(&self, other: &Self) -> bool {
        self.iter().any(|address| other.contains(address))
    }

    /// The address of that family, or else of the other.
    #[must_use]
    pub fn prefer(&self, family: Version) -> IpAddr {
        match (*self, family) {
            (Self::V4(v4), _) | (Self::Both(v4, _), Version::V4) => v4.into(),
            (Self::V6(v6), _) | (Self::Both(_, v6), Version::V6) => v6.into(),
        }
    }

    /// The address of that family.
    #[inline]
    #[must_use]
    pub fn get(&self, family: Version) -> Option<IpAddr> {
        match family {
            Version::V4 => self.v4().map(IpAddr::V4),
            Version::V6 => self.v6().map(IpAddr::V6),
        }
    }
}

impl From<Ipv4Net> for Subnets {
    fn from(subnet: Ipv4Net) -> Self {
        Self::V4(subnet)
    }
}

impl From<Ipv6Net> for Subnets {
    fn from(subnet: Ipv6Net) -> Self {
        Self::V6(subnet)
    }
}

impl From<IpNet> for Subnets {
    fn from(subnet: IpNet) -> Self {
        match subnet {
            IpNet::V4(subnet) => Self::V4(subnet),
            IpNet::V6(subnet) => Self::V6(subnet),
        }
    }
}

impl From<Ipv4Addr> for Addresses {
    fn from(address: Ipv4Addr) -> Self {
        Self::V4(address)
    }
}

impl From<Ipv6Addr> for Addresses {
    fn from(address: Ipv6Addr) -> Self {
        Self::V6(address)
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

/// Both parts, with a comma in between.
impl<V4: fmt::Display, V6: fmt::Display> fmt::Display for Families<V4, V6> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => v4.fmt(f),
            Self::V6(v6) => v6.fmt(f),
            Self::Both(v4, v6) => write!(f, "{v4},{v6}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(v4: &str, v6: &str) -> Subnets {
        Subnets::of(v4.parse().ok(), v6.parse().ok()).unwrap()
    }

    #[test]
    fn there_is_at_least_one_family() {
        assert_eq!(Subnets::of(None, None), None);
        let both = subnets("10.1.9.0/24", "fd00:9::/64");
        assert_eq!((both.v4().is_some(), both.v6().is_some()), (true, true));
        assert_eq!(both.to_string(), "10.1.9.0/24,fd00:9::/64");
        let v4 = subnets("10.1.9.0/24", "");
        assert_eq!((v4.has(Version::V4), v4.has(Version::V6)), (true, false));
        assert_eq!(v4, Subnets::from("10.1.9.0/24".parse::<Ipv4Net>().unwrap()));
        let v6 = subnets("", "fd00:9::/64");
        assert_eq!((v6.has(Version::V4), v6.has(Version::V6)), (false, true));
        assert_eq!(v6.to_string(), "fd00:9::/64");
    }

    #[test]
    fn subnets_are_compared_family_by_family() {
        let network = subnets("10.1.0.0/16", "fd00::/48");
        let ours = subnets("10.1.9.0/24", "fd00:0:0:9::/64");
        assert!(network.cover(&ours) && !ours.cover(&network));
        assert!(!subnets("10.1.0.0/16", "").cover(&ours), "the network has no IPv6");
        assert!(!network.cover(&subnets("10.1.9.0/24", "fd01::/64")), "one of two is not enough");
        assert!(ours.overlap(&network));
        assert!(ours.overlap(&subnets("10.2.0.0/24", "fd00:0:0:9:1::/80")), "one of two is enough");
        assert!(!ours.overlap(&subnets("10.2.0.0/24", "fd00:0:0:8::/64")));
        assert!(!subnets("10.1.9.0/24", "").overlap(&subnets("", "::/0")));
        assert!(ours.contains("fd00:0:0:9::1".parse().unwrap()));
        assert_eq!(ours.bases().to_string(), "10.1.9.0,fd00:0:0:9::");
        assert!(!ours.contains("fd00:0:0:8::1".parse().unwrap()));
    }

    #[test]
    fn an_address_is_found_by_its_family() {
        let v4: IpAddr = "192.168.1.12".parse().unwrap();
        let v6: IpAddr = "2001:db8::12".parse().unwrap();
        let both = Addresses::of(Some(Ipv4Addr::new(192, 168, 1, 12)), "2001:db8::12".parse().ok()).unwrap();
        assert_eq!(both.iter().collect::<Vec<_>>(), [v4, v6]);
        assert_eq!((both.get(Version::V4), both.get(Version::V6)), (Some(v4), Some(v6)));
        assert!(both.contains(v6) && !Addresses::from(v4).contains(v6));
        assert_eq!(Addresses::from(v6).get(Version::V4), None);
        assert!(both.share(&Addresses::from(v6)) && !Addresses::from(v4).share(&Addresses::from(v6)));
    }

    #[test]
    fn what_one_family_lacks_the_other_may_stand_in_for() {
        for (all, expected) in
            [(Families::V4(4), [4, 4]), (Families::Both(4, 6), [4, 6]), (Families::V6(6), [6, 6])]
        {
            assert_eq!([Version::V4, Version::V6].map(|family| all.prefer(family)), expected);
        }
        let addresses = |v4: &str, v6: &str| Addresses::of(v4.parse().ok(), v6.parse().ok()).unwrap();
        for (all, expected) in [
            (addresses("10.0.0.1", ""), ["10.0.0.1", "10.0.0.1"]),
            (addresses("10.0.0.1", "fd00::1"), ["10.0.0.1", "fd00::1"]),
            (addresses("", "fd00::1"), ["fd00::1", "fd00::1"]),
        ] {
            let preferred = [Version::V4, Version::V6].map(|family| all.prefer(family).to_string());
            assert_eq!(preferred, expected);
        }
    }
}
