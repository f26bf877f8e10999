//! A lease's key: the subnet with `-` for `/`, as in `10.1.86.0-24`. A dual-stack node appends its
//! IPv6 subnet, as in `10.12.13.0-24&fd00:12:13::-56`.

use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};

/// The name does not stand for a subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the key of a lease (as in 10.1.86.0-24, host bits zero)")]
pub struct KeyError(
    /// The name as found.
    pub String,
);

/// The key of an IPv4 lease, without the store's prefix.
#[must_use]
pub fn key_of(subnet: Ipv4Net) -> String {
    format!("{}-{}", subnet.addr(), subnet.prefix_len())
}

/// The IPv4 subnet that `key` names; of a dual-stack key, its IPv4 half. A key with host bits set,
/// or in any other spelling than flannel's, is refused: two spellings of one subnet would be two owners.
pub fn parse_key(key: &str) -> Result<Ipv4Net, KeyError> {
    let refused = || KeyError(key.to_owned());
    let (ipv4, ipv6) = match key.split_once('&') {
        Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
        None => (key, None),
    };
    if ipv6.is_some_and(|half| !names_ipv6_subnet(half)) {
        return Err(refused());
    }
    let (address, length) = ipv4.split_once('-').ok_or_else(refused)?;
    let address = address.parse().map_err(|_| refused())?;
    let length = length.parse().map_err(|_| refused())?;
    let subnet = Ipv4Net::new(address, length).map_err(|_| refused())?.trunc();
    if key_of(subnet) == ipv4 { Ok(subnet) } else { Err(refused()) }
}

fn names_ipv6_subnet(half: &str) -> bool {
    let parse = || {
        let (address, length) = half.split_once('-')?;
        Ipv6Net::new(address.parse::<Ipv6Addr>().ok()?, length.parse().ok()?).ok()
    };
    parse().is_some_and(|subnet| subnet == subnet.trunc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flannels_keys_are_read() {
        assert_eq!(parse_key("10.1.86.0-24").unwrap(), "10.1.86.0/24".parse().unwrap());
        assert_eq!(parse_key("10.12.13.0-24&fd00:12:13::-56").unwrap(), "10.12.13.0/24".parse().unwrap());
    }

    #[test]
    fn other_names_are_refused() {
        for key in [
            "",
            "-",
            "10.1.86.0",
            "10.1.86.0/24",
            "10.1.86.0-",
            "10.1.86.0-33",
            "10.1.86.1-24",
            "10.1.86.0-024",
            "10.1.86.0-+24",
            "10.1.86-24",
            "10.1.86.0-24 ",
            "10.1.86.0-24&",
            "10.1.86.0-24&x",
            "10.1.86.0-24&fd00::1-56",
            "&fd00:12:13::-56",
            ".10.1.86.0-24.new",
        ] {
            assert_eq!(parse_key(key), Err(KeyError(key.to_owned())), "{key:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip(address: u32, length in 0u8..=32) {
            let subnet = Ipv4Net::new(address.into(), length).unwrap().trunc();
            prop_assert_eq!(parse_key(&key_of(subnet)), Ok(subnet));
        }

        #[test]
        fn no_text_panics_and_what_is_read_is_canonical(text in "[0-9.&:a-f-]{0,24}") {
            if let Ok(subnet) = parse_key(&text) {
                prop_assert!(text.starts_with(&key_of(subnet)));
            }
        }
    }
}
