//! What is put into iptables: with `--firewall=iptables` all rules, with `--firewall=nftables` those that
//! accept forwarded packets.
//!
//! An accept elsewhere does not help: a packet passes only if every table lets it, so the accept must stand
//! where the drop is, and docker sets the policy of iptables' FORWARD to DROP. A jump to a chain of accepts stands
//! before whatever may drop what goes from pod to pod, as flannel's did up to 0.20, which put its own first. What
//! a site says in DOCKER-USER, and the network policies of others, still hold.
//!
//! iptables comes in two variants over different kernel tables, both of which may drop and translate. The one
//! called `iptables` always gets the rules. The other gets them only if it would drop or translate.

mod change;
mod listing;
mod piecemeal;
mod programs;
mod repair;
mod rules;
mod save;
#[cfg(test)]
mod tests;
mod variant;

use std::collections::BTreeSet;

pub(super) use self::change::Change;
pub(super) use self::listing::{Saved, saved};
pub(super) use self::rules::TUNNEL_IN_TUNNEL;
pub(super) use self::save::{Table, value, words};
pub(super) use self::variant::legacy_in_use;

use self::programs::tell;
use self::rules::{Hook, Wanted};
use self::save::target;
use self::variant::{Variant, installed, installed_ipv6};
use super::nft_table;
use crate::{Desired, HostError};

/// Which of the rules are wanted in iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// All, sources included.
    Everything,
    /// Sources are kept elsewhere: only forwarding, where iptables would drop it.
    Forwarding,
    /// None.
    Nothing,
}

/// The installed variants.
pub(super) struct Variants {
    all: Vec<Variant>,
    /// Tables that a variant cannot list, as in `filter of iptables`.
    unlisted: BTreeSet<String>,
}

impl Variants {
    /// Those of `iptables`.
    ///
    /// # Errors
    /// [`HostError::NoProgram`] without any.
    pub(super) async fn find() -> Result<Self, HostError> {
        Ok(Self { all: installed().await?, unlisted: BTreeSet::new() })
    }

    /// Tables that a variant could not list when it was last asked, as in `filter of iptables`.
    pub(super) fn unlisted(&self) -> &BTreeSet<String> {
        &self.unlisted
    }

    /// What has to be changed so that `role` is filled; nothing if all is right. `tidy` looks for what an
    /// earlier life of this daemon, with other options, has left. `legacy_only` leaves the nft variant out.
    pub(super) async fn changes(
        &mut self,
        role: Role,
        desired: &Desired,
        tidy: bool,
        legacy_only: bool,
    ) -> Result<Vec<Change>, HostError> {
        let mut changes = Vec::new();
        for variant in self.all.iter().filter(|variant| variant.legacy || !legacy_only) {
            let read = |name: &&str| {
                tidy || match (role, *name) {
                    (Role::Nothing, _) => false,
                    (_, "nat") => role == Role::Everything,
                    (_, "mangle") => role == Role::Everything && variant.default && desired.forward_rules,
                    _ => desired.forward_rules || role == Role::Everything && *name == "filter",
                }
            };
            let names: Vec<&'static str> = TABLES.into_iter().filter(|name| read(name)).collect();
            let mut tables = variant.read(&names, &rules::chains_of(&desired.device)).await?;
            let wanted: Vec<Wanted> = tables
                .iter()
                .filter_map(|(name, table)| variant.wanted(name, table, role, desired))
                .collect();
            for (name, table) in &mut tables {
                if table.is_piecemeal() {
                    self.unlisted.insert(format!("{name} of {}", variant.program));
                    let hooks =
                        wanted.iter().filter(|wanted| wanted.table == *name).flat_map(|one| &one.hooks);
                    piecemeal::find(variant.program, name, table, hooks).await?;
                }
            }
            changes.extend(variant.change(&tables, &wanted, desired, tidy));
        }
        Ok(changes)
    }

    /// What has to be changed so that nothing of `device` is left.
    pub(super) async fn removal(&self, device: &str) -> Result<Vec<Change>, HostError> {
        let mut changes = Vec::new();
        for variant in &self.all {
            let tables = variant.read(&TABLES, &rules::chains_of(device)).await?;
            let networks = networks_to_remove(&tables, device);
            let lines = |table: &Table| {
                let mut lines = repair::removal(table, device, &networks, &[]);
                lines.extend(repair::unmark_if_last(table, &lines));
                lines
            };
            changes.extend(variant.removal(&tables, rules::jumps_of(device), lines).await?);
        }
        Ok(changes)
    }
}

/// The networks that flannel's rules are about, and no overlayd's.
pub(super) async fn flannels_networks() -> Result<BTreeSet<String>, HostError> {
    let mut tables = Vec::new();
    for variant in &installed().await? {
        tables.extend(variant.read(&["nat", "filter"], &rules::flannels_chains()).await?);
    }
    let tables = || tables.iter().map(|(_, table)| table);
    let owned: BTreeSet<String> = tables().flat_map(repair::networks_of_all).collect();
    let named: BTreeSet<String> = tables().flat_map(repair::networks_in_shared_chains).collect();
    Ok(&named - &owned)
}

/// What has to be changed so that nothing of flannel's is left in IPv4 or IPv6.
pub(super) async fn removal_of_flannels() -> Result<Vec<Change>, HostError> {
    let mut changes = Vec::new();
    for variants in [installed().await, installed_ipv6().await] {
        match variants {
            Ok(variants) => changes.extend(removal_of_flannels_from(&variants).await?),
            Err(HostError::NoProgram { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(changes)
}

/// The same for `variants`, except what another overlayd uses.
async fn removal_of_flannels_from(variants: &[Variant]) -> Result<Vec<Change>, HostError> {
    let mut tables = Vec::new();
    for variant in variants {
        tables.push(variant.read(&["nat", "filter"], &rules::flannels_chains()).await?);
    }
    let owned: BTreeSet<String> =
        tables.iter().flatten().flat_map(|(_, table)| repair::networks_of_all(table)).collect();
    let mut changes = Vec::new();
    for (variant, tables) in variants.iter().zip(&tables) {
        let lines = |table: &Table| repair::removal_of_flannels(table, &owned);
        changes.extend(variant.removal(tables, rules::flannels_jumps(), lines).await?);
    }
    Ok(changes)
}

impl Variant {
    /// What has to be changed so that `tables` are as `wanted`.
    fn change(
        &self,
        tables: &[(&'static str, Table)],
        wanted: &[Wanted],
        desired: &Desired,
        tidy: bool,
    ) -> Option<Change> {
        let device = &desired.device;
        let networks = networks_to_remove(tables, device);
        let mut keep: Vec<String> =
            wanted.iter().flat_map(|wanted| &wanted.chains).map(|chain| chain.name.clone()).collect();
        if desired.forward_rules {
            keep.extend(rules::direct(desired));
        }
        keep.extend(wanted.iter().flat_map(|one| &one.hooks).map(|hook| hook.rule.clone()));

        let former: BTreeSet<String> = networks
            .iter()
            .filter(|network| **network != desired.network.trunc().to_string())
            .cloned()
            .collect();
        let lines = |name: &str, table: &Table| {
            let mut lines = match wanted.iter().find(|wanted| wanted.table == name) {
                Some(wanted) => repair::repair(table, wanted, &former),
                None => Vec::new(),
            };
            if tidy {
                lines.extend(repair::removal(table, device, &networks, &keep));
            }
            if tidy && !wanted.iter().any(|wanted| wanted.table == name) {
                lines.extend(repair::unmark_if_last(table, &lines));
            }
            lines
        };
        let mut all: Vec<(&'static str, Vec<String>)> =
            tables.iter().map(|(name, table)| (*name, lines(name, table))).collect();
        for ((name, lines), (_, table)) in all.iter_mut().zip(tables) {
            if !lines.is_empty() && !self.legacy && table.is_empty() && nft_table::exists(name) == Some(false)
            {
                lines.insert(0, repair::mark());
            }
        }
        Change::of(self.program, Vec::new(), all)
    }

    /// What this variant's table `name` should have, if anything.
    fn wanted(&self, name: &str, table: &Table, role: Role, desired: &Desired) -> Option<Wanted> {
        let device = &desired.device;
        match (name, role) {
            (_, Role::Nothing) | ("nat" | "mangle", Role::Forwarding) => None,
            ("nat", _) => {
                let needed =
                    self.default || repair::translates_sources(table) || table.has(&rules::nat_chain(device));
                needed.then(|| rules::nat(desired, self.random_fully, self.default))
            }
            _ if !desired.forward_rules => None,
            // One table that drops is enough.
            ("mangle", _) => self.default.then(|| rules::mangle(desired)),
            ("filter", _) => {
                let wanted = match role {
                    Role::Everything => rules::forward_as_flannel(desired),
                    _ => rules::forward_beside_nftables(desired),
                };
                let there = wanted.chains.iter().any(|chain| table.has(&chain.name));
                (self.default || there || repair::drops_forwarded(table)).then_some(wanted)
            }
            _ => Some(rules::raw(desired)),
        }
    }

    /// The change that `lines` are for each of `tables`. Those of `jumps` that lead to chains which go are looked for where
    /// a chain cannot be listed.
    async fn removal(
        &self,
        tables: &[(&'static str, Table)],
        jumps: impl IntoIterator<Item = Hook>,
        lines: impl Fn(&Table) -> Vec<String>,
    ) -> Result<Option<Change>, HostError> {
        let all: Vec<(&'static str, Vec<String>)> =
            tables.iter().map(|(name, table)| (*name, lines(table))).collect();
        let mut unseen = Vec::new();
        for jump in jumps {
            let goes = target(&words(&jump.rule)).map(|chain| format!("-X {chain}")).unwrap_or_default();
            for ((name, lines), (_, table)) in all.iter().zip(tables) {
                if table.is_unread(jump.chain)
                    && lines.contains(&goes)
                    && tell(self.program, name, "-C", &jump).await?
                {
                    unseen.push((*name, jump.clone()));
                }
            }
        }
        Ok(Change::of(self.program, unseen, all))
    }
}

/// The networks that this daemon, and no other, has rules about in shared chains.
fn networks_to_remove(tables: &[(&'static str, Table)], device: &str) -> BTreeSet<String> {
    let Some((_, nat)) = tables.iter().find(|(name, _)| *name == "nat") else { return BTreeSet::new() };
    let others = repair::networks_of_others(nat, device);
    repair::networks_of(nat, device).difference(&others).cloned().collect()
}

/// In the order in which they are put: sources first, so that nothing is let through that is to be rewritten.
const TABLES: [&str; 4] = ["mangle", "nat", "filter", "raw"];
