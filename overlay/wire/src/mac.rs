//! Ethernet addresses, as the inner frames of VXLAN carry them.

use std::fmt;
use std::str::FromStr;

/// A 48-bit Ethernet address. Written as `de:6e:e0:72:d6:e8`, which is also how flannel's
/// `VtepMAC` carries it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether this can be the address of one VTEP: neither a group address nor all zeros.
    #[must_use]
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six pairs of hexadecimal digits separated by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an Ethernet address (six pairs of hexadecimal digits, as in de:6e:e0:72:d6:e8)")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseMacError(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(bad)?;
            if pair.len() != 2 || !pair.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        match pairs.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let mac: MacAddr = "de:6e:E0:72:d6:e8".parse().unwrap();
        assert_eq!(mac.0, [0xde, 0x6e, 0xe0, 0x72, 0xd6, 0xe8]);
        assert_eq!(mac.to_string(), "de:6e:e0:72:d6:e8");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "de:6e:e0:72:d6", "de:6e:e0:72:d6:e8:00", "de:6e:e0:72:d6:+8", "de-6e-e0-72-d6-e8"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn only_one_stations_address_is_unicast() {
        assert!("de:6e:e0:72:d6:e8".parse::<MacAddr>().unwrap().is_unicast());
        assert!(!MacAddr([0; 6]).is_unicast());
        assert!(!MacAddr([0xff; 6]).is_unicast());
    }
}
