//! A table that `iptables-save` does not list, because somebody has put something into it by `nft` that iptables has
//! no words for. iptables still lists its other chains one by one, finds a given rule in any chain, and changes them.

use std::collections::BTreeSet;

use super::programs::{list, tell};
use super::rules::Hook;
use super::save::{Table, target, words};
use crate::HostError;

/// The chain of table `name` to which our rules are hooked, the chains that it leads to, and those named `own`; of
/// the rest nothing is known.
pub(super) async fn read(program: &str, name: &str, own: &[String]) -> Result<Table, HostError> {
    let mut table = Table::piecemeal();
    let mut seen = BTreeSet::new();
    let mut next: Vec<String> = std::iter::once(hooked(name).to_owned()).chain(own.iter().cloned()).collect();
    while let Some(chain) = next.pop() {
        if !seen.insert(chain.clone()) {
            continue;
        }
        match list(program, name, &chain).await {
            Ok(listing) => table.take_chain(&listing),
            // Ours will be written anew, whether it is not there or holds what is not ours.
            Err(HostError::Program { .. }) if own.contains(&chain) => {}
            // iptables says of a chain that is not there, too, that it is incompatible. (Nor are all targets chains.)
            Err(HostError::Program { .. }) => table.leave_unread(&chain),
            Err(error) => return Err(error),
        }
        let leads_to = |rule| target(&words(rule)).filter(|to| !FINAL.contains(to)).map(str::to_owned);
        next.extend(table.rules(&chain).filter_map(leads_to));
    }
    Ok(table)
}

/// Finds out which of `hooks` are in chains of `table` that could not be read.
pub(super) async fn find<'a>(
    program: &str,
    name: &str,
    table: &mut Table,
    hooks: impl Iterator<Item = &'a Hook>,
) -> Result<(), HostError> {
    for hook in hooks {
        if table.is_unread(hook.chain) && tell(program, name, "-C", hook).await? {
            table.found(hook.chain, &hook.rule);
        }
    }
    Ok(())
}

/// The built-in chain of a table in which our rules are.
fn hooked(table: &str) -> &'static str {
    match table {
        "nat" => "POSTROUTING",
        "raw" => "PREROUTING",
        _ => "FORWARD",
    }
}

/// The usual targets, which are no chains.
const FINAL: [&str; 8] = ["ACCEPT", "DROP", "REJECT", "RETURN", "LOG", "MARK", "MASQUERADE", "SNAT"];
