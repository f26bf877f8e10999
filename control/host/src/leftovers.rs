//! What of ours is in the kernel, found by our marks alone: it may be of a run that nobody remembers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::HostError;
use super::command::run;
use super::firewall::TABLE_PREFIX;

/// The devices whose name stands on firewall rules of ours, whether they are there or not.
///
/// # Errors
/// What `nft` or iptables said. A program that is not installed has no rules.
pub async fn devices_with_rules() -> Result<BTreeSet<String>, HostError> {
    let mut devices = BTreeSet::new();
    if let Some(listing) = output("nft", &["-j", "list", "tables", "ip"]).await? {
        devices.extend(in_tables(&listing));
    }
    // iptables does not list a table into which somebody has put what it has no words for.
    if let Some(listing) = output("nft", &["-j", "list", "chains", "ip"]).await? {
        devices.extend(in_nft_chains(&listing));
    }
    for program in ["iptables-save", "iptables-nft-save", "iptables-legacy-save"] {
        if let Some(listing) = output(program, &[]).await? {
            devices.extend(in_chains(&listing));
        }
    }
    Ok(devices)
}

async fn output(program: &str, args: &[&str]) -> Result<Option<String>, HostError> {
    match run(program, args, "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(HostError::NoProgram { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Our nftables tables are called `overlayd_DEVICE`.
fn in_tables(listing: &str) -> Vec<String> {
    let names = names_in(listing, "table");
    names.iter().filter_map(|name| name.strip_prefix(TABLE_PREFIX).map(str::to_owned)).collect()
}

fn in_nft_chains(listing: &str) -> Vec<String> {
    names_in(listing, "chain").iter().filter_map(|name| device_of_chain(name)).collect()
}

/// The names of all objects of a kind.
fn names_in(listing: &str, kind: &str) -> Vec<String> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let objects = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    objects.iter().filter_map(|object| object[kind]["name"].as_str().map(str::to_owned)).collect()
}

fn in_chains(listing: &str) -> Vec<String> {
    let chains = listing.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    chains.filter_map(device_of_chain).collect()
}

/// Our iptables chains are called `OVERLAYD-USE-DEVICE`, USE being a word without a dash.
fn device_of_chain(chain: &str) -> Option<String> {
    chain.strip_prefix("OVERLAYD-")?.split_once('-').map(|(_, device)| device.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_name_the_device_and_look_alikes_are_none() {
        let tables = r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},
            {"table":{"family":"ip","name":"overlayd_flannel.1","handle":3}},
            {"table":{"family":"ip","name":"overlay","handle":4}},
            {"table":{"family":"ip","name":"my_overlayd_flannel.2","handle":5}}]}"#;
        assert_eq!(in_tables(tables), ["flannel.1"]);
        assert!(in_tables("").is_empty());

        let chains = "*filter\n:INPUT ACCEPT [0:0]\n:OVERLAYD-FWD-flannel0 - [0:0]\n\
                      :OVERLAYDX-FWD-eth0 - [0:0]\n:MY-OVERLAYD-FWD-eth0 - [0:0]\n\
                      -A FORWARD -j OVERLAYD-FWD-flannel.7\nCOMMIT\n";
        assert_eq!(in_chains(chains), ["flannel0"]);
        assert_eq!(in_chains(":OVERLAYD-FWD-my-net - [0:0]"), ["my-net"]);
        let chains = r#"{"nftables":[{"chain":{"family":"ip","table":"filter","name":"OVERLAYD-FWD-flannel.7"}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD"}}]}"#;
        assert_eq!(in_nft_chains(chains), ["flannel.7"]);
    }
}
