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

mod listing;
mod piecemeal;
mod repair;
mod rules;
mod save;

use std::collections::BTreeSet;
use std::fs;

pub(super) use self::listing::{Saved, saved};
pub(super) use self::rules::TUNNEL_IN_TUNNEL;
use self::rules::{Hook, Wanted};
use self::save::target;
pub(super) use self::save::{Table, value, words};
use crate::command::run;
use crate::{Desired, HostError};
use overlay_support::reserve::reading;

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

/// One transaction for one variant.
#[derive(Debug)]
pub(super) struct Change {
    program: &'static str,
    /// Rules in chains that cannot be listed, by table and chain: deleted first, as often as they are there.
    unseen: Vec<(&'static str, Hook)>,
    /// What its `-restore` reads.
    script: String,
}

impl Change {
    /// Makes it: all of a table or nothing.
    pub(super) async fn make(&self) -> Result<(), HostError> {
        for (table, hook) in &self.unseen {
            while piecemeal::tell(self.program, table, "-D", hook).await? {}
        }
        if self.script.is_empty() {
            return Ok(());
        }
        let program = format!("{}-restore", self.program);
        run(&program, &["-w", LOCK_WAIT, "--noflush"], &self.script).await.map(drop)
    }

    /// The variant's program.
    pub(super) fn program(&self) -> &'static str {
        self.program
    }

    /// Each line, with the program and the table that it is for.
    pub(super) fn describe(&self) -> Vec<String> {
        let mut table = "";
        let unseen = self.unseen.iter();
        let mut lines: Vec<String> = unseen
            .map(|(table, Hook { chain, rule, .. })| format!("{} -t {table} -D {chain} {rule}", self.program))
            .collect();
        for line in self.script.lines() {
            match line.strip_prefix('*') {
                Some(name) => table = name,
                None if line == "COMMIT" => {}
                None => lines.push(format!("{} -t {table} {line}", self.program)),
            }
        }
        lines
    }
}

/// The installed variants.
pub(super) struct Variants {
    all: Vec<Variant>,
    /// Tables that a variant cannot list, as in `filter of iptables`.
    unlisted: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy)]
struct Variant {
    program: &'static str,
    /// Whether it is the one called `iptables`.
    default: bool,
    legacy: bool,
    random_fully: bool,
    /// The file that names legacy's loaded tables.
    loaded: &'static str,
}

impl Variants {
    /// Those of `iptables`.
    ///
    /// # Errors
    /// [`HostError::NoProgram`] without any.
    pub(super) async fn find() -> Result<Self, HostError> {
        Self::of("iptables", "iptables-nft", "iptables-legacy", LOADED).await
    }

    async fn find_ipv6() -> Result<Self, HostError> {
        Self::of("ip6tables", "ip6tables-nft", "ip6tables-legacy", LOADED_IPV6).await
    }

    async fn of(
        default: &'static str,
        nft: &'static str,
        legacy: &'static str,
        loaded: &'static str,
    ) -> Result<Self, HostError> {
        let version = run(default, &["--version"], "").await?;
        let is_legacy = !version.contains("nf_tables");
        let random_fully = has_random_fully(&version);
        let other = if is_legacy { nft } else { legacy };
        let variant = |program, default, legacy| Variant { program, default, legacy, random_fully, loaded };
        let all = vec![variant(default, true, is_legacy), variant(other, false, !is_legacy)];
        Ok(Self { all, unlisted: BTreeSet::new() })
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
            let lines = |table: &Table| repair::removal(table, device, &networks, &[]);
            changes.extend(variant.removal(&tables, rules::jumps_of(device), lines).await?);
        }
        Ok(changes)
    }

    /// What has to be changed so that nothing of flannel's is left, except what another overlayd uses.
    async fn removal_of_flannels(&self) -> Result<Vec<Change>, HostError> {
        let mut tables = Vec::new();
        for variant in &self.all {
            tables.push(variant.read(&["nat", "filter"], &rules::flannels_chains()).await?);
        }
        let owned: BTreeSet<String> =
            tables.iter().flatten().flat_map(|(_, table)| repair::networks_of_all(table)).collect();
        let mut changes = Vec::new();
        for (variant, tables) in self.all.iter().zip(&tables) {
            let lines = |table: &Table| repair::removal_of_flannels(table, &owned);
            changes.extend(variant.removal(tables, rules::flannels_jumps(), lines).await?);
        }
        Ok(changes)
    }
}

/// The networks that flannel's rules are about, and no overlayd's.
pub(super) async fn flannels_networks() -> Result<BTreeSet<String>, HostError> {
    let mut tables = Vec::new();
    for variant in &Variants::find().await?.all {
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
    for variants in [Variants::find().await, Variants::find_ipv6().await] {
        match variants {
            Ok(variants) => changes.extend(variants.removal_of_flannels().await?),
            Err(HostError::NoProgram { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(changes)
}

/// Whether the legacy variant has tables here. It tells nobody when its rules change.
pub(super) fn legacy_in_use() -> bool {
    !loaded_tables(LOADED).is_empty()
}

impl Variant {
    /// The tables of these names; those that are not there are empty. Of one that cannot be listed, the chains that
    /// lead on from where our rules are hooked, and those named `own`.
    async fn read(
        &self,
        names: &[&'static str],
        own: &[String],
    ) -> Result<Vec<(&'static str, Table)>, HostError> {
        // Merely asking iptables-legacy for a table would load its kernel module: it writes all that there are,
        // in one go. iptables-nft is asked for each, since others may be long.
        let saved = if self.legacy {
            let loaded = loaded_tables(self.loaded);
            let needed = names.iter().any(|name| loaded.iter().any(|loaded| loaded == name));
            Some(if needed { self.save(&[]).await? } else { String::new() })
        } else {
            None
        };
        let mut tables = Vec::new();
        for name in names {
            let table = match &saved {
                Some(saved) => Table::parse(name, saved),
                None => match self.save(&["-t", name]).await? {
                    saved if save::is_withheld(name, &saved) => {
                        piecemeal::read(self.program, name, own).await?
                    }
                    saved => Table::parse(name, &saved),
                },
            };
            tables.push((*name, table));
        }
        Ok(tables)
    }

    /// What its `-save` writes; nothing if this is not the default variant and not installed.
    async fn save(&self, arguments: &[&str]) -> Result<String, HostError> {
        match run(&format!("{}-save", self.program), arguments, "").await {
            Err(HostError::NoProgram { .. }) if !self.default => Ok(String::new()),
            saved => saved,
        }
    }

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
            lines
        };
        let script = script(tables.iter().map(|(name, table)| (*name, lines(name, table))));
        self.change_of(Vec::new(), script)
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
                    && piecemeal::tell(self.program, name, "-C", &jump).await?
                {
                    unseen.push((*name, jump.clone()));
                }
            }
        }
        Ok(self.change_of(unseen, script(all)))
    }

    fn change_of(&self, unseen: Vec<(&'static str, Hook)>, script: String) -> Option<Change> {
        (!unseen.is_empty() || !script.is_empty()).then_some(Change { program: self.program, unseen, script })
    }
}

/// What a variant's `-restore` is to read, if anything.
fn script(tables: impl IntoIterator<Item = (&'static str, Vec<String>)>) -> String {
    let tables = tables.into_iter().filter(|(_, lines)| !lines.is_empty());
    tables.map(|(table, lines)| format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"))).collect()
}

/// The networks that this daemon, and no other, has rules about in shared chains.
fn networks_to_remove(tables: &[(&'static str, Table)], device: &str) -> BTreeSet<String> {
    let Some((_, nat)) = tables.iter().find(|(name, _)| *name == "nat") else { return BTreeSet::new() };
    let others = repair::networks_of_others(nat, device);
    repair::networks_of(nat, device).difference(&others).cloned().collect()
}

fn loaded_tables(file: &str) -> Vec<String> {
    reading(|| fs::read_to_string(file)).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// iptables has `--random-fully` since 1.6.2, as flannel asks too.
fn has_random_fully(version: &str) -> bool {
    let number = version.split_once(" v").map_or("", |(_, rest)| rest);
    let number = number.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts >= vec![1, 6, 2]
}

/// In the order in which they are put: sources first, so that nothing is let through that is to be rewritten.
const TABLES: [&str; 4] = ["mangle", "nat", "filter", "raw"];

// `thread-self`, since /proc/net shows the network namespace of the main thread.
const LOADED: &str = "/proc/thread-self/net/ip_tables_names";
const LOADED_IPV6: &str = "/proc/thread-self/net/ip6_tables_names";

/// Seconds to wait for the lock that other users of iptables hold.
const LOCK_WAIT: &str = "5";

#[cfg(test)]
mod tests;
