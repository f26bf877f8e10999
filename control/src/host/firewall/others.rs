//! What others drop where no rule of ours can overrule it: base chains of nftables that are not iptables' own.
//!
//! A packet passes only if all tables let it; an accept of ours ends nothing but our own table's say. All that
//! can be done is to say so, and what the remedy is.

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::host::HostError;
use crate::host::command::run;

/// A chain that may drop what is forwarded, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// As in `inet filter forward`.
    pub(super) chain: String,
    /// The remedy, as commands.
    pub(super) remedy: String,
}

/// The chains that drop by policy, or by a last rule without conditions, what they do not accept, and do not
/// mention our network or device.
///
/// # Errors
/// What `nft` says.
pub(super) async fn obstacles(network: Ipv4Net, device: &str) -> Result<Vec<Obstacle>, HostError> {
    let chains = run("nft", &["-j", "list", "chains"], "").await?;
    let mut obstacles = Vec::new();
    for chain in forward_chains(&chains) {
        let listing =
            run("nft", &["-j", "list", "chain", &chain.family, &chain.table, &chain.name], "").await;
        // A chain that has gone meanwhile is no obstacle.
        if listing.is_ok_and(|listing| drops(&listing) && !mentions(&listing, network, device)) {
            obstacles.push(chain.obstacle(network, device));
        }
    }
    Ok(obstacles)
}

#[derive(Debug, PartialEq, Eq)]
struct Forward {
    family: String,
    table: String,
    name: String,
}

impl Forward {
    fn obstacle(&self, network: Ipv4Net, device: &str) -> Obstacle {
        let Self { family, table, name } = self;
        let network = network.trunc();
        let chain = format!("{family} {table} {name}");
        let remedy = if table == "firewalld" {
            format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={device} --add-source={network} && firewall-cmd --reload"
            )
        } else {
            format!(
                "nft insert rule {chain} ip saddr {network} accept; nft insert rule {chain} ip daddr {network} accept"
            )
        };
        Obstacle { chain, remedy }
    }
}

/// The base chains of the forward hook that filter IPv4, except iptables' own, where our rules stand.
fn forward_chains(listing: &str) -> Vec<Forward> {
    let chain = |object: &Value| {
        let chain = object.get("chain")?;
        let text = |key: &str| chain.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let found = Forward { family: text("family"), table: text("table"), name: text("name") };
        let iptables = (found.family.as_str(), found.name.as_str()) == ("ip", "FORWARD");
        let filters = text("hook") == "forward" && text("type") == "filter";
        (filters && !iptables && matches!(found.family.as_str(), "ip" | "inet")).then_some(found)
    };
    objects(listing).iter().filter_map(chain).collect()
}

/// Whether what reaches a chain's end is dropped.
fn drops(listing: &str) -> bool {
    let objects = objects(listing);
    let by_policy = objects.iter().any(|object| object["chain"]["policy"] == "drop");
    let last = objects.iter().rev().find_map(|object| object.get("rule"));
    by_policy || last.is_some_and(drops_everything)
}

fn drops_everything(rule: &Value) -> bool {
    let statements = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is = |statement: &Value, names: &[&str]| names.iter().any(|name| statement.get(name).is_some());
    statements.iter().any(|statement| is(statement, &["drop", "reject"]))
        && statements.iter().all(|statement| is(statement, &["drop", "reject", "counter", "log"]))
}

/// Somebody has thought of us there.
fn mentions(listing: &str, network: Ipv4Net, device: &str) -> bool {
    let network = format!("\"addr\": \"{}\"", network.network());
    listing.contains(&network) || listing.contains(&format!("\"{device}\""))
}

fn objects(listing: &str) -> Vec<Value> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    listing["nftables"].as_array().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_the_forward_hook_that_are_not_iptables_count() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, kind: &str| {
            format!(
                r#"{{"chain":{{"family":"{family}","table":"{table}","name":"{name}","hook":"{hook}","type":"{kind}"}}}}"#
            )
        };
        let listing = [
            chain("ip", "filter", "FORWARD", "forward", "filter"),
            chain("inet", "fw", "forward", "forward", "filter"),
            chain("inet", "fw", "input", "input", "filter"),
            chain("ip6", "fw", "forward", "forward", "filter"),
            chain("ip", "fw", "mangle", "forward", "route"),
        ];
        let found = forward_chains(&format!(r#"{{"nftables":[{}]}}"#, listing.join(",")));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].family.as_str(), found[0].table.as_str()), ("inet", "fw"));
    }

    #[test]
    fn a_chain_drops_by_policy_or_by_its_last_rule() {
        let with = |policy: &str, last: &str| {
            format!(
                r#"{{"nftables":[{{"chain":{{"policy":"{policy}"}}}},{{"rule":{{"expr":[{{"accept":null}}]}}}},{{"rule":{{"expr":[{last}]}}}}]}}"#
            )
        };
        assert!(drops(&with("drop", r#"{"accept":null}"#)));
        assert!(drops(&with("accept", r#"{"counter":null},{"reject":{"type":"icmpx"}}"#)));
        assert!(!drops(&with("accept", r#"{"match":{}},{"drop":null}"#)));
        assert!(!drops(&with("accept", r#"{"accept":null}"#)));
        assert!(!drops("no JSON"));
    }
}
