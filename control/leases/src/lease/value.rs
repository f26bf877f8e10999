//! A lease's value: flannel's JSON. Written byte for byte as flannel writes it; read leniently, so
//! that fields added by later versions do not cost us a peer.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::attrs::{LeaseAttrs, LeaseBackend};
use crate::backend::{DEFAULT_VNI, MAX_VNI};
use crate::store::MAX_VALUE;
use overlay_support::json::{self, JsonError, Object, cut};
use overlay_wire::MacAddr;

impl LeaseAttrs {
    /// The value as flannel writes it: one line, fields in flannel's order, no spaces.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and null always serialize")
    }

    /// Reads a value. Missing or empty `BackendType` is udp, a missing `VNI` is 1, a type we do not
    /// have is `LeaseBackend::Other`; what we would need to reach the node must be there and sound.
    pub fn from_json(value: &[u8]) -> Result<Self, JsonError> {
        if value.len() > MAX_VALUE {
            return Err(JsonError::TooLong(MAX_VALUE));
        }
        json::parse(value)?.try_into()
    }

    /// The PublicIP of a value, also of one that is otherwise unusable, as a reservation can be
    /// that names the backend without its data; `None` if not even that can be read.
    #[must_use]
    pub fn public_ip_of(value: &[u8]) -> Option<Ipv4Addr> {
        let value = json::parse(value).ok()?;
        public_ip(Object::of(&value).ok()?).ok()
    }
}

impl TryFrom<Value> for LeaseAttrs {
    type Error = JsonError;

    fn try_from(value: Value) -> Result<Self, JsonError> {
        let fields = Object::of(&value)?;
        let public_ip = public_ip(fields)?;
        let backend = match fields.text("BackendType")? {
            None | Some("" | "udp") => LeaseBackend::Udp,
            Some("vxlan") => vxlan(fields)?,
            Some("host-gw") => LeaseBackend::HostGw,
            Some(other) => LeaseBackend::Other(cut(other, LONGEST_TYPE)),
        };
        Ok(Self { public_ip, backend })
    }
}

impl Serialize for LeaseAttrs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (backend_type, backend_data) = match &self.backend {
            LeaseBackend::Udp => (None, None),
            LeaseBackend::Vxlan { vni, vtep_mac } => {
                (Some("vxlan"), Some(VxlanData { vni: *vni, vtep_mac: vtep_mac.to_string() }))
            }
            LeaseBackend::HostGw => (Some("host-gw"), None),
            LeaseBackend::Other(name) => (Some(name.as_str()), None),
        };
        Attrs { public_ip: self.public_ip, public_ipv6: None, backend_type, backend_data }
            .serialize(serializer)
    }
}

fn public_ip(fields: Object<'_>) -> Result<Ipv4Addr, JsonError> {
    let allowed = "one host's IPv4 address";
    let text = fields.text("PublicIP")?.ok_or_else(|| JsonError::missing("PublicIP", allowed))?;
    text.parse()
        .ok()
        .filter(|address| is_one_host(*address))
        .ok_or_else(|| JsonError::field("PublicIP", format_args!("{text:?}"), allowed))
}

/// Whether `address` can be a node's: what a lease with another PublicIP says is refused.
#[must_use]
pub fn is_one_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast()
}

fn vxlan(fields: Object<'_>) -> Result<LeaseBackend, JsonError> {
    let allowed = "an object with VtepMAC";
    let data = fields.get("BackendData").ok_or_else(|| JsonError::missing("BackendData", allowed))?;
    let data = Object::of(data).map_err(|_| JsonError::field("BackendData", data, allowed))?;

    let vni = data.number("BackendData.VNI", 0..=MAX_VNI)?.unwrap_or(DEFAULT_VNI);

    let key = "BackendData.VtepMAC";
    let allowed = "the Ethernet address of one station, as in de:6e:e0:72:d6:e8";
    let text = data.text(key)?.ok_or_else(|| JsonError::missing(key, allowed))?;
    let vtep_mac = text
        .parse()
        .ok()
        .filter(MacAddr::is_unicast)
        .ok_or_else(|| JsonError::field(key, format_args!("{text:?}"), allowed))?;
    Ok(LeaseBackend::Vxlan { vni, vtep_mac })
}

/// The fields in flannel's order (`LeaseAttrs` in flannel's `pkg/lease`).
#[derive(Serialize)]
struct Attrs<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "Option::is_none")]
    backend_type: Option<&'a str>,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<VxlanData>,
}

/// `vxlanLeaseAttrs` in flannel's `pkg/backend/vxlan`.
#[derive(Serialize)]
struct VxlanData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

/// Of a backend's name, in characters: enough to tell what is meant.
const LONGEST_TYPE: usize = 40;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UDP: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#;
    const VXLAN: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"de:6e:e0:72:d6:e8"}}"#;

    const HOST_GW: &str = r#"{"PublicIP":"192.168.1.12","PublicIPv6":null,"BackendType":"host-gw"}"#;

    fn read(text: &str) -> Result<LeaseAttrs, JsonError> {
        LeaseAttrs::from_json(text.as_bytes())
    }

    #[test]
    fn flannels_values_are_read_and_written_byte_for_byte() {
        let udp = read(UDP).unwrap();
        assert_eq!(udp.public_ip, Ipv4Addr::new(192, 168, 1, 12));
        assert_eq!(udp.backend, LeaseBackend::Udp);
        assert_eq!(udp.to_json(), UDP);

        let vxlan = read(VXLAN).unwrap();
        let vtep_mac = "de:6e:e0:72:d6:e8".parse().unwrap();
        assert_eq!(vxlan.backend, LeaseBackend::Vxlan { vni: 1, vtep_mac });
        assert_eq!(vxlan.to_json(), VXLAN);

        let host_gw = read(HOST_GW).unwrap();
        assert_eq!(host_gw.backend, LeaseBackend::HostGw);
        assert_eq!(host_gw.to_json(), HOST_GW);
    }

    #[test]
    fn what_other_versions_write_is_understood() {
        let backend = |text| read(text).unwrap().backend;
        assert_eq!(backend(r#"{"PublicIP":"1.2.3.4","BackendType":"","New":[1]}"#), LeaseBackend::Udp);
        assert_eq!(backend(r#"{"PublicIP":"1.2.3.4","BackendType":"udp"}"#), LeaseBackend::Udp);
        assert_eq!(
            backend(r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"ipip"}"#),
            LeaseBackend::Other("ipip".to_owned())
        );
        assert!(matches!(
            backend(
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:01"}}"#
            ),
            LeaseBackend::Vxlan { vni: 1, .. }
        ));
    }

    #[test]
    fn an_unusable_value_is_an_error_that_names_the_field() {
        let refusal = |text: &str| read(text).unwrap_err().to_string();
        assert!(refusal(r#"{"PublicIP":"#).starts_with("not JSON: EOF"), "{}", refusal(r#"{"PublicIP":"#));
        assert!(refusal("[]").starts_with("not a JSON object: []"));
        assert!(refusal("{}").starts_with("PublicIP is missing"));
        for ip in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "1.2.3", "fd00::1", ""] {
            let text = refusal(&format!(r#"{{"PublicIP":"{ip}"}}"#));
            assert!(text.starts_with(&format!("PublicIP is \"{ip}\"")), "{text}");
        }
        for (data, field) in [
            (r#"{"VNI":1}"#, "BackendData.VtepMAC is missing"),
            (r#"{"VtepMAC":"01:00:00:00:00:01"}"#, "BackendData.VtepMAC is"),
            (r#"{"VtepMAC":"de:6e:e0:72:d6"}"#, "BackendData.VtepMAC is"),
            (r#"{"VNI":16777216,"VtepMAC":"02:00:00:00:00:01"}"#, "BackendData.VNI is 16777216"),
            (r#"{"VNI":-1,"VtepMAC":"02:00:00:00:00:01"}"#, "BackendData.VNI is -1"),
            ("7", "BackendData is 7"),
            ("null", "BackendData is missing"),
        ] {
            let text =
                refusal(&format!(r#"{{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{data}}}"#));
            assert!(text.starts_with(field), "{text}");
        }
    }

    #[test]
    fn the_owner_is_read_even_where_the_rest_is_unusable() {
        let owner = |text: &str| LeaseAttrs::public_ip_of(text.as_bytes());
        let ours = Some(Ipv4Addr::new(1, 2, 3, 4));
        assert_eq!(owner(r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan"}"#), ours);
        assert_eq!(owner(r#"{"publicip":"1.2.3.4","BackendType":7}"#), ours);
        for nobody in ["{}", "[]", "{not json", r#"{"PublicIP":"0.0.0.0"}"#] {
            assert_eq!(owner(nobody), None, "{nobody}");
        }
    }

    proptest! {
        #[test]
        fn values_round_trip(ip in 1u32..0xe000_0000, vni in proptest::option::of(0..=MAX_VNI), tail: [u8; 5]) {
            let backend = vni.map_or(LeaseBackend::Udp, |vni| {
                let [b, c, d, e, f] = tail;
                LeaseBackend::Vxlan { vni, vtep_mac: MacAddr([2, b, c, d, e, f]) }
            });
            let attrs = LeaseAttrs { public_ip: ip.into(), backend };
            prop_assert_eq!(read(&attrs.to_json()), Ok(attrs));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = LeaseAttrs::from_json(&bytes);
        }
    }
}
