//! What a packet that is asked about carries.

use std::str::FromStr;

use overlay_host::firewall::ruleset::Protocol;

/// Protocol and destination port, as in `tcp/80`, `udp/53` or `icmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carries {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: Option<u16>,
}

impl FromStr for Carries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = text.split_once('/').map_or((text, None), |(name, port)| (name, Some(port)));
        let known = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
        let protocol = known.ok_or_else(|| format!("'{name}' is none of tcp, udp and icmp"))?;
        let port = port.map(|port| port.parse().map_err(|_| format!("'{port}' is no port"))).transpose()?;
        if protocol == Protocol::Icmp && port.is_some() {
            return Err("icmp has no ports".to_owned());
        }
        Ok(Self { protocol, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packet_carries_is_read() {
        let read = |text: &str| text.parse::<Carries>();
        assert_eq!(read("tcp/80"), Ok(Carries { protocol: Protocol::Tcp, port: Some(80) }));
        assert_eq!(read("udp"), Ok(Carries { protocol: Protocol::Udp, port: None }));
        for bad in ["sctp/1", "tcp/", "tcp/70000", "icmp/8", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
