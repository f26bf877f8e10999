//! Accepts forwarded packets of the network in iptables' filter table.
//!
//! An accept elsewhere does not help: a packet passes only if every table lets it, so the accept must stand
//! where the drop is, and docker sets the policy of iptables' FORWARD to DROP. Like flannel (0.28,
//! `pkg/trafficmngr/iptables`) we append a jump to a chain of ours, so that what others say before it, as in
//! DOCKER-USER, still holds, and only the chain's default is answered. Where that default is not the policy
//! but a catch-all DROP or REJECT rule, the jump stands before that rule.
//!
//! flannel's chain is FLANNEL-FWD, one for all. Ours has the device in its name, so that several daemons of
//! one host, and a flanneld beside them, do not undo each other's rules.
//!
//! iptables comes in two variants over different kernel tables, both of which may drop. The one called
//! `iptables` always gets the rules. The other gets them only if it would drop forwarded packets.

use std::fs;

use ipnet::Ipv4Net;
use tracing::info;

use crate::host::HostError;
use crate::host::command::run;

/// The forwarding rules of one device.
pub(super) struct Forward {
    chain: String,
    network: Ipv4Net,
    /// Said once, not at every [`sync`](Self::sync).
    said_missing: bool,
}

impl Forward {
    pub(super) fn new(device: &str, network: Ipv4Net) -> Self {
        Self { chain: chain_name(device), network: network.trunc(), said_missing: false }
    }

    /// Puts what is missing; returns whether anything was. Without iptables there is nothing to do: it is
    /// iptables' chains that drop.
    pub(super) async fn sync(&mut self) -> Result<bool, HostError> {
        let variants = variants().await?;
        if variants.is_empty() && !self.said_missing {
            info!("iptables is not installed: no forwarding rules are needed");
        }
        self.said_missing = variants.is_empty();

        let mut changed = false;
        for (program, default) in variants {
            let table = FilterTable::read(program).await?;
            if !default && !table.drops_forwarded() && !table.has(&self.chain) {
                continue;
            }
            if let Some(script) = table.repair(&self.chain, self.network) {
                restore(program, &script).await?;
                info!(program, chain = self.chain, "put the forwarding rules");
                changed = true;
            }
        }
        Ok(changed)
    }
}

/// Removes the rules of `device` from all variants; returns whether there were any.
pub(super) async fn remove(device: &str) -> Result<bool, HostError> {
    let mut removed = false;
    let mut failed = Vec::new();
    for (program, _) in variants().await? {
        match remove_from(program, &chain_name(device)).await {
            Ok(was_there) => removed |= was_there,
            Err(e) => failed.push(e),
        }
    }
    if failed.is_empty() { Ok(removed) } else { Err(HostError::Several(failed)) }
}

async fn remove_from(program: &str, chain: &str) -> Result<bool, HostError> {
    let table = FilterTable::read(program).await?;
    let Some(script) = table.removal(chain) else { return Ok(false) };
    restore(program, &script).await?;
    Ok(true)
}

/// The installed variants that have, or will have, a filter table; and which of them is the default one.
async fn variants() -> Result<Vec<(&'static str, bool)>, HostError> {
    let version = match run("iptables", &["--version"], "").await {
        Err(HostError::NoProgram { .. }) => return Ok(Vec::new()),
        version => version?,
    };
    let mut variants = vec![("iptables", true)];
    if !version.contains("nf_tables") {
        variants.push(("iptables-nft", false));
    } else if legacy_filter_loaded() {
        variants.push(("iptables-legacy", false));
    }
    Ok(variants)
}

/// Merely listing with iptables-legacy loads its kernel modules; this does not. `thread-self`, since
/// /proc/net shows the network namespace of the main thread.
fn legacy_filter_loaded() -> bool {
    fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

/// Several rules at once: all or none.
async fn restore(program: &str, script: &str) -> Result<(), HostError> {
    run(&format!("{program}-restore"), &["-w", LOCK_WAIT, "--noflush"], script).await.map(|_| ())
}

/// The filter table as `iptables -S` writes it, quotes left out.
struct FilterTable {
    lines: Vec<String>,
}

impl FilterTable {
    /// # Errors
    /// What iptables says. A variant that is not installed has an empty table.
    async fn read(program: &str) -> Result<Self, HostError> {
        match run(program, &["-w", LOCK_WAIT, "-S"], "").await {
            Err(HostError::NoProgram { .. }) => Ok(Self::parse("")),
            listing => Ok(Self::parse(&listing?)),
        }
    }

    fn parse(listing: &str) -> Self {
        Self { lines: listing.lines().map(|line| line.replace('"', "")).collect() }
    }

    /// Whether a forwarded packet may be dropped: by policy, or by a rule of a chain that FORWARD may lead to.
    fn drops_forwarded(&self) -> bool {
        self.lines.iter().any(|line| {
            let other_hook = line.starts_with("-A INPUT ") || line.starts_with("-A OUTPUT ");
            line == "-P FORWARD DROP"
                || !other_hook && (line.contains(" -j DROP") || line.contains(" -j REJECT"))
        })
    }

    fn has(&self, chain: &str) -> bool {
        let created = format!("-N {chain}");
        self.lines.contains(&created)
    }

    /// The rules of `chain`, in order, without the `-A CHAIN `.
    fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines
            .iter()
            .filter_map(move |line| line.strip_prefix("-A ")?.strip_prefix(chain)?.strip_prefix(' '))
    }

    /// What to restore so that our chain and the jump to it are as they should be; `None` if they are.
    fn repair(&self, chain: &str, network: Ipv4Net) -> Option<String> {
        let accepts = [
            format!("-s {network} -m comment --comment {FROM} -j ACCEPT"),
            format!("-d {network} -m comment --comment {TO} -j ACCEPT"),
        ];
        let jump = jump(chain);
        let forward: Vec<&str> = self.rules("FORWARD").collect();
        let ours = forward.iter().filter(|rule| **rule == jump).count();
        let ours_at = forward.iter().position(|rule| *rule == jump);
        let others: Vec<&str> = forward.iter().copied().filter(|rule| *rule != jump).collect();
        let catch_all = others.iter().position(|rule| is_catch_all(rule));

        // `catch_all` counts the others only: as many of them may precede a single jump of ours.
        let jump_right = ours == 1 && ours_at.is_some_and(|at| catch_all.is_none_or(|catch| at <= catch));
        if jump_right && self.rules(chain).eq(accepts.iter().map(String::as_str)) {
            return None;
        }

        // `:CHAIN` creates the chain or empties it.
        let mut script = format!("*filter\n:{chain} - [0:0]\n");
        for accept in accepts {
            script += &format!("-A {chain} {accept}\n");
        }
        if !jump_right {
            script += &format!("-D FORWARD {jump}\n").repeat(ours);
            script += &match catch_all {
                Some(at) => format!("-I FORWARD {} {jump}\n", at + 1),
                None => format!("-A FORWARD {jump}\n"),
            };
        }
        Some(script + "COMMIT\n")
    }

    /// What to restore so that nothing of ours is left; `None` if nothing is there.
    fn removal(&self, chain: &str) -> Option<String> {
        let jump = jump(chain);
        let jumps = self.rules("FORWARD").filter(|rule| *rule == jump).count();
        if !self.has(chain) {
            return None;
        }
        let unlink = format!("-D FORWARD {jump}\n").repeat(jumps);
        Some(format!("*filter\n{unlink}-F {chain}\n-X {chain}\nCOMMIT\n"))
    }
}

fn jump(chain: &str) -> String {
    format!("-m comment --comment {JUMP} -j {chain}")
}

/// A rule that drops whatever reaches it: a policy in all but name.
fn is_catch_all(rule: &str) -> bool {
    let words: Vec<&str> = rule.split(' ').collect();
    let target = match words.as_slice() {
        ["-m", "comment", "--comment", rest @ ..] => {
            let end = rest.iter().position(|word| word.starts_with('-'));
            &rest[end.unwrap_or(rest.len())..]
        }
        all => all,
    };
    matches!(target, ["-j", "DROP" | "REJECT", ..])
}

/// 13 characters and a device's name (15 at most) just make the 28 that iptables allows.
fn chain_name(device: &str) -> String {
    format!("OVERLAYD-FWD-{device}")
}

/// Seconds to wait for the lock that other users of iptables hold.
const LOCK_WAIT: &str = "5";

// Single words, which every version of iptables lists without quotes.
const JUMP: &str = "overlayd-forward";
const FROM: &str = "from-the-overlay-network";
const TO: &str = "to-the-overlay-network";

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = "OVERLAYD-FWD-flannel.1";

    fn network() -> Ipv4Net {
        "10.1.0.0/16".parse().unwrap()
    }

    /// The table with our rules, and `forward` around the jump where it says `JUMP`.
    fn listing(forward: &[&str]) -> FilterTable {
        let mut text = format!("-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N {CHAIN}\n");
        for rule in forward {
            let rule = rule.replace("JUMP", &jump(CHAIN));
            text += &format!("-A FORWARD {rule}\n");
        }
        text += &format!("-A {CHAIN} -s 10.1.0.0/16 -m comment --comment \"{FROM}\" -j ACCEPT\n");
        text += &format!("-A {CHAIN} -d 10.1.0.0/16 -m comment --comment {TO} -j ACCEPT\n");
        FilterTable::parse(&text)
    }

    #[test]
    fn what_is_right_is_left_alone() {
        for forward in [
            &["JUMP"][..],
            &["-j DOCKER-USER", "JUMP", "-i docker0 -j ACCEPT"],
            &["JUMP", "-j REJECT --reject-with icmp-host-prohibited"],
            &["-s 10.9.0.0/16 -j DROP", "JUMP"],
        ] {
            assert_eq!(listing(forward).repair(CHAIN, network()), None, "{forward:?}");
        }
    }

    #[test]
    fn the_jump_stands_before_a_catch_all_drop_and_otherwise_last() {
        for (forward, expected) in [
            (&["-j DOCKER-USER"][..], format!("-A FORWARD {}", jump(CHAIN))),
            (&["-j DOCKER-USER", "-j DROP"], format!("-I FORWARD 2 {}", jump(CHAIN))),
            (&["-m comment --comment the end -j REJECT"], format!("-I FORWARD 1 {}", jump(CHAIN))),
            (&["-j A", "-j DROP", "JUMP"], format!("-D FORWARD {0}\n-I FORWARD 2 {0}", jump(CHAIN))),
            (
                &["JUMP", "-j A", "JUMP"],
                format!("-D FORWARD {0}\n-D FORWARD {0}\n-A FORWARD {0}", jump(CHAIN)),
            ),
        ] {
            let script = listing(forward).repair(CHAIN, network()).expect("a repair");
            assert!(script.ends_with(&format!("{expected}\nCOMMIT\n")), "{forward:?}: {script}");
        }
    }

    #[test]
    fn another_network_is_replaced_without_moving_the_jump() {
        let script = listing(&["JUMP"]).repair(CHAIN, "10.2.0.0/16".parse().unwrap()).expect("a repair");
        assert!(script.contains("-s 10.2.0.0/16"), "{script}");
        assert!(!script.contains("FORWARD -"), "{script}");
    }

    #[test]
    fn only_drops_of_forwarded_packets_count() {
        for (text, drops) in [
            ("-P FORWARD DROP", true),
            ("-P FORWARD ACCEPT\n-A FORWARD -s 10.0.0.0/8 -j REJECT --reject-with x", true),
            ("-P FORWARD ACCEPT\n-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP", true),
            ("-P INPUT DROP\n-P FORWARD ACCEPT\n-A INPUT -j DROP", false),
        ] {
            assert_eq!(FilterTable::parse(text).drops_forwarded(), drops, "{text}");
        }
    }

    #[test]
    fn the_longest_device_name_fits() {
        assert_eq!(chain_name("abcdefghijklmno").len(), 28);
    }
}
