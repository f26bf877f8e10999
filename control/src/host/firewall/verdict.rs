//! What a host's firewall says to one forwarded packet: for `overlayctl trace` and `check`, which look and
//! change nothing.
//!
//! Rules of iptables are read as far as they speak of addresses, interfaces, protocol, ports and connections; one
//! that asks for anything else is passed over, as if it did not match.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::iptables::{Table, filter_tables, negated, target, value, words};
use super::others;
use crate::host::HostError;

/// The first packet of a connection, on its way through this host.
#[derive(Debug, Clone)]
pub struct Forwarded {
    /// Its source.
    pub src: Ipv4Addr,
    /// Its destination.
    pub dst: Ipv4Addr,
    /// As iptables names it; `None` for one that is not known.
    pub protocol: Option<&'static str>,
    /// The destination port.
    pub port: Option<u16>,
    /// The device it comes in by.
    pub from_device: String,
    /// The device it goes out by.
    pub to_device: String,
}

/// Something that drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The chain, with the rule that drops or the word that it is the policy.
    pub by: String,
    /// What to do.
    pub remedy: String,
}

/// All that would drop `packet` in the forward hook. `network` and `device` are the overlay's.
///
/// # Errors
/// The rules cannot be read, as by a user who is not root.
pub async fn refusals(packet: &Forwarded, network: Ipv4Net, device: &str) -> Result<Vec<Refusal>, HostError> {
    let mut refusals = Vec::new();
    for (program, table) in filter_tables().await? {
        if let Some(rule) = dropped_by(&table, packet) {
            refusals.push(Refusal {
                by: format!("{program}, chain FORWARD: {rule}"),
                remedy: format!(
                    "let overlayd accept it (--iptables-forward-rules), or: {program} -I FORWARD -s {network} -j ACCEPT; {program} -I FORWARD -d {network} -j ACCEPT"
                ),
            });
        }
    }
    match others::obstacles(network, device).await {
        Ok(obstacles) => refusals.extend(obstacles.into_iter().map(|obstacle| Refusal {
            by: format!("nftables, chain {}: it drops what it does not accept", obstacle.chain),
            remedy: obstacle.remedy,
        })),
        // A host without nft has no such chains that anybody could have made.
        Err(HostError::NoProgram { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(refusals)
}

/// What a chain says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop(String),
    /// The packet came to the chain's end, or was sent back.
    Nothing,
}

fn dropped_by(table: &Table, packet: &Forwarded) -> Option<String> {
    match walk(table, "FORWARD", packet, 0) {
        Verdict::Accept => None,
        Verdict::Drop(rule) => Some(format!("the rule '{rule}'")),
        Verdict::Nothing => {
            (table.policy("FORWARD") == Some("DROP")).then(|| "its policy is DROP".to_owned())
        }
    }
}

/// The kernel refuses chains that lead back to themselves; a listing that is none must not hang us.
const DEPTH: usize = 32;

fn walk(table: &Table, chain: &str, packet: &Forwarded, depth: usize) -> Verdict {
    for rule in table.rules(chain) {
        let words = words(rule);
        if !matches(&words, packet) {
            continue;
        }
        match target(&words) {
            Some("ACCEPT") => return Verdict::Accept,
            Some("DROP" | "REJECT") => return Verdict::Drop(format!("-A {chain} {rule}")),
            Some("RETURN") => return Verdict::Nothing,
            Some(next) if table.has(next) && depth < DEPTH => match walk(table, next, packet, depth + 1) {
                // A goto does not come back.
                Verdict::Nothing if value(&words, "-g").is_some() => return Verdict::Nothing,
                Verdict::Nothing => {}
                verdict => return verdict,
            },
            _ => {}
        }
    }
    Verdict::Nothing
}

/// Options with a value that say nothing about which packets match.
const SILENT: [&str; 7] = ["-m", "--comment", "-j", "-g", "--reject-with", "--log-prefix", "--log-level"];

fn matches(words: &[&str], packet: &Forwarded) -> bool {
    let known = ["-s", "-d", "-i", "-o", "-p", "--dport", "--ctstate", "--state"];
    let mut at = 0;
    while at < words.len() {
        match words[at] {
            "!" => at += 1,
            option if SILENT.contains(&option) => at += 2,
            option if known.contains(&option) => {
                let negated = negated(words, option);
                let wanted = negated.or_else(|| value(words, option)).unwrap_or_default();
                if says(option, wanted, packet) == negated.is_some() {
                    return false;
                }
                at += 2;
            }
            _ => return false,
        }
    }
    true
}

/// Whether `packet` is what `option` asks for with `wanted`.
fn says(option: &str, wanted: &str, packet: &Forwarded) -> bool {
    match option {
        "-s" => within(wanted, packet.src),
        "-d" => within(wanted, packet.dst),
        "-i" => named(wanted, &packet.from_device),
        "-o" => named(wanted, &packet.to_device),
        "-p" => packet.protocol == Some(wanted),
        "--dport" => packet.port.is_some_and(|port| within_ports(wanted, port)),
        // The first packet of a connection is what a trace is about.
        _ => wanted.split(',').any(|state| state == "NEW"),
    }
}

fn within(wanted: &str, address: Ipv4Addr) -> bool {
    match wanted.parse::<Ipv4Net>() {
        Ok(network) => network.contains(&address),
        Err(_) => wanted.parse() == Ok(address),
    }
}

fn within_ports(wanted: &str, port: u16) -> bool {
    let (from, to) = wanted.split_once(':').unwrap_or((wanted, wanted));
    let limit = |text: &str, open| if text.is_empty() { Ok(open) } else { text.parse::<u16>() };
    matches!((limit(from, 0), limit(to, u16::MAX)), (Ok(from), Ok(to)) if (from..=to).contains(&port))
}

/// A name that ends in `+` stands for all that begin so.
fn named(wanted: &str, device: &str) -> bool {
    wanted.strip_suffix('+').map_or(wanted == device, |prefix| device.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Forwarded {
        Forwarded {
            src: [10, 1, 9, 3].into(),
            dst: [10, 1, 63, 2].into(),
            protocol: Some("tcp"),
            port: Some(80),
            from_device: "docker0".to_owned(),
            to_device: "flannel.1".to_owned(),
        }
    }

    fn verdict(policy: &str, rules: &[&str]) -> Option<String> {
        let saved = format!(
            "*filter\n:FORWARD {policy} [0:0]\n:SIDE - [0:0]\n:DOCKER - [0:0]\n{}\nCOMMIT\n",
            rules.iter().map(|rule| format!("-A {rule}")).collect::<Vec<_>>().join("\n")
        );
        dropped_by(&Table::parse("filter", &saved), &packet())
    }

    #[test]
    fn the_policy_decides_what_no_rule_does() {
        assert_eq!(verdict("ACCEPT", &[]), None);
        assert_eq!(verdict("DROP", &[]).unwrap(), "its policy is DROP");
        assert_eq!(verdict("DROP", &["FORWARD -s 10.1.0.0/16 -m comment --comment \"a b\" -j ACCEPT"]), None);
        assert!(verdict("DROP", &["FORWARD ! -s 10.1.0.0/16 -j ACCEPT"]).is_some());
        assert!(
            verdict("DROP", &["FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"])
                .is_some()
        );
    }

    #[test]
    fn the_rule_that_drops_is_named() {
        let dropped =
            verdict("ACCEPT", &["FORWARD -j SIDE", "SIDE -i docker0 -p tcp -m tcp --dport 1:99 -j DROP"]);
        assert_eq!(dropped.unwrap(), "the rule '-A SIDE -i docker0 -p tcp -m tcp --dport 1:99 -j DROP'");
        assert_eq!(verdict("ACCEPT", &["FORWARD -p udp -j DROP", "FORWARD ! -i docker+ -j REJECT"]), None);
        assert_eq!(verdict("ACCEPT", &["FORWARD -p tcp -m tcp --dport 443 -j DROP"]), None);
    }

    #[test]
    fn chains_are_followed_and_come_back() {
        let back = ["FORWARD -j SIDE", "FORWARD -j ACCEPT", "SIDE -d 10.1.63.0/24 -j RETURN", "SIDE -j DROP"];
        assert_eq!(verdict("DROP", &back), None);
        let gone = ["FORWARD -g SIDE", "FORWARD -j ACCEPT", "SIDE -s 10.9.0.0/16 -j DROP"];
        assert_eq!(verdict("DROP", &gone).unwrap(), "its policy is DROP");
        let circle = ["FORWARD -j SIDE", "SIDE -j DOCKER", "DOCKER -j SIDE"];
        assert_eq!(verdict("ACCEPT", &circle), None);
    }

    #[test]
    fn what_is_not_understood_does_not_match() {
        assert_eq!(verdict("ACCEPT", &["FORWARD -m set --match-set bad src -j DROP"]), None);
        assert!(verdict("DROP", &["FORWARD -m recent --rcheck -j ACCEPT"]).is_some());
    }
}
