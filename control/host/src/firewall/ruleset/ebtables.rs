//! The rules of ebtables' legacy variant, which `nft` does not show. They act on what crosses a bridge.

use std::path::Path;

use super::packet::Holds;
use super::rules::{Base, Chain, Hook, Rule, Ruleset, Table};
use super::step::{Step, Verdict};
use crate::HostError;
use crate::command::run;
use crate::firewall::iptables::{value, words};

/// What `ebtables -L` says of each table that is loaded, by its name; `None` if nobody can say it.
///
/// # Errors
/// The program fails.
pub(super) async fn listings() -> Result<Vec<(&'static str, Option<String>)>, HostError> {
    let mut listings = Vec::new();
    // Merely asking for a table would load its module.
    for name in TABLES.into_iter().filter(|name| Path::new(&format!("/sys/module/ebtable_{name}")).exists()) {
        listings.push((name, listing(name).await?));
    }
    Ok(listings)
}

async fn listing(table: &str) -> Result<Option<String>, HostError> {
    for program in [PROGRAM, "ebtables"] {
        match run(program, &["--version"], "").await {
            Ok(version) if !version.contains("nf_tables") => {
                return run(program, &["-t", table, "-L"], "").await.map(Some);
            }
            Ok(_) | Err(HostError::NoProgram { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

impl Ruleset {
    /// Adds what `ebtables -L` says of the table `name`.
    pub(super) fn add_ebtables(&mut self, name: &'static str, listing: Option<&str>) {
        let Some(listing) = listing else {
            self.unread
                .push(format!("{PROGRAM} may have rules in its table {name}, and it is not installed"));
            return;
        };
        let table = Table { family: "bridge".to_owned(), name: name.to_owned(), program: Some(PROGRAM) };
        let rule = |text: &str| Rule { handle: 0, expressions: None, text: Some(text.to_owned()) };
        for part in listing.split("Bridge chain: ").skip(1) {
            let (head, body) = part.split_once('\n').unwrap_or((part, ""));
            let (Some((chain, _)), Some((_, policy))) = (head.split_once(','), head.split_once("policy: "))
            else {
                continue;
            };
            let base = hook(chain).map(|hook| Base {
                hook,
                priority: 0,
                drops: policy == "DROP" && name != BROUTE,
                translates: false,
                devices: None,
            });
            let mut rules: Vec<Rule> =
                body.lines().map(str::trim).filter(|line| line.contains("-j ")).map(rule).collect();
            // Chains that are not built in have policies, too.
            if base.is_none() {
                rules.push(rule(&format!("-j {policy}")));
            }
            self.add(Chain { table: table.clone(), name: chain.to_owned(), base, rules });
        }
    }
}

fn hook(chain: &str) -> Option<Hook> {
    if chain == "BROUTING" { Some(Hook::Prerouting) } else { Hook::named(chain) }
}

/// Whether all that `rule` asks for holds. Of its options only the frame's protocol is understood.
pub(super) fn holds(rule: &str) -> Holds {
    let words = words(rule);
    let conditions: Vec<&str> = words.into_iter().take_while(|word| *word != "-j").collect();
    match conditions[..] {
        [] => Holds::Always,
        ["-p", protocol, ..] if OTHERS.contains(&protocol) => Holds::Never,
        ["-p", "IPv4"] => Holds::Always,
        _ => Holds::Unknown,
    }
}

/// What `rule` of the table `table` does to packets for which it holds.
pub(super) fn target(rule: &str, table: &str) -> Step {
    match value(&words(rule), "-j") {
        Some("ACCEPT") => Step::Verdict(Verdict::Accept),
        // It is routed instead of bridged, by the port that it has come in by.
        Some("DROP") if table == BROUTE => Step::Unclear,
        Some("DROP") => Step::Verdict(Verdict::Drop),
        Some("RETURN") => Step::Verdict(Verdict::Return),
        Some("CONTINUE") | None => Step::Verdict(Verdict::Continue),
        Some("mark" | "dnat" | "snat" | "redirect" | "arpreply") => Step::Unclear,
        Some(chain) => Step::Verdict(Verdict::Jump(chain.to_owned())),
    }
}

/// What is no IPv4 packet.
const OTHERS: [&str; 5] = ["ARP", "IPv6", "RARP", "LENGTH", "X25"];

const BROUTE: &str = "broute";
const TABLES: [&str; 3] = ["filter", "nat", BROUTE];

/// The legacy variant's program. On hosts that know no other it is called `ebtables`.
pub(in crate::firewall) const PROGRAM: &str = "ebtables-legacy";
