//! What a broken or hostile node may write among the leases. None of it is ever used.

use std::net::Ipv4Addr;

use crate::store::Store;

/// Keys with their values, by a node at `address`, against nodes that have these subnets (`10.1.80.0/24`) and are
/// reached at these addresses. None is a subnet of its own from `10.1.200.0` on.
#[must_use]
pub fn leases(address: Ipv4Addr, nodes: &[(String, Ipv4Addr)]) -> Vec<(String, String)> {
    let mine = lease(&address.to_string());
    let mut keys: Vec<String> =
        ["0.0.0.0-0", "10.0.0.0-8", "10.1.0.0-16", "8.8.8.0-24", "127.0.0.0-8", "224.0.0.0-4"]
            .map(str::to_owned)
            .into();
    for (subnet, node) in nodes {
        let base: Ipv4Addr = subnet.split('/').next().and_then(|base| base.parse().ok()).expect("a subnet");
        let [a, b, c, _] = base.octets();
        keys.push(format!("{node}-32"));
        keys.push(format!("{a}.{b}.{c}.128-25"));
        keys.push(format!("{a}.{b}.{c}.2-32"));
        keys.push(format!("{a}.{b}.{}.0-23", c & !1));
        keys.push(format!("{a}.{b}.{c}.0-24&fd00:66::-64"));
    }
    // Two nodes may be neighbours.
    keys.sort_unstable();
    keys.dedup();
    let mut leases: Vec<_> = keys.into_iter().map(|key| (key, mine.clone())).collect();
    let pods = nodes.first().map_or_else(String::new, |(subnet, _)| subnet.replace(".0/24", ".9"));
    let nobodys = ["127.0.0.2", "0.1.2.3", "240.0.0.1", "169.254.9.9", "255.255.255.255", "224.0.0.1", &pods];
    for (number, public_ip) in (200..).zip(nobodys) {
        leases.push((format!("10.1.{number}.0-24"), lease(public_ip)));
    }
    leases.push(("10.1.220.0-24".to_owned(), mine.replace("02:00", "01:00")));
    leases.push(("10.1.221.0-24".to_owned(), mine.replace("\"VNI\":1", "\"VNI\":99999999")));
    leases.push(("10.1.222.0-24".to_owned(), "{".repeat(4000)));
    leases.push(("10.1.223.0-24".to_owned(), "x".repeat(LONG)));
    leases
}

/// A value of a lease with this PublicIP.
#[must_use]
pub fn lease(public_ip: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}}}"#
    )
}

/// Writes them all, each without an expiry.
#[track_caller]
pub fn write(store: &Store, leases: &[(String, String)]) {
    leases.iter().for_each(|(key, value)| store.put_lease(key, value));
}

/// Removes them all.
#[track_caller]
pub fn remove(store: &Store, leases: &[(String, String)]) {
    leases.iter().for_each(|(key, _)| store.delete_lease(key));
}

/// As long as an argument of a program may be.
const LONG: usize = 100_000;
