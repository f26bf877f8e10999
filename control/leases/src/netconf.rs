//! The network configuration: the JSON under `<prefix>/config`, as flannel 0.28 reads it
//! (`pkg/subnet/config.go` and each backend's own options), with its defaults and limits.
//! What this daemon cannot do is refused by name rather than ignored.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::backend::{BackendKind, DEFAULT_VNI};
use overlay_support::json::{self, JsonError, Object, shorten};

/// A network configuration that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The network that all subnets are cut from.
    pub network: Ipv4Net,
    /// The prefix length of a node's subnet: from that of `network` + 2, to 30.
    pub subnet_len: u8,
    /// The first subnet that may be leased; its base address.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be leased; its base address.
    pub subnet_max: Ipv4Addr,
    /// Whether the operator asks for nftables rather than iptables.
    pub enable_nftables: bool,
    /// How packets travel between nodes.
    pub backend: Backend,
}

/// How packets travel between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Bare IP packets in UDP.
    Udp {
        /// The UDP port, of all nodes alike.
        port: u16,
    },
    /// VXLAN, RFC 7348.
    Vxlan {
        /// The network identifier of this node's tunnel end, 24 bits.
        vni: u32,
        /// The UDP port, of all nodes alike.
        port: u16,
        /// The underlay's MTU to reckon with, in bytes; `None` for that of the interface used.
        mtu: Option<u32>,
        /// Whether nodes on one link send each other plain packets.
        direct_routing: bool,
    },
    /// Plain routes between nodes that are all on one link; no tunnel.
    HostGw,
    /// A lease and the subnet file, and no way to the other nodes: that is somebody else's business.
    Alloc,
}

impl Backend {
    /// Which nodes understand this one. The leases of alloc are written as those of udp are.
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        match self {
            Self::Udp { .. } | Self::Alloc => BackendKind::Udp,
            Self::Vxlan { .. } => BackendKind::Vxlan,
            Self::HostGw => BackendKind::HostGw,
        }
    }

    /// Its `Type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Udp { .. } => "udp",
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
        }
    }

    /// The tunnel's device, as flannel names it; `None` for a backend without a tunnel.
    #[must_use]
    pub fn tunnel_device(&self) -> Option<String> {
        match self {
            Self::Udp { .. } => Some("flannel0".to_owned()),
            Self::Vxlan { vni, .. } => Some(format!("flannel.{vni}")),
            Self::HostGw | Self::Alloc => None,
        }
    }

    /// Whether plain routes lead to the nodes on our link.
    #[must_use]
    pub fn routes_directly(&self) -> bool {
        matches!(self, Self::HostGw | Self::Vxlan { direct_routing: true, .. })
    }
}

impl NetworkConfig {
    /// What flannel reads of a configuration (`pkg/subnet/config.go`).
    pub const KEYS: [&'static str; 12] = [
        "Network",
        "SubnetLen",
        "SubnetMin",
        "SubnetMax",
        "EnableIPv4",
        "EnableIPv6",
        "EnableNFTables",
        "IPv6Network",
        "IPv6SubnetLen",
        "IPv6SubnetMin",
        "IPv6SubnetMax",
        "Backend",
    ];

    /// What it reads of `Backend`, for whichever of the backends that are here. An option of another of them harms
    /// nobody.
    pub const OPTIONS: [&'static str; 7] = ["Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting"];

    /// Reads and checks the configuration. Keys match whatever their case, the last of several counts, and unknown
    /// ones are passed over, as in Go; 0, an empty address and `null` mean the default, as in flannel.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let value = json::parse(text.as_bytes())?;
        let fields = Object::of(&value)?;

        only(fields, "EnableIPv4", true)?;
        only(fields, "EnableIPv6", false)?;
        let network = network(fields)?;
        let subnet_len = subnet_len(fields, network)?;
        let (subnet_min, subnet_max) = limits(fields, network, subnet_len)?;
        let enable_nftables = fields.flag("EnableNFTables")?.unwrap_or(false);
        let backend = backend(fields)?;
        Ok(Self { network, subnet_len, subnet_min, subnet_max, enable_nftables, backend })
    }

    /// Keys of `text` that nobody reads, each with the one that may be meant; none of what is no configuration.
    #[must_use]
    pub fn unknown_keys(text: &str) -> Vec<UnknownKey> {
        let Ok(value) = json::parse(text.as_bytes()) else { return Vec::new() };
        let Ok(fields) = Object::of(&value) else { return Vec::new() };
        let mut unknown = unknown(fields, "", &Self::KEYS);
        if let Some(Ok(options)) = fields.get("Backend").map(Object::of) {
            unknown.extend(self::unknown(options, "Backend.", &Self::OPTIONS));
        }
        unknown
    }

    /// What rules and the control socket are named after: the tunnel's device, or else the network's address,
    /// which is as short as the name of a device has to be, and never one.
    #[must_use]
    pub fn device(&self) -> String {
        self.backend.tunnel_device().unwrap_or_else(|| self.network.network().to_string())
    }

    /// Whether a node may lease `subnet`: of the right length, from SubnetMin to SubnetMax.
    #[must_use]
    pub fn fits(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(&subnet.addr())
            && subnet == subnet.trunc()
    }

    /// The first and the last address that may be a pod's: of what lies between SubnetMin and SubnetMax.
    #[must_use]
    pub fn pods(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.subnet_min, Ipv4Net::new_assert(self.subnet_max, self.subnet_len).broadcast())
    }

    /// All subnets from SubnetMin to SubnetMax, ascending.
    pub fn subnets(&self) -> impl Iterator<Item = Ipv4Net> + use<> {
        let length = self.subnet_len;
        (self.subnet_min.to_bits()..=self.subnet_max.to_bits())
            .step_by(1 << (32 - length))
            .map(move |base| Ipv4Net::new_assert(base.into(), length))
    }
}

/// A key of a network configuration that means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// As it stands there, with the object it is in: `Backend.Vin`.
    pub key: String,
    /// The key that may be meant.
    pub meant: Option<&'static str>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        self.meant.map_or(Ok(()), |meant| write!(f, " (is {meant} meant?)"))
    }
}

/// Those of `fields`, which are in the object `within`, that are none of `known`.
fn unknown(fields: Object<'_>, within: &str, known: &[&'static str]) -> Vec<UnknownKey> {
    let is_known = |name: &&str| known.iter().any(|known| known.eq_ignore_ascii_case(name));
    let unknown = fields.names().filter(|name| !is_known(name));
    let key =
        |name: &str| UnknownKey { key: shorten(&format!("{within}{name}")), meant: nearest(name, known) };
    unknown.map(key).collect()
}

/// The one of `known` that `name` is a slip of the fingers away from.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let distance = |known: &str| strsim::damerau_levenshtein(&name, &known.to_ascii_lowercase());
    let (distance, known) = known.iter().map(|known| (distance(known), *known)).min()?;
    // Of a short key, two other letters make another word.
    (distance <= 2 && distance * 2 < known.len()).then_some(known)
}

/// Accepts the flag `key` only with the value `ours`, which is also flannel's default.
fn only(fields: Object<'_>, key: &'static str, ours: bool) -> Result<(), JsonError> {
    match fields.flag(key)? {
        Some(value) if value != ours => {
            Err(JsonError::field(key, value, format!("{ours} (the other is not supported)")))
        }
        _ => Ok(()),
    }
}

fn network(fields: Object<'_>) -> Result<Ipv4Net, JsonError> {
    let allowed = format!("an IPv4 network as in 10.1.0.0/16, not longer than /{LONGEST_NETWORK}");
    let text = fields.text("Network")?.ok_or_else(|| JsonError::missing("Network", allowed.as_str()))?;
    let refuse = |allowed: String| JsonError::field("Network", format_args!("{text:?}"), allowed);
    let network = parse_network(text)
        .map(|network| network.trunc())
        .filter(|network| network.prefix_len() <= LONGEST_NETWORK && !network.addr().is_unspecified())
        .ok_or_else(|| refuse(allowed))?;
    for (base, length, purpose) in NOBODYS {
        let reserved = Ipv4Net::new_assert(base.into(), length);
        if network.contains(&reserved) || reserved.contains(&network) {
            return Err(refuse(format!("a network that hosts may use: {reserved} is for {purpose}")));
        }
    }
    Ok(network)
}

/// Numbers that begin with a zero are octal to some and decimal to others: neither Go nor we take them.
fn parse_network(text: &str) -> Option<Ipv4Net> {
    let (address, length) = text.split_once('/')?;
    let network = Ipv4Net::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    (length == network.prefix_len().to_string()).then_some(network)
}

fn subnet_len(fields: Object<'_>, network: Ipv4Net) -> Result<u8, JsonError> {
    // The first subnet is left out, so that fewer than four would leave one host with nobody to talk to.
    let shortest = network.prefix_len() + 2;
    let default = shortest.max(DEFAULT_SUBNET_LEN);
    let allowed = || {
        format!(
            "a whole number from {shortest} to {LONGEST_SUBNET} (0 for {default}) with the Network {network}"
        )
    };
    let given = fields.number_of("SubnetLen", 0..=u32::MAX, allowed)?.unwrap_or(0);
    match u8::try_from(given) {
        Ok(0) => Ok(default),
        Ok(length) if (shortest..=LONGEST_SUBNET).contains(&length) => Ok(length),
        _ => Err(JsonError::field("SubnetLen", given, allowed())),
    }
}

fn limits(fields: Object<'_>, network: Ipv4Net, length: u8) -> Result<(Ipv4Addr, Ipv4Addr), JsonError> {
    let size = 1u32 << (32 - length);
    // With the first subnet, an interface would carry the Network's own base address.
    let second = Ipv4Addr::from(network.network().to_bits() + size);
    let last = Ipv4Addr::from(network.broadcast().to_bits() - (size - 1));

    let min = limit(fields, "SubnetMin", network, length)?.unwrap_or(second);
    let max = limit(fields, "SubnetMax", network, length)?.unwrap_or(last);
    if min > max {
        return Err(JsonError::field("SubnetMin", min, format!("at most SubnetMax, which is {max}")));
    }
    Ok((min, max))
}

fn limit(
    fields: Object<'_>,
    key: &'static str,
    network: Ipv4Net,
    length: u8,
) -> Result<Option<Ipv4Addr>, JsonError> {
    let Some(text) = fields.text(key)? else { return Ok(None) };
    let base_of_subnet = |address: &Ipv4Addr| {
        network.contains(address) && Ipv4Net::new_assert(*address, length).network() == *address
    };
    match text.parse::<Ipv4Addr>() {
        Ok(Ipv4Addr::UNSPECIFIED) => Ok(None),
        Ok(address) if base_of_subnet(&address) => Ok(Some(address)),
        _ => {
            let allowed = format!("the first address of a /{length} within the Network {network}");
            Err(JsonError::field(key, format_args!("{text:?}"), allowed))
        }
    }
}

fn backend(fields: Object<'_>) -> Result<Backend, JsonError> {
    let Some(value) = fields.get("Backend") else {
        return Ok(Backend::Udp { port: UDP_PORT });
    };
    let options = Object::of(value).map_err(|_| JsonError::field("Backend", value, "an object with Type"))?;

    let allowed = "\"udp\", \"vxlan\", \"host-gw\" or \"alloc\"";
    let name = options.text("Backend.Type")?.ok_or_else(|| JsonError::missing("Backend.Type", allowed))?;
    match name.to_ascii_lowercase().as_str() {
        "udp" => {
            let port = options.number("Backend.Port", 1..=MAX_PORT)?;
            Ok(Backend::Udp { port: port.map_or(UDP_PORT, as_port) })
        }
        "vxlan" => {
            // Accepted, and nothing to do: a group policy that a peer sends is passed over on receipt, and who
            // owns which address is never learned from packets.
            options.flag("Backend.GBP")?;
            options.flag("Backend.Learning")?;
            let direct_routing = options.flag("Backend.DirectRouting")?.unwrap_or(false);
            let vni = options.number("Backend.VNI", 0..=MAX_NAMED_VNI)?.unwrap_or(DEFAULT_VNI);
            let port = options.number("Backend.Port", 0..=MAX_PORT)?.filter(|port| *port != 0);
            let (port, mtu) = (port.map_or(VXLAN_PORT, as_port), mtu(options)?);
            Ok(Backend::Vxlan { vni, port, mtu, direct_routing })
        }
        "host-gw" => Ok(Backend::HostGw),
        "alloc" => Ok(Backend::Alloc),
        other => {
            let known = if FLANNELS.contains(&other) { " (flannel's others are not supported)" } else { "" };
            Err(JsonError::field("Backend.Type", format_args!("{name:?}"), format!("{allowed}{known}")))
        }
    }
}

fn mtu(options: Object<'_>) -> Result<Option<u32>, JsonError> {
    let allowed = || format!("a whole number from {MIN_MTU} to {MAX_MTU} (0 for that of the interface)");
    match options.number_of("Backend.MTU", 0..=u32::MAX, allowed)? {
        None | Some(0) => Ok(None),
        Some(mtu) if (MIN_MTU..=MAX_MTU).contains(&mtu) => Ok(Some(mtu)),
        Some(mtu) => Err(JsonError::field("Backend.MTU", mtu, allowed())),
    }
}

/// `number` within `0..=MAX_PORT`, which the caller has checked.
fn as_port(number: u32) -> u16 {
    u16::try_from(number).expect("a port has 16 bits")
}

/// What no host's packets are routed to or from (RFC 6890, RFC 5771): the kernel would drop them, or the host would
/// lose its own way there.
const NOBODYS: [([u8; 4], u8, &str); 5] = [
    ([0, 0, 0, 0], 8, "hosts that do not know their address yet"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "the link itself, as cloud metadata services are"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "nobody yet"),
];

/// Backends of flannel's that are not here.
const FLANNELS: [&str; 8] =
    ["ipip", "ipsec", "wireguard", "extension", "ali-vpc", "aws-vpc", "gce", "tencent-vpc"];

/// A longer Network has no room for four subnets of four addresses.
const LONGEST_NETWORK: u8 = 28;
/// A subnet needs an address for the tunnel and one for the bridge.
const LONGEST_SUBNET: u8 = 30;
/// A node's subnet where the Network is large enough for four of them.
const DEFAULT_SUBNET_LEN: u8 = 24;

/// A VNI has 24 bits, but `flannel.<VNI>` must fit the 15 bytes of a device's name.
const MAX_NAMED_VNI: u32 = 9_999_999;
const MAX_PORT: u32 = u16::MAX as u32;
/// flannel's port for its udp backend.
const UDP_PORT: u16 = 8285;
/// The Linux kernel's default for VXLAN, which flannel leaves as it is (IANA's is 4789).
const VXLAN_PORT: u16 = 8472;
/// What every IPv4 host must be able to receive (RFC 791): less than this leaves no overlay to speak of.
const MIN_MTU: u32 = 576;
/// The largest that an IPv4 packet's length field can say.
const MAX_MTU: u32 = 65_535;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refusal(text: &str) -> String {
        NetworkConfig::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn the_defaults_are_flannels() {
        assert_eq!(
            parse(r#"{"Network":"10.1.0.0/16"}"#),
            NetworkConfig {
                network: "10.1.0.0/16".parse().unwrap(),
                subnet_len: 24,
                subnet_min: Ipv4Addr::new(10, 1, 1, 0),
                subnet_max: Ipv4Addr::new(10, 1, 255, 0),
                enable_nftables: false,
                backend: Backend::Udp { port: 8285 },
            }
        );
        let vxlan = parse(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#).backend;
        assert_eq!(vxlan, Backend::Vxlan { vni: 1, port: 8472, mtu: None, direct_routing: false });
    }

    #[test]
    fn subnet_len_follows_the_networks_size() {
        for (network, len) in
            [("10.0.0.0/8", 24), ("10.1.0.0/22", 24), ("10.1.0.0/23", 25), ("10.1.0.0/28", 30)]
        {
            assert_eq!(parse(&format!(r#"{{"Network":"{network}"}}"#)).subnet_len, len, "{network}");
        }
        assert_eq!(parse(r#"{"Network":"10.1.0.0/16","SubnetLen":18}"#).subnet_len, 18);
        assert_eq!(parse(r#"{"Network":"10.1.0.0/16","SubnetLen":0}"#).subnet_len, 24);
    }

    #[test]
    fn everything_given_is_taken_whatever_the_case_of_its_key() {
        let config = parse(
            r#"{"network":"10.1.2.3/16","SUBNETLEN":26,"subnetmin":"10.1.4.64","SubnetMax":"10.1.9.192",
                "EnableIPv4":true,"EnableIPv6":false,"enablenftables":true,"Unknown":{"x":1},
                "backend":{"type":"VXLAN","vni":7,"port":4789,"mtu":1400,"GBP":false,"Learning":null,"Other":1}}"#,
        );
        assert_eq!(config.network, "10.1.0.0/16".parse().unwrap());
        assert_eq!(config.subnet_min, Ipv4Addr::new(10, 1, 4, 64));
        assert_eq!(config.subnet_max, Ipv4Addr::new(10, 1, 9, 192));
        assert!(config.enable_nftables);
        assert_eq!(
            config.backend,
            Backend::Vxlan { vni: 7, port: 4789, mtu: Some(1400), direct_routing: false }
        );
    }

    #[test]
    fn keys_that_nobody_reads_are_named_with_what_may_be_meant() {
        let told = |text: &str| -> Vec<String> {
            NetworkConfig::unknown_keys(text).iter().map(ToString::to_string).collect()
        };
        for (text, wanted) in [
            (r#"{"network":"10.1.0.0/16","BACKEND":{"type":"vxlan","vni":7,"Learning":true}}"#, vec![]),
            (r#"{"IPv6Network":"fd00::/48","Backend":{"Type":"udp","MTU":1}}"#, vec![]),
            (r#"{"Bakcend":{"Typ":"vxlan"}}"#, vec!["Bakcend (is Backend meant?)"]),
            (
                r#"{"SubnetLength":24,"subnetmn":"","Backend":{"Vin":7,"Pot":1,"Key":"x"}}"#,
                vec![
                    "SubnetLength",
                    "subnetmn (is SubnetMin meant?)",
                    "Backend.Key",
                    "Backend.Pot (is Port meant?)",
                    "Backend.Vin (is VNI meant?)",
                ],
            ),
            ("no JSON", vec![]),
            ("[]", vec![]),
        ] {
            assert_eq!(told(text), wanted, "{text}");
        }
    }

    #[test]
    fn the_options_of_the_backends_are_taken() {
        let backend = |text: &str| parse(&format!(r#"{{"Network":"10.1.0.0/16","Backend":{text}}}"#)).backend;
        let plain = Backend::Vxlan { vni: 1, port: 8472, mtu: None, direct_routing: false };
        assert_eq!(backend(r#"{"Type":"vxlan","GBP":true,"Learning":true}"#), plain);
        let direct = Backend::Vxlan { vni: 1, port: 8472, mtu: None, direct_routing: true };
        assert_eq!(backend(r#"{"Type":"vxlan","DirectRouting":true}"#), direct);
        assert_eq!(backend(r#"{"Type":"host-gw"}"#), Backend::HostGw);
        assert_eq!(backend(r#"{"Type":"alloc"}"#), Backend::Alloc);
    }

    #[test]
    fn zero_and_the_empty_address_mean_the_default() {
        let zero = r#"{"Network":"10.1.0.0/16","SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0",
                       "EnableIPv6":false,"IPv6Network":"fd00:12::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00::","IPv6SubnetMax":null,
                       "Backend":{"Type":"vxlan","Port":0,"MTU":0}}"#;
        assert_eq!(parse(zero), parse(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#));
    }

    #[test]
    fn an_error_names_the_key_the_value_and_what_is_allowed() {
        let cases = [
            (r#"{}"#, "Network is missing: must be an IPv4 network"),
            (r#"{"Network":"10.1.0.0"}"#, "Network is \"10.1.0.0\": must be"),
            (r#"{"Network":"10.1.0.0/29"}"#, "Network is \"10.1.0.0/29\": must be"),
            (r#"{"Network":"0.0.0.0/0"}"#, "Network is \"0.0.0.0/0\": must be"),
            (r#"{"Network":"010.001.0.0/16"}"#, "Network is \"010.001.0.0/16\": must be"),
            (r#"{"Network":"10.1.0.0/016"}"#, "Network is \"10.1.0.0/016\": must be"),
            (r#"{"Network":7}"#, "Network is 7: must be a text"),
            (
                r#"{"Network":"10.1.0.0/16","SubnetLen":31}"#,
                "SubnetLen is 31: must be a whole number from 18 to 30",
            ),
            (r#"{"Network":"10.1.0.0/16","SubnetLen":17}"#, "SubnetLen is 17: must be"),
            (r#"{"Network":"10.1.0.0/16","SubnetLen":300}"#, "SubnetLen is 300: must be"),
            (r#"{"Network":"10.1.0.0/16","SubnetLen":-1}"#, "SubnetLen is -1: must be"),
            (r#"{"Network":"10.1.0.0/16","SubnetLen":"24"}"#, "SubnetLen is \"24\": must be a whole number"),
            (
                r#"{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}"#,
                "SubnetMin is \"10.2.0.0\": must be the first",
            ),
            (
                r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.9.1"}"#,
                "SubnetMax is \"10.1.9.1\": must be the first",
            ),
            (
                r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.8.0"}"#,
                "SubnetMin is 10.1.9.0: must be at most SubnetMax, which is 10.1.8.0",
            ),
            (r#"{"Network":"10.1.0.0/16","EnableIPv6":true}"#, "EnableIPv6 is true: must be false"),
            (r#"{"Network":"10.1.0.0/16","EnableIPv4":false}"#, "EnableIPv4 is false: must be true"),
            (r#"{"Network":"10.1.0.0/16","EnableNFTables":1}"#, "EnableNFTables is 1: must be true or false"),
            (r#"{"Network":"10.1.0.0/16","Backend":"udp"}"#, "Backend is \"udp\": must be an object"),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{}}"#,
                "Backend.Type is missing: must be \"udp\", \"vxlan\", \"host-gw\" or \"alloc\"",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"wireguard"}}"#,
                "Backend.Type is \"wireguard\": must be",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":0}}"#,
                "Backend.Port is 0: must be a whole number from 1 to 65535",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","Port":65536}}"#,
                "Backend.Port is 65536: must be",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":10000000}}"#,
                "Backend.VNI is 10000000: must be a whole number from 0 to 9999999",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","MTU":100}}"#,
                "Backend.MTU is 100: must be",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":"yes"}}"#,
                "Backend.DirectRouting is \"yes\": must be true or false",
            ),
        ];
        for (text, start) in cases {
            assert!(refusal(text).starts_with(start), "{text}: {}", refusal(text));
        }
    }

    #[test]
    fn networks_that_no_host_may_use_are_refused_by_name() {
        for (network, reserved) in [
            ("127.0.0.0/8", "127.0.0.0/8 is for loopback"),
            ("127.1.0.0/16", "127.0.0.0/8 is for loopback"),
            ("126.0.0.0/7", "127.0.0.0/8 is for loopback"),
            ("0.1.0.0/16", "0.0.0.0/8 is for hosts that"),
            ("169.254.0.0/16", "169.254.0.0/16 is for the link"),
            ("169.0.0.0/8", "169.254.0.0/16 is for the link"),
            ("239.1.0.0/16", "224.0.0.0/4 is for multicast"),
            ("240.0.0.0/8", "240.0.0.0/4 is for nobody"),
            ("255.255.255.0/24", "240.0.0.0/4 is for nobody"),
        ] {
            let said = refusal(&format!(r#"{{"Network":"{network}"}}"#));
            assert!(said.contains("a network that hosts may use") && said.contains(reserved), "{said}");
        }
        for usable in ["1.0.0.0/8", "126.0.0.0/8", "128.0.0.0/8", "100.64.0.0/10", "223.0.0.0/8"] {
            parse(&format!(r#"{{"Network":"{usable}"}}"#));
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_position() {
        let text = refusal("{\n  \"Network\": 10.1.0.0/16\n}");
        assert!(text.starts_with("not JSON: ") && text.ends_with("line 2 column 18"), "{text}");
        assert!(refusal("").starts_with("not JSON: EOF"), "{}", refusal(""));
        assert_eq!(refusal("[]"), "not a JSON object: []");
    }

    #[test]
    fn the_subnets_run_from_min_to_max_up_to_the_last_address() {
        let config = parse(r#"{"Network":"223.255.255.0/24","SubnetLen":30}"#);
        let subnets: Vec<Ipv4Net> = config.subnets().collect();
        assert_eq!(subnets.len(), 63);
        assert_eq!(subnets[0], "223.255.255.4/30".parse().unwrap());
        assert_eq!(subnets[62], "223.255.255.252/30".parse().unwrap());
        assert!(subnets.iter().all(|subnet| config.fits(*subnet)));
        assert!(!config.fits("223.255.255.0/30".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn every_accepted_configuration_has_room(address: u32, prefix in 0u8..=32, len in 0u8..=33) {
            let network = Ipv4Net::new(address.into(), prefix).unwrap();
            if let Ok(config) = NetworkConfig::parse(&format!(r#"{{"Network":"{network}","SubnetLen":{len}}}"#)) {
                prop_assert!(config.subnets().take(3).count() == 3);
                prop_assert!(config.network.contains(&config.subnet_max));
                prop_assert!(config.subnets().take(1000).all(|subnet| config.fits(subnet)));
            }
        }
    }
}
